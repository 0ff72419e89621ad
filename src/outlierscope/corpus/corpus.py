"""Corpus: what a scan sees of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from outlierscope.corpus.batch import Batch


class Corpus(Protocol):
    """Texts (``TextCorpus``) or pictures (``ImageCorpus``) as numbered batches."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of tokens or positions."""

    @property
    def estimated_tokens(self) -> int | None:
        """About how many tokens there will be; ``None`` when unknown."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is."""

    def fingerprint(self) -> str:
        """A hash of everything that decides about the batches."""

    def describe(self) -> dict[str, Any]:
        """What was read and how, for ``scan.json``."""

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes a token; ``None`` where there is none."""

    def context(self, token_ids: Tensor, position: int) -> str | None:
        """In words, where a position of a sequence ([T] token ids) is; ``None`` when nothing can be said."""
