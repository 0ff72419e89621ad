"""Rules of the literature that say which single values are events; each finds them in one site's tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from typing_extensions import override

from outlierscope.stats.located import Located, read_at, read_beyond

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation
    from outlierscope.stats.power_sums import Array


class EventRule(Protocol):
    """What ``Events`` and ``Flags`` count."""

    dear: ClassVar[bool]
    """Whether it is applied on the sampled batches only."""

    @property
    def name(self) -> str:
        """Name with all thresholds."""

    def find(self, seen: Observation) -> Located:
        """The events of one batch; ask ``Observation.events``, which calls this once per site and pass."""


@dataclass(frozen=True)
class SixSigma(EventRule):
    """abs(x - mean) > sigma std, mean and unbiased std over all values [T, d] of the sequence.

    Bondarenko et al. 2023, section 3 (sigma = 6); the scope of mean and std is ours. The score is
    abs(x - mean) / std.
    """

    sigma: float = 6.0
    dear: ClassVar[bool] = False

    @property
    @override
    def name(self) -> str:
        return f"six_sigma_{self.sigma:g}"

    @override
    def find(self, seen: Observation) -> Located:
        pooled = seen.digest.pooled
        with np.errstate(invalid="ignore", divide="ignore"):
            std = np.sqrt(
                pooled.m2 / (pooled.count - 1)
            )  # [B]; NaN or infinite where there are too few values
        found = read_beyond(seen, pooled.mean, self.sigma * std)
        if len(found):
            distance = np.abs(found.value.double().numpy() - pooled.mean[found.sequence])
            found.score = torch.from_numpy(distance / std[found.sequence])
        return found


@dataclass(frozen=True)
class Massive(EventRule):
    """abs(x) > absolute and abs(x) > ratio * median(abs(h)), h the sequence's tensor [T, d].

    Sun et al. 2024, section 2 (100 and 1000). Medians grow with depth, so that the rule may let go at the
    very peak: a coordinate (sequence, position, dim) once flagged stays flagged (is *carried*) at the same
    site of the following layers while it is above ``absolute`` and above ``keep`` times its magnitude in
    the last layer that flagged it by the rule itself. The score is abs(x) / median; the median of an even
    number of values is the mean of the middle two.
    """

    absolute: float = 100.0
    ratio: float = 1000.0
    keep: float = 0.5
    dear: ClassVar[bool] = True

    @property
    @override
    def name(self) -> str:
        return f"massive_{self.absolute:g}_{self.ratio:g}_{self.keep:g}"

    @override
    def find(self, seen: Observation) -> Located:
        norms = seen.digest.inf_norms  # [B]
        median = np.full_like(norms, np.inf)
        for sequence in (norms > self.absolute).nonzero()[0].tolist():
            median[sequence] = seen.median(sequence)
        found = read_beyond(seen, np.zeros_like(median), np.maximum(self.ratio * median, self.absolute))
        medians = torch.from_numpy(median)
        found.score = found.value.double().abs() / medians[found.sequence]

        key = (self, seen.site.stack, seen.site.name)
        before: Located | None = seen.scratch.get(key)
        flagged = found
        if before is not None and len(before):
            now = read_at(seen, before)
            magnitude = now.value.double().abs()
            held = (magnitude > self.absolute) & (magnitude > self.keep * before.value.double().abs())
            held &= torch.isfinite(medians[now.sequence]) & ~now.among(found) & seen.is_used(now)
            now.score = magnitude / medians[now.sequence]
            now.carried = torch.ones_like(now.carried)
            flagged = Located.joined(found, before.where(held))
            found = Located.joined(found, now.where(held))
        seen.scratch[key] = flagged
        return found


@dataclass(frozen=True)
class Systematic(EventRule):
    """max_d abs(h[t, d]) > ratio * mean(abs(h)) over [T, d]: one event per token, at its largest dim.

    An et al. 2025, section 3 (1000). The score is max_d abs(h[t, d]) / mean(abs(h)).
    """

    ratio: float = 1000.0
    dear: ClassVar[bool] = False

    @property
    @override
    def name(self) -> str:
        return f"systematic_{self.ratio:g}"

    @override
    def find(self, seen: Observation) -> Located:
        norms = seen.digest.inf_norms  # [B]
        mean = np.full_like(norms, np.inf)
        for sequence in (norms > self.ratio * least_mean_abs(seen)).nonzero()[0].tolist():
            mean[sequence] = seen.mean_abs(sequence)
        found = read_beyond(seen, np.zeros_like(mean), self.ratio * mean)
        if not len(found):
            return found
        found.score = found.value.double().abs() / torch.from_numpy(mean)[found.sequence]
        peak = torch.zeros(seen.batch.token_ids.numel())
        peak[seen.digest.order.rows] = torch.from_numpy(seen.digest.token_absmax)
        at_peak = found.value.abs() == peak[found.sequence * seen.digest.order.shape[1] + found.place]
        return found.where(at_peak).first_of_each_token()


def least_mean_abs(seen: Observation) -> Array:
    """[B] lower bound of each sequence's mean(abs(x)), from its moments.

    Hoelder: E x^2 <= (E abs(x))^(2/3) (E x^4)^(1/3). It rules most sequences out without another look.
    """
    pooled = seen.digest.pooled
    n, mean = np.maximum(pooled.count, 1), pooled.mean
    variance, third, fourth = pooled.m2 / n, pooled.m3 / n, pooled.m4 / n
    square = mean * mean
    second_raw = variance + square
    fourth_raw = fourth + 4 * third * mean + 6 * variance * square + square * square
    with np.errstate(invalid="ignore", divide="ignore"):
        least: Array = np.nan_to_num(second_raw * np.sqrt(second_raw / fourth_raw), posinf=0.0) * (1 - 1e-5)
    return least
