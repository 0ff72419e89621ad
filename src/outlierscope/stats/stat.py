"""Stat: a small accumulator that can be updated, merged, saved and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Seen = TypeVar("Seen")


class Stat(ABC, Generic[Seen]):
    """One statistic of one site.

    The contract: for any split of a corpus into whole sequences, merging the statistics of the parts gives the
    statistic of the whole: counts exactly, merged moments to 1e-9 of Chan's formulas in float64, the same sequences
    in other batches to the float32 arithmetic of a batch. Fields are its parameters (thresholds) and its state
    (tensors on the CPU).

    ``update`` and ``merge`` replace tables, they never change one in place: others may hold it (``copy``).

    ``Seen`` is what one update looks at: an ``Observation`` of a site's tensor, or an
    ``AttentionObservation`` of one layer's attention.
    """

    dear: ClassVar[bool] = False
    """Whether it is computed on the sampled batches only."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name with all parameters, unique at one site; also its key in files, e.g. ``exceedances_6``."""

    @abstractmethod
    def fresh(self) -> Self:
        """An empty one with the same parameters."""

    def copy(self) -> Self:
        """One that goes on from here by itself, and costs next to nothing, as both hold the same tables.

        A batch is taken in by copies: until the whole forward pass has succeeded, nobody needs to know of it.
        """
        # copy.copy takes ten times as long, and there are hundreds of copies at every batch.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    @abstractmethod
    def update(self, seen: Seen) -> None:
        """Take in one batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another one of the same parameters has seen."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The state as named CPU tensors (scalars as 0-d tensors), for safetensors."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned, bit for bit."""
