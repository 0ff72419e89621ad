"""SequenceSummaries: per-sequence figures of a whole tensor, averaged over sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation


@dataclass
class SequenceSummaries(Stat["Observation"]):
    """Inf norm and kurtosis per sequence over all its values [T, d]; Bondarenko et al. 2023, section 5.

    ``inf_norm`` is max abs(x); ``kurtosis`` is mean((x - mean)^4) / std^4 with the unbiased std, not excess.

    Attributes:
        count: sequences with at least one token.
        inf_norm_mean: mean over sequences.
        inf_norm_m2: sum of squared deviations from that mean.
        inf_norm_max: largest.
        kurtosis_count: sequences of more than one value, not all equal.
        kurtosis_mean: mean over those.
        kurtosis_m2: sum of squared deviations from that mean.
    """

    count: int = 0
    inf_norm_mean: float = 0.0
    inf_norm_m2: float = 0.0
    inf_norm_max: float = 0.0
    kurtosis_count: int = 0
    kurtosis_mean: float = 0.0
    kurtosis_m2: float = 0.0

    @property
    @override
    def name(self) -> str:
        return "sequences"

    @override
    def fresh(self) -> SequenceSummaries:
        return SequenceSummaries()

    @override
    def update(self, seen: Observation) -> None:
        pooled = seen.digest.pooled
        inf_norms = seen.digest.inf_norms.tolist()
        figures = list(
            zip(np.asarray(pooled.count).tolist(), pooled.m2.tolist(), pooled.m4.tolist(), strict=True)
        )
        kurtoses = [m4 / n * ((n - 1) / m2) ** 2 for n, m2, m4 in figures if n > 1 and m2 > 0]
        inf_norms = [inf_norms[sequence] for sequence in seen.filled]
        self._take(*_summary(inf_norms), *_summary(kurtoses), max(inf_norms, default=0.0))

    @override
    def merge(self, other: SequenceSummaries) -> None:
        self._take(
            other.count,
            other.inf_norm_mean,
            other.inf_norm_m2,
            other.kurtosis_count,
            other.kurtosis_mean,
            other.kurtosis_m2,
            other.inf_norm_max,
        )

    def _take(
        self,
        count: int,
        inf_norm_mean: float,
        inf_norm_m2: float,
        kurtosis_count: int,
        kurtosis_mean: float,
        kurtosis_m2: float,
        inf_norm_max: float,
    ) -> None:
        self.count, self.inf_norm_mean, self.inf_norm_m2 = _chan(
            (self.count, self.inf_norm_mean, self.inf_norm_m2), (count, inf_norm_mean, inf_norm_m2)
        )
        self.kurtosis_count, self.kurtosis_mean, self.kurtosis_m2 = _chan(
            (self.kurtosis_count, self.kurtosis_mean, self.kurtosis_m2),
            (kurtosis_count, kurtosis_mean, kurtosis_m2),
        )
        self.inf_norm_max = max(self.inf_norm_max, inf_norm_max)

    def inf_norm_std(self) -> float:
        """Unbiased standard deviation over sequences; NaN below two."""
        return (self.inf_norm_m2 / (self.count - 1)) ** 0.5 if self.count > 1 else float("nan")

    def kurtosis_std(self) -> float:
        """Unbiased standard deviation over sequences; NaN below two."""
        return (
            (self.kurtosis_m2 / (self.kurtosis_count - 1)) ** 0.5 if self.kurtosis_count > 1 else float("nan")
        )

    @override
    def state(self) -> dict[str, Tensor]:
        return {
            key: torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
            for key, value in vars(self).items()
        }

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            setattr(self, key, value.item())


def _summary(values: list[float]) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations."""
    if not values:
        return 0, 0.0, 0.0
    mean = math.fsum(values) / len(values)
    return len(values), mean, math.fsum((value - mean) ** 2 for value in values)


def _chan(first: tuple[int, float, float], second: tuple[int, float, float]) -> tuple[int, float, float]:
    """Count, mean and sum of squares of two groups together (Chan, Golub & LeVeque 1979)."""
    if not second[0]:
        return first
    if not first[0]:
        return second
    n = first[0] + second[0]
    delta = second[1] - first[1]
    return n, first[1] + delta * second[0] / n, first[2] + second[2] + delta**2 * first[0] * second[0] / n
