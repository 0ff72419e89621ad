"""Histograms of magnitudes with 128 bins per power of two: merge by addition, quantiles to 0.8 %."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.sequence_magnitudes import BINS, count_magnitudes
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

    >>> counts = torch.zeros(BINS, dtype=torch.int64)
    >>> counts[bin_edges().tolist().index(1.0)] = 7
    >>> counts[bin_edges().tolist().index(2.0)] = 93
    >>> quantile_of(counts, 0.07) < 1.01 < 2.0 < quantile_of(counts, 0.08)
    True

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
    # 0.07 * 100 is a little more than 7 in floating point; its ceiling must not be 8.
    rank = max(math.ceil(q * total * (1 - 1e-12)), 1)
    place = int(torch.searchsorted(cumulative, rank))
    lower, upper = bin_edges()[place : place + 2].double().tolist()
    return float(lower if place == 0 else (lower + upper) / 2)


class _Histogram(Stat["Observation"]):
    """What both histograms can be asked, and how magnitudes are gathered."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._waiting: list[Tensor] = []
        self._tokens_waiting = 0

    @property
    def counts(self) -> Tensor:
        """[BINS] int64."""
        self._settle()
        return torch.zeros(BINS, dtype=torch.int64) if self._counts is None else self._counts

    @property
    def total(self) -> int:
        """How many magnitudes were counted."""
        return int(self.counts.sum())

    def edges(self) -> Tensor:
        """[BINS] float32, the smallest magnitude of each bin."""
        return bin_edges()

    def quantile(self, q: float) -> float:
        """Magnitude below which a share q lies, to 0.8 %; see ``quantile_of``."""
        return quantile_of(self.counts, q)

    def _add(self, counts: Tensor) -> None:
        self._counts = counts if self._counts is None else self._counts + counts

    def _wait(self, magnitudes: list[Tensor], count: int) -> None:
        self._waiting = self._waiting + magnitudes  # not in place: copies share the list
        self._tokens_waiting += count
        if self._tokens_waiting > WAITING:
            self._settle()

    def _settle(self) -> None:
        """Count the magnitudes that wait."""
        if self._waiting:
            waiting = torch.cat(self._waiting)
            self._waiting, self._tokens_waiting = [], 0
            self._add(count_magnitudes(waiting))

    @override
    def fresh(self) -> Self:
        return type(self)()

    @override
    def merge(self, other: Self) -> None:
        if other._counts is not None:
            self._add(other._counts)
        self._wait(other._waiting, other._tokens_waiting)

    @override
    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._counts, self._waiting, self._tokens_waiting = state["counts"], [], 0


class LogHistogram(_Histogram):
    """Histogram of abs(x) of all values; dear."""

    dear: ClassVar[bool] = True

    @property
    @override
    def name(self) -> str:
        return "histogram"

    @override
    def update(self, seen: Observation) -> None:
        for sequence in seen.filled:
            self._add(seen.magnitude_counts(sequence))


class TokenAbsmax(_Histogram):
    """Histogram of each token's largest magnitude over the dims."""

    @property
    @override
    def name(self) -> str:
        return "token_absmax"

    @override
    def update(self, seen: Observation) -> None:
        self._wait([torch.from_numpy(seen.digest.token_absmax)], seen.digest.tokens)
