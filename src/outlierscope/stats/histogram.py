"""Histograms of magnitudes with 128 bins per power of two: merge by addition, quantiles to 0.8 %."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

BINS = 32768
"""One bin for each pattern of the upper 16 bits of a float32 without its sign (which are a bfloat16)."""


def magnitude_bins(values: Tensor) -> Tensor:
    """Bin of abs(value) for each float32 value; int32, same shape.

    >>> magnitude_bins(torch.tensor([0.0, 1.0, -1.0])).tolist()
    [0, 16256, 16256]
    """
    return (values.view(torch.int32) >> 16) & 0x7FFF


def bin_edges() -> Tensor:
    """[BINS] float32, the smallest magnitude of each bin; +inf and NaN in the bins that stay empty."""
    return (torch.arange(BINS, dtype=torch.int32) << 16).view(torch.float32)


def _empty() -> Tensor:
    return torch.zeros(BINS, dtype=torch.int64)


@dataclass
class _Histogram(Stat["Observation"]):
    """What the two histograms share.

    Attributes:
        counts: [BINS] int64.
    """

    counts: Tensor = field(default_factory=_empty)

    def fresh(self) -> Self:
        return type(self)()

    def merge(self, other: Self) -> None:
        self.counts = self.counts + other.counts

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.counts = state["counts"]

    def edges(self) -> Tensor:
        """[BINS] float32, the smallest magnitude of each bin."""
        return bin_edges()

    @property
    def total(self) -> int:
        """How many magnitudes were counted."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """Magnitude below which a share q lies: the middle of the bin of the ceil(q n)-th smallest.

        NaN when nothing was counted. A bin is 1 / 128 to 1 / 256 of its magnitude wide.
        """
        return quantile_of(self.counts, q)


def quantile_of(counts: Tensor, q: float) -> float:
    """Quantile of a histogram [BINS]; see ``LogHistogram.quantile``."""
    cumulative = counts.cumsum(0)
    total = int(cumulative[-1])
    if not total:
        return float("nan")
    rank = min(max(-int(-q * total // 1), 1), total)
    place = int(torch.searchsorted(cumulative, rank))
    edges = bin_edges()[place : place + 2].double()
    return float(edges[0]) if place == 0 else float(edges.mean())


@dataclass
class LogHistogram(_Histogram):
    """Histogram of abs(x) of all values; dear."""

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "histogram"

    def update(self, seen: Observation) -> None:
        for sequence in range(len(seen.digest.used)):
            bins = magnitude_bins(seen.values(sequence)).flatten()
            self.counts = self.counts + torch.bincount(bins, minlength=BINS).cpu()


@dataclass
class TokenAbsmax(_Histogram):
    """Histogram of each token's largest magnitude over the dims."""

    @property
    def name(self) -> str:
        return "token_absmax"

    def update(self, seen: Observation) -> None:
        absmax = seen.digest.absmax[seen.digest.used]  # [N]
        self.counts = self.counts + torch.bincount(magnitude_bins(absmax), minlength=BINS)
