"""Moments: count, mean, central power sums and range of every dim."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.power_sums import PowerSums, combined, over_dims
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation


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


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class Moments(Stat["Observation"]):
    """Moments by dim; all but the two counts [d] float64 (empty before the first batch).

    Attributes:
        count: tokens.
        mean: over tokens.
        m2: sum of (x - mean)^2 over tokens.
        m3: sum of (x - mean)^3.
        m4: sum of (x - mean)^4.
        minimum: smallest value.
        maximum: largest value.
        nonfinite: tokens dropped because a value was NaN or infinite.
    """

    count: int = 0
    mean: Tensor = field(default_factory=_empty)
    m2: Tensor = field(default_factory=_empty)
    m3: Tensor = field(default_factory=_empty)
    m4: Tensor = field(default_factory=_empty)
    minimum: Tensor = field(default_factory=_empty)
    maximum: Tensor = field(default_factory=_empty)
    nonfinite: int = 0

    @property
    @override
    def name(self) -> str:
        return "moments"

    @override
    def fresh(self) -> Moments:
        return Moments()

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        self.nonfinite += digest.nonfinite
        if digest.tokens:
            self._take(digest.sums, digest.tokens, digest.minimum.double(), digest.maximum.double())

    @override
    def merge(self, other: Moments) -> None:
        self.nonfinite += other.nonfinite
        if other.count:
            self._take(other._sums(), other.count, other.minimum, other.maximum)

    def _take(self, sums: PowerSums, count: int, minimum: Tensor, maximum: Tensor) -> None:
        if self.count:
            sums = combined(self._sums(), sums)
            minimum, maximum = torch.minimum(self.minimum, minimum), torch.maximum(self.maximum, maximum)
        self.count += count
        self.mean, self.m2 = torch.from_numpy(sums.mean), torch.from_numpy(sums.m2)
        self.m3, self.m4 = torch.from_numpy(sums.m3), torch.from_numpy(sums.m4)
        self.minimum, self.maximum = minimum, maximum

    def _sums(self) -> PowerSums:
        tables = (self.mean, self.m2, self.m3, self.m4)
        return PowerSums(float(self.count), *(table.numpy() for table in tables))

    @override
    def state(self) -> dict[str, Tensor]:
        return {
            "count": torch.tensor(self.count),
            "mean": self.mean,
            "m2": self.m2,
            "m3": self.m3,
            "m4": self.m4,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "nonfinite": torch.tensor(self.nonfinite),
        }

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count, self.nonfinite = int(state["count"]), int(state["nonfinite"])
        self.mean, self.m2, self.m3, self.m4 = state["mean"], state["m2"], state["m3"], state["m4"]
        self.minimum, self.maximum = state["minimum"], state["maximum"]

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
