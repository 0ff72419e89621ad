"""Windows: documents cut into sequences that fit the model; no window holds two documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlierscope.corpus.tokenization import chunks, encode
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from outlierscope.corpus.batch import Cursor
    from outlierscope.corpus.document import Document
    from outlierscope.corpus.tokenization import Join, SpecialTokens

LEAST_CONTENT = 2
"""Windows with fewer tokens of text than this are dropped: there is nothing to attend to."""


@dataclass(frozen=True)
class Window:
    """One sequence.

    Attributes:
        document: name of the document that it was cut from.
        token_ids: the special tokens and the text's tokens.
        special_tokens: how many of them are special tokens that were put around the text.
        cursor: where reading goes on after it.
        cut: whether it is a pair that had to be cut.
        segments: for pairs, which of the two texts each token is of; ``None``: the tokenizer does not say.
    """

    document: str
    token_ids: list[int]
    special_tokens: int
    cursor: Cursor | None = None
    cut: bool = False
    segments: list[int] | None = None


def content_windows(
    document: Document, tokenizer: PreTrainedTokenizerBase | None, join: Join | None, content: int
) -> Iterator[list[int]]:
    """Consecutive pieces of ``content`` tokens; the last one is shorter.

    The text is tokenized as windows are asked for, so that the cost depends on what is used and not on the
    document's length.

    Raises:
        UserError: for a text when there is no tokenizer.
    """
    if document.token_ids is not None:
        for start in range(0, len(document.token_ids), content):
            yield document.token_ids[start : start + content]
        return
    if tokenizer is None:
        raise UserError(
            f"{document.name} is text, but this model comes without a tokenizer; "
            "give token ids instead (a list column of .jsonl or .parquet)"
        )
    waiting: list[int] = []
    for chunk in chunks(document.blocks, join):
        if chunk.isspace():  # some tokenizers make tokens of it
            continue
        waiting += encode(tokenizer, chunk)
        start = 0
        while len(waiting) - start >= content:
            yield waiting[start : start + content]
            start += content
        del waiting[:start]
    if waiting:
        yield waiting


def pair_window(
    name: str,
    pair: tuple[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    length: int,
    *,
    special: bool,
) -> Window:
    """Two texts as the tokenizer puts them together; of too long ones the longer is cut, token by token.

    Raises:
        UserError: without a tokenizer, or where the length leaves no room for both texts.
    """
    if tokenizer is None:
        raise UserError(f"{name} is text, but this model comes without a tokenizer; pairs need one")
    added = tokenizer.num_special_tokens_to_add(pair=True) if special else 0
    if length < added + 2:
        raise UserError(f"--length {length} leaves no room for a pair; at least {added + 2} is needed here")
    encoded = tokenizer(
        *pair,
        add_special_tokens=special,
        truncation="longest_first",
        max_length=length,
        return_special_tokens_mask=False,
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    whole = sum(len(encode(tokenizer, text)) for text in pair) + added
    return Window(name, ids, added, cut=whole > length, segments=encoded.get("token_type_ids"))


def framed(content: list[int], special: SpecialTokens) -> list[int]:
    """The window with its special tokens around it."""
    return [*special.prefix, *content, *special.suffix]
