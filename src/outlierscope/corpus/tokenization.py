"""Tokenization: a tokenizer used piece by piece, and the special tokens that it puts around a text.

Nothing here knows a tokenizer by name: what it adds and how it treats spaces is found by encoding
small probes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedTokenizerBase

CHUNK_CHARACTERS = 8_192
"""About how much text is tokenized at once."""

Join = Literal["with_right", "dropped", "with_left"]
"""Where the space goes at which a text is cut: to the right piece, nowhere, or to the left piece."""

_JOINS: tuple[Join, ...] = ("with_right", "dropped", "with_left")

# Every tokenizer that splits text into words at all splits it between two such letters.
_CUT = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")

_PROBES = (
    ("The old man", "went to sea"),
    ("one and two", "and THREE, four"),
    ("a b", "c d"),
    ("first.\nThen it", "rained for days"),
)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text, neither truncated nor padded, without special tokens unless asked for."""
    if not text:
        return []
    encoded = tokenizer(
        text,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    return ids


@dataclass(frozen=True)
class SpecialTokens:
    """What stands before and after the text in every window.

    Attributes:
        prefix: token ids before the text, such as [CLS] or <bos>.
        suffix: token ids after it, such as [SEP].
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many tokens of a window they take."""
        return len(self.prefix) + len(self.suffix)


def special_tokens(tokenizer: PreTrainedTokenizerBase, *, causal: bool, bos: bool | None) -> SpecialTokens:
    """The special tokens of every window.

    Args:
        tokenizer: a transformers tokenizer.
        causal: whether the model is a decoder. What its tokenizer puts after a text (an end token) is left
            out then, because a window is a piece of a longer text.
        bos: ``None``: what the tokenizer adds by itself; ``True``: the same, and the BOS token even if
            the tokenizer would not add it; ``False``: none at all.

    Raises:
        UserError: for ``bos=True`` when the tokenizer has no such token.
    """
    if bos is False:
        return SpecialTokens((), ())
    prefix, suffix = _added_tokens(tokenizer)
    if bos and not prefix:
        start = tokenizer.bos_token_id
        if start is None:
            start = getattr(tokenizer, "cls_token_id", None)
        if start is None:
            raise UserError("--bos: this model's tokenizer has no BOS token; leave the option out")
        prefix = (start,)
    return SpecialTokens(prefix, () if causal else suffix)


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer puts before and after a text by itself."""
    for left, right in _PROBES:
        bare = encode(tokenizer, f"{left} {right}")
        full = encode(tokenizer, f"{left} {right}", special=True)
        if bare:
            break
    else:
        raise UserError(
            "the tokenizer gives no tokens for English text; give token ids instead (.jsonl, .parquet)"
        )
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise UserError(
        "cannot tell which special tokens this tokenizer puts around a text; use --no-bos or give token ids"
    )


def space_rule(tokenizer: PreTrainedTokenizerBase) -> Join | None:
    """How a text can be cut at a space so that its pieces have the whole's tokens; ``None``: no way."""
    for join in _JOINS:
        if all(
            encode(tokenizer, f"{left} {right}")
            == [token for piece in _apart(left, right, join) for token in encode(tokenizer, piece)]
            for left, right in _PROBES
        ):
            return join
    return None


def _apart(left: str, right: str, join: Join) -> tuple[str, str]:
    return (left + " " * (join == "with_left"), " " * (join == "with_right") + right)


def chunks(blocks: Iterable[str], join: Join | None, size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Cut a text that comes in blocks into pieces of about ``size`` characters, whatever the blocks.

    A cut is made at the first space between two letters from ``size`` on; where there is none within as many
    characters again, after ``2 * size`` characters.

    >>> list(chunks(["one two th", "ree four"], "with_right", size=4))
    ['one two', ' three', ' four']
    >>> list(chunks(["one two th", "ree four"], "dropped", size=4))
    ['one two', 'three', 'four']
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > 2 * size:
            found = _CUT.search(rest, start + size, start + 2 * size + 1)
            cut = found.start() if found else start + 2 * size
            yield rest[start : cut + 1 if found and join == "with_left" else cut]
            start = cut + 1 if found and join in ("dropped", "with_left") else cut
        rest = rest[start:]
    if rest:
        yield rest
