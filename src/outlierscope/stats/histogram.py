"""Histograms of magnitudes with 128 bins per power of two: merge by addition, quantiles to 0.8 %."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.sequence_magnitudes import BINS, magnitude_bins
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

WAITING = 65536
"""Tokens that ``TokenAbsmax`` gathers before it counts them: adding a table at every batch costs more."""


def bin_edges() -> Tensor:
    """[BINS] float32, the smallest magnitude of each bin; infinite and NaN in the bins that stay empty."""
    return (torch.arange(BINS, dtype=torch.int32) << 16).view(torch.float32)


def quantile_of(counts: Tensor, q: float) -> float:
    """Magnitude below which a share q lies: the middle of the bin of the ceil(q n)-th smallest.

    NaN when nothing was counted. A bin is 1 / 128 to 1 / 256 of its magnitude wide.

    Args:
        counts: [BINS] int64.
        q: 0 <= q <= 1; ``ValueError`` otherwise.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile needs a share between 0 and 1, not {q}")
    cumulative = counts.cumsum(0)
    total = int(cumulative[-1])
    if not total:
        return float("nan")
    rank = max(-int(-q * total // 1), 1)
    place = int(torch.searchsorted(cumulative, rank))
    lower, upper = bin_edges()[place : place + 2].double().tolist()
    return float(lower if place == 0 else (lower + upper) / 2)


class _Histogram(Stat["Observation"]):
    """What both histograms can be asked."""

    counts: Tensor

    def edges(self) -> Tensor:
        """[BINS] float32, the smallest magnitude of each bin."""
        return bin_edges()

    def quantile(self, q: float) -> float:
        """Magnitude below which a share q lies, to 0.8 %; see ``quantile_of``."""
        return quantile_of(self.counts, q)

    @property
    def total(self) -> int:
        """How many magnitudes were counted."""
        return int(self.counts.sum())

    @override
    def fresh(self) -> Self:
        return type(self)()

    @override
    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.counts = state["counts"]


def _no_counts() -> Tensor:
    return torch.zeros(BINS, dtype=torch.int64)


@dataclass
class LogHistogram(_Histogram):
    """Histogram of abs(x) of all values; dear.

    Attributes:
        counts: [BINS] int64.
    """

    counts: Tensor = field(default_factory=_no_counts)
    dear: ClassVar[bool] = True

    @property
    @override
    def name(self) -> str:
        return "histogram"

    @override
    def update(self, seen: Observation) -> None:
        for sequence in seen.filled:
            self.counts = self.counts + seen.magnitude_counts(sequence)

    @override
    def merge(self, other: LogHistogram) -> None:
        self.counts = self.counts + other.counts


class TokenAbsmax(_Histogram):
    """Histogram of each token's largest magnitude over the dims.

    Attributes:
        counts: [BINS] int64.
    """

    def __init__(self) -> None:
        self._counts = _no_counts()
        self._waiting: list[Tensor] = []

    @property
    @override
    def counts(self) -> Tensor:
        if self._waiting:
            self._counts = self._counts + torch.bincount(torch.cat(self._waiting), minlength=BINS)
            self._waiting = []
        return self._counts

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._counts, self._waiting = counts, []

    @property
    @override
    def name(self) -> str:
        return "token_absmax"

    @override
    def update(self, seen: Observation) -> None:
        self._waiting.append(magnitude_bins(seen.digest.token_absmax))
        self._settle()

    @override
    def merge(self, other: TokenAbsmax) -> None:
        self._counts = self._counts + other._counts
        self._waiting += other._waiting
        self._settle()

    def _settle(self) -> None:
        if sum(map(len, self._waiting)) > WAITING:
            self._counts = self.counts
