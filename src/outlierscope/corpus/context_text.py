"""The text around a token, for a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def context_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], position: int, reach: int = 8
) -> str:
    """The text around one token, which stands between « and », on one line.

    Args:
        tokenizer: a transformers tokenizer.
        token_ids: [T] ids of the sequence; -1 for padding, which is left out.
        position: index of the token.
        reach: how many tokens to show on either side.
    """

    def text(stop: int) -> str:
        ids = [token for token in token_ids[start:stop] if token >= 0]
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    start = max(0, position - reach)
    before, until, whole = text(position), text(position + 1), text(position + 1 + reach)
    # Decoded alone, a token would lose its space, or gain one; where it lies follows from what it adds.
    here = until.removeprefix(before)
    after = whole.removeprefix(until)
    space = here[: len(here) - len(here.lstrip(" "))]
    marked = here[len(space) :].replace("\n", "\\n") or space
    return " ".join(f"{before}{space}«{marked}»{after}".split())
