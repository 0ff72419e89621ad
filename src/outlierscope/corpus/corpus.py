"""Corpus: what a scan sees of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outlierscope.corpus.batch import Batch, Cursor


class Corpus(Protocol):
    """Texts (``TextCorpus``), pictures (``ImageCorpus``) or recordings (``AudioCorpus``) as numbered batches."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of tokens or positions."""

    @property
    def estimated_tokens(self) -> int | None:
        """About how many tokens there will be; ``None`` when unknown."""

    def batches(self, start: int = 0, cursor: Cursor | None = None) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is.

        With the ``cursor`` of the batch before, what lies before is not read again.
        """

    def fingerprint(self) -> str:
        """A hash of everything that decides about the batches."""

    def describe(self) -> dict[str, Any]:
        """What was read and how, for ``scan.json``."""

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes a token; ``None`` where there is none."""

    def context(self, batch: Batch, row: int, position: int) -> str | None:
        """In words, where a position of a batch's row is; ``None`` when nothing can be said."""

    def place(self, position: int) -> dict[str, Any] | None:
        """In figures, where a position is in what a sequence was made of: row and column of a patch, seconds."""
