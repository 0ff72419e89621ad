"""Token classes: which tokens carry little information, after An et al. 2025 (Systematic Outliers).

The classes are those of ``TEXT_CLASSES``. ``initial`` is a matter of position and wins over all others, also
where the first token is [CLS] or <bos> (its id still says so); the rest is looked up by token id in a table
that is built once.

What the source leaves open and how it is decided here: a delimiter may come with other punctuation or with
white space in one token (``."`` or two newlines); "bare digits" are tokens of digits only, however many; a
single letter, like an article, counts only where it can begin a word, for inside of one it is a fragment.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import torch

from outlierscope.corpus.batch import TEXT_CLASSES
from outlierscope.corpus.tokenization import encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

INITIAL, SPECIAL, STRONG_DELIMITER, WEAK_SEMANTIC, OTHER = range(len(TEXT_CLASSES))

STRONG_DELIMITERS = frozenset(".,;:!?…\n\r。，、；：！？．｡､؟،؛।॥")
"""Marks that end or part clauses. Quotes, brackets and dashes are not among them."""

_ARTICLES = "a an the"
_CONJUNCTIONS = (
    "and but or nor for yet so if because although though unless since while whereas whether than that as"
)
_PREPOSITIONS = (
    "about above across after against along among around as at before behind below beneath beside between "
    "beyond by despite down during except for from in inside into like near of off on onto out outside over "
    "past per since through throughout till to toward towards under until up upon via with within without"
)
WEAK_WORDS = frozenset(f"{_ARTICLES} {_CONJUNCTIONS} {_PREPOSITIONS}".split())
"""English articles, conjunctions and prepositions, in lower case; the source names only the kinds."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def class_table(tokenizer: PreTrainedTokenizerBase, names: list[str]) -> Tensor:
    """The class of every token id.

    Args:
        tokenizer: a transformers tokenizer.
        names: [V] its ``vocabulary_pieces``.

    Returns:
        [V] uint8 index into ``TEXT_CLASSES``; never ``initial``.
    """
    reading = PieceReading(tokenizer, names)
    table = torch.tensor([reading.token_class(piece) for piece in names], dtype=torch.uint8)  # [V]
    special = [token for token in _special_ids(tokenizer) if 0 <= token < len(names)]
    table[torch.tensor(special, dtype=torch.int64)] = SPECIAL
    return table


def text_classes(token_ids: Tensor, table: Tensor) -> Tensor:
    """Classes of the tokens of right-padded sequences.

    Args:
        token_ids: [B, T] int64; -1 where there is none. Ids beyond the table are ``other``.
        table: [V] from ``class_table``.

    Returns:
        [B, T] uint8; padding is ``other``.
    """
    known = (token_ids >= 0) & (token_ids < len(table))  # [B, T]
    classes = table[token_ids.where(known, 0)].where(known, OTHER)  # [B, T]
    classes[:, 0] = INITIAL
    return classes


def vocabulary_pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """[V] how the tokenizer writes the entry of every token id; "" for ids that are not in use."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    names = [""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token in vocabulary.items():
        names[token] = piece
    return names


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> Iterable[int]:
    yield from tokenizer.all_special_ids
    added = getattr(tokenizer, "added_tokens_decoder", {})
    yield from (token for token, entry in added.items() if entry.special)


class PieceReading:
    """How a tokenizer writes spaces and bytes in its vocabulary, found by encoding a probe.

    Byte-level BPE (GPT-2) writes a space as "Ġ" and a newline as "Ċ"; SentencePiece writes "▁" and unknown
    bytes as "<0x0A>"; WordPiece marks what continues a word with "##"; some BPEs end words with "</w>" or
    mark what does not with "@@".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
        probe = "".join(names[token] for token in encode(tokenizer, "a b\nc d"))
        self._byte_level = "Ġ" in probe or "Ċ" in probe
        self._sentence_piece = not self._byte_level and "▁" in probe
        self._word_ends = "</w>" in probe
        self._word_piece = not (self._byte_level or self._sentence_piece or self._word_ends) and any(
            len(piece) > 2 and piece.startswith("##") for piece in names
        )
        self._bytes = _byte_level_alphabet() if self._byte_level else {}

    def text(self, piece: str) -> str | None:
        """The text of a piece, with its leading space; ``None`` for a fragment of a character."""
        if self._byte_level:
            if any(character not in self._bytes for character in piece):
                return piece  # an added token, written as it is
            try:
                return bytes(self._bytes[character] for character in piece).decode()
            except UnicodeDecodeError:
                return None
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte:
            value = int(byte[1], 16)
            return chr(value) if value < 128 else None
        if self._sentence_piece:
            return piece.replace("▁", " ")
        if self._word_piece and len(piece) > 2:
            return piece.removeprefix("##")
        return piece.removesuffix("</w>") if self._word_ends else piece.removesuffix("@@")

    def starts_word(self, piece: str, text: str) -> bool:
        """Whether a piece can be a whole word as far as its left side shows.

        After a newline or a quote BPEs write words without their space, like the inner parts of words; a
        capital letter tells them apart.
        """
        if self._byte_level or self._sentence_piece:
            return text[:1].isspace() or text[:1].isupper()
        if self._word_ends:
            return piece.endswith("</w>")
        return not (self._word_piece and piece.startswith("##")) and not piece.endswith("@@")

    def token_class(self, piece: str) -> int:
        """Class of a piece, special tokens aside."""
        text = self.text(piece)
        if text is None:
            return OTHER
        if not STRONG_DELIMITERS.isdisjoint(text) and all(map(_is_punctuation_or_space, text)):
            return STRONG_DELIMITER
        word = text.strip()
        if not word or word.isdecimal():
            return WEAK_SEMANTIC
        letter = len(word) == 1 and unicodedata.category(word) in ("Lu", "Ll")
        if (letter or word.lower() in WEAK_WORDS) and self.starts_word(piece, text):
            return WEAK_SEMANTIC
        return OTHER


def _is_punctuation_or_space(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def _byte_level_alphabet() -> dict[str, int]:
    """Which byte every character of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2's code).

    Printable characters stand for themselves, the other bytes in turn for those from U+0100 on.

    >>> _byte_level_alphabet()["Ġ"], _byte_level_alphabet()["Ċ"]
    (32, 10)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
