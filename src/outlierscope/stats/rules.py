"""Rules of the literature that say which single values are events; each finds them in one site's tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from outlierscope.stats.located import Located, read_at, read_candidates

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.stats.observation import Observation


class EventRule(Protocol):
    """What ``Events`` and ``Flags`` count."""

    dear: ClassVar[bool]
    """Whether it is applied on the sampled batches only."""

    @property
    def name(self) -> str:
        """Name with all thresholds."""

    def find(self, seen: Observation) -> Located:
        """The events of one batch. Called once per site and pass: use ``Observation.events``."""


@dataclass(frozen=True)
class SixSigma:
    """abs(x - mean) > sigma std, mean and unbiased std over all values [T, d] of the sequence.

    Bondarenko et al. 2023, section 3 (sigma = 6); the scope of mean and std is ours. The score is
    abs(x - mean) / std.
    """

    sigma: float = 6.0
    dear: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"six_sigma_{self.sigma:g}"

    def find(self, seen: Observation) -> Located:
        digest = seen.digest
        mean = digest.pooled.mean  # [B]
        std = (digest.pooled.m2 / (digest.pooled.count - 1)).sqrt()  # [B]; NaN or inf: nothing passes
        reach = self.sigma * std

        def beyond(low: Tensor, high: Tensor) -> Tensor:
            return (high - mean[:, None] > reach[:, None]) | (mean[:, None] - low > reach[:, None])

        candidates = read_candidates(
            seen,
            beyond(digest.token_minimum, digest.token_maximum),
            beyond(digest.minimum, digest.maximum),
        )
        distance = (candidates.value.double() - mean[candidates.sequence]).abs()
        candidates.score = distance / std[candidates.sequence]
        return candidates.where(distance > reach[candidates.sequence])


@dataclass(frozen=True)
class Massive:
    """abs(x) > absolute and abs(x) > ratio * median(abs(h)), h the sequence's tensor [T, d].

    Sun et al. 2024, section 2 (100 and 1000). Medians grow with depth, so that the rule may let go at the very
    peak: a coordinate (sequence, position, dim) once flagged stays flagged (is *carried*) at the same site of the
    following layers while it is above ``absolute`` and above ``keep`` times its magnitude in the last
    layer that flagged it by the rule itself. The score is abs(x) / median; the median of an even number
    of values is the mean of the middle two.
    """

    absolute: float = 100.0
    ratio: float = 1000.0
    keep: float = 0.5
    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"massive_{self.absolute:g}_{self.ratio:g}"

    def find(self, seen: Observation) -> Located:
        digest = seen.digest
        large = digest.dim_absmax.amax(1) > self.absolute  # [B]
        median = torch.full((len(large),), torch.inf, dtype=torch.float64)
        for sequence in large.nonzero().flatten().tolist():
            median[sequence] = seen.median(sequence)
        floor = torch.clamp(self.ratio * median, min=self.absolute)  # [B]
        strict = read_candidates(seen, digest.absmax > floor[:, None], digest.dim_absmax > floor[:, None])
        strict.score = strict.value.double().abs() / median[strict.sequence]
        strict = strict.where(strict.value.double().abs() > floor[strict.sequence])

        key = (self, seen.site.stack, seen.site.name)
        before: Located | None = seen.scratch.get(key)
        flagged = strict
        if before is not None and len(before):
            carried = read_at(seen, before)
            held = (carried.value.abs() > self.absolute) & (
                carried.value.double().abs() > self.keep * before.value.double().abs()
            )
            held &= ~carried.among(strict) & digest.used[carried.sequence, carried.place]
            carried.score = carried.value.double().abs() / median[carried.sequence]
            carried.carried[:] = True
            flagged = Located.joined(strict, before.where(held))
            strict = Located.joined(strict, carried.where(held))
        seen.scratch[key] = flagged
        return strict


@dataclass(frozen=True)
class Systematic:
    """max_d abs(h[t, d]) > ratio * mean(abs(h)) over [T, d]: one event per token, at its largest dim.

    An et al. 2025, section 3 (1000). The score is max_d abs(h[t, d]) / mean(abs(h)).
    """

    ratio: float = 1000.0
    dear: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"systematic_{self.ratio:g}"

    def find(self, seen: Observation) -> Located:
        digest = seen.digest
        pooled = digest.pooled
        n = pooled.count.double()
        mean = pooled.mean
        variance, third, fourth = pooled.m2 / n, pooled.m3 / n, pooled.m4 / n
        square = variance + mean**2  # E x^2
        quartic = fourth + 4 * third * mean + 6 * variance * mean**2 + mean**4  # E x^4
        # Hoelder: E x^2 <= (E abs(x))^(2/3) (E x^4)^(1/3); it rules most sequences out without another look.
        least = square**1.5 / quartic**0.5 * (1 - 1e-6)  # [B]
        largest = digest.dim_absmax.amax(1).double()
        mean_abs = torch.full_like(largest, torch.inf)
        for sequence in (~(largest <= self.ratio * least) & (n > 0)).nonzero().flatten().tolist():
            mean_abs[sequence] = seen.mean_abs(sequence)
        limit = self.ratio * mean_abs  # [B]
        tokens = digest.absmax > limit[:, None]  # [B, T]
        candidates = read_candidates(seen, tokens, digest.dim_absmax > limit[:, None])
        at_peak = candidates.value.abs() == digest.absmax[candidates.sequence, candidates.place]
        candidates.score = candidates.value.double().abs() / mean_abs[candidates.sequence]
        return candidates.where(at_peak).first_of_each_token()
