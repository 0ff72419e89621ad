"""Moments: count, mean, central power sums and range of every dim."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.power_sums import PowerSums, combine_into, over_dims
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.stats.observation import Observation

ROWS = ("mean", "m2", "m3", "m4", "minimum", "maximum")
"""What the table of ``Moments`` holds, row by row."""


@dataclass(frozen=True)
class PooledMoments:
    """Moments over all values of a site, whatever their dim.

    Attributes:
        count: values.
        mean: their mean.
        variance: unbiased.
        skewness: m3 / m2^1.5, population moments.
        kurtosis: m4 / m2^2, population moments; 3 for a normal distribution.
        absmax: largest magnitude.
    """

    count: int
    mean: float
    variance: float
    skewness: float
    kurtosis: float
    absmax: float


@dataclass
class Moments(Stat["Observation"]):
    """Moments by dim; all but the two counts [d] float64 (empty before the first batch).

    Attributes:
        count: tokens.
        nonfinite: tokens dropped because a value was NaN or infinite.
        table: [6, d], the rows of which are the six that follow.
        mean: over tokens.
        m2: sum of (x - mean)^2 over tokens.
        m3: sum of (x - mean)^3.
        m4: sum of (x - mean)^4.
        minimum: smallest value.
        maximum: largest value.
    """

    count: int = 0
    nonfinite: int = 0
    table: Tensor = field(default_factory=lambda: torch.zeros(len(ROWS), 0, dtype=torch.float64))

    @property
    @override
    def name(self) -> str:
        return "moments"

    @property
    def mean(self) -> Tensor:
        """[d] mean over tokens."""
        return self.table[0]

    @property
    def m2(self) -> Tensor:
        """[d] sum of (x - mean)^2 over tokens."""
        return self.table[1]

    @property
    def m3(self) -> Tensor:
        """[d] sum of (x - mean)^3."""
        return self.table[2]

    @property
    def m4(self) -> Tensor:
        """[d] sum of (x - mean)^4."""
        return self.table[3]

    @property
    def minimum(self) -> Tensor:
        """[d] smallest value."""
        return self.table[4]

    @property
    def maximum(self) -> Tensor:
        """[d] largest value."""
        return self.table[5]

    @override
    def fresh(self) -> Moments:
        return Moments()

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        self.nonfinite += digest.nonfinite
        if digest.tokens:
            self._take(digest.sums, digest.tokens, digest.minimum, digest.maximum)

    @override
    def merge(self, other: Moments) -> None:
        self.nonfinite += other.nonfinite
        if other.count:
            minimum, maximum = other.minimum.numpy(), other.maximum.numpy()
            self._take(other._sums(), other.count, minimum, maximum)

    def _take(self, sums: PowerSums, count: int, minimum: NDArray[Any], maximum: NDArray[Any]) -> None:
        joined = np.empty((len(ROWS), len(minimum)))
        if self.count:
            mine = self.table.numpy()
            if mine.shape[1] != len(minimum):  # the compiled loop does not look at bounds
                raise ValueError(f"moments of {mine.shape[1]} dims cannot take in those of {len(minimum)}")
            np.minimum(mine[4], minimum, out=joined[4])
            np.maximum(mine[5], maximum, out=joined[5])
            combine_into(joined[:4], self._sums(), sums)
        else:
            for row, values in enumerate((sums.mean, sums.m2, sums.m3, sums.m4, minimum, maximum)):
                joined[row] = values
        self.count += count
        self.table = torch.from_numpy(joined)

    def _sums(self) -> PowerSums:
        return PowerSums(float(self.count), *self.table[:4].numpy())

    @override
    def state(self) -> dict[str, Tensor]:
        counts = {"count": torch.tensor(self.count), "nonfinite": torch.tensor(self.nonfinite)}
        return counts | {name: row.clone() for name, row in zip(ROWS, self.table, strict=True)}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count, self.nonfinite = int(state["count"]), int(state["nonfinite"])
        self.table = torch.stack([state[name] for name in ROWS])

    def variance(self, ddof: int = 1) -> Tensor:
        """[d] m2 / (count - ddof); NaN where there are too few tokens."""
        return self.m2 / (self.count - ddof) if self.count > ddof else torch.full_like(self.m2, torch.nan)

    def std(self, ddof: int = 1) -> Tensor:
        """[d] square root of the variance."""
        return self.variance(ddof).sqrt()

    def skewness(self) -> Tensor:
        """[d] sqrt(n) m3 / m2^1.5; NaN in constant dims."""
        return math.sqrt(self.count) * self.m3 / self.m2**1.5

    def kurtosis(self) -> Tensor:
        """[d] n m4 / m2^2, not excess: 3 for a normal distribution; NaN in constant dims."""
        return self.count * self.m4 / self.m2**2

    def absmax(self) -> Tensor:
        """[d] largest magnitude."""
        return torch.maximum(self.maximum, -self.minimum)

    def rms(self) -> Tensor:
        """[d] root of the mean square, sqrt(mean^2 + m2 / n)."""
        return torch.sqrt(self.mean**2 + self.variance(ddof=0))

    def pooled(self) -> PooledMoments:
        """Moments over all values of all dims; NaN where there are too few values."""
        if not self.count:
            return PooledMoments(0, torch.nan, torch.nan, torch.nan, torch.nan, torch.nan)
        sums = over_dims(self._sums())
        n, m2 = int(sums.count), float(sums.m2)
        return PooledMoments(
            n,
            float(sums.mean),
            m2 / (n - 1) if n > 1 else torch.nan,
            math.sqrt(n) * float(sums.m3) / m2**1.5 if m2 else torch.nan,
            n * float(sums.m4) / m2**2 if m2 else torch.nan,
            float(self.absmax().max()),
        )
