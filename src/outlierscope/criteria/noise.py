"""Quantization noise, predicted from histograms of magnitudes.

Every function takes counts of abs(x) by bins and assumes that values are spread evenly within a bin; the bins
of ``LogHistogram`` are at most 0.8 % wide, so the figures follow direct fake quantization closely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

INT8_LEVELS = 127
"""Steps on each side of zero of the symmetric int8 grid: step D = range / 127."""


@dataclass(frozen=True)
class Magnitudes:
    """A histogram of magnitudes, without its empty bins.

    Attributes:
        counts: [n] float64, elements of each bin.
        lower: [n] float64, lower edge of each bin.
        upper: [n] float64, upper edge.
    """

    counts: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, counts: Tensor, edges: Tensor) -> Magnitudes:
        """From the counts [n] of a histogram and the smallest magnitude [n] of each bin.

        The last bin has no upper edge and is left out, as are bins with an infinite one: nothing finite is
        there.
        """
        upper = torch.cat([edges[1:], edges.new_full((1,), torch.inf)])
        used = (counts > 0) & torch.isfinite(upper)
        return cls(counts[used].double(), edges[used].double(), upper[used].double())

    @property
    def elements(self) -> float:
        """Number of elements counted."""
        return float(self.counts.sum())

    @property
    def middle(self) -> Tensor:
        """[n] float64: the middle of each bin; exactly 0 for the bin that begins at 0."""
        return torch.where(self.lower == 0, 0.0, (self.lower + self.upper) / 2)

    def mean_square(self) -> float:
        """Mean of x^2: the energy per element of the signal itself."""
        return float((self.counts * self.middle**2).sum()) / self.elements

    def up_to(self, share: float) -> Magnitudes:
        """The smallest ``share`` of the elements, by whole bins, at least one."""
        bins = int((self.counts.cumsum(0) <= share * self.elements).sum())
        kept = slice(0, max(bins, 1))
        return Magnitudes(self.counts[kept], self.lower[kept], self.upper[kept])


def _integral(x: Tensor, step: Tensor | float) -> Tensor:
    """Integral from 0 to x of the squared error of rounding to multiples of ``step``.

    Every full step contributes step^3 / 12; the rest is a cubic in the distance to the nearest multiple.
    """
    steps = torch.round(x / step)
    return steps * step**3 / 12 + (x - steps * step) ** 3 / 3


def rounding_error(lower: Tensor, upper: Tensor, step: Tensor | float) -> Tensor:
    """Mean squared error of rounding to multiples of ``step``, of values spread evenly from lower to upper.

    Close to step^2 / 12 for magnitudes above step / 2 and exactly x^2 below: the two cases of the usual
    approximation, joined exactly. Zero-width steps are no quantization: error 0.

    >>> lower = torch.tensor([1000.0, 0.1], dtype=torch.float64)
    >>> rounding_error(lower, lower * 1.008, 1.0).numpy().round(4)
    array([0.0833, 0.0101])
    """
    # The integral of x^2 loses digits by cancellation when x is far below the step: use its mean directly.
    below = (lower**2 + lower * upper + upper**2) / 3
    inside = (_integral(upper, step) - _integral(lower, step)) / (upper - lower)
    return torch.where(upper <= torch.as_tensor(step) / 2, below, inside)


def uniform_noise(magnitudes: Magnitudes, step: float) -> float:
    """Mean squared error per element of rounding to multiples of ``step``, nothing being clipped."""
    if step <= 0:
        return 0.0
    errors = rounding_error(magnitudes.lower, magnitudes.upper, step)
    return float((magnitudes.counts * errors).sum()) / magnitudes.elements


def per_token_noise(magnitudes: Magnitudes, ranges: Magnitudes, levels: int = INT8_LEVELS) -> float:
    """Mean squared error per element when every token is quantized with a step of its own.

    Args:
        magnitudes: of the elements.
        ranges: of the tokens' absmax; step = absmax / levels.
        levels: steps on each side of zero.

    A token's range and its elements are taken as independent (only their two histograms are kept), except
    that no element is larger than its token's range.
    """
    counts, lower, upper = magnitudes.counts, magnitudes.lower, magnitudes.upper
    before = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # [n + 1] elements below each bin
    lost = counts * (lower**2 + lower * upper + upper**2) / 3  # [n] energy of each bin
    lost_before = torch.cat([counts.new_zeros(1), lost.cumsum(0)])
    total, tokens = 0.0, 0.0
    for top, number in _grouped(ranges):
        step = top / levels
        end = int(torch.searchsorted(lower, top, right=True))
        # Far below the step everything is lost, far above it the error is step^2 / 12: only between is work.
        small = min(int(torch.searchsorted(upper, step / 2, right=True)), end)
        large = min(int(torch.searchsorted(lower, 8 * step)), end)
        between = slice(small, max(small, large))
        error = float(lost_before[small])
        error += float((counts[between] * rounding_error(lower[between], upper[between], step)).sum())
        error += float(before[end] - before[between.stop]) * step**2 / 12
        if end:
            total += number * error / float(before[end])
        tokens += number
    return total / tokens if tokens else 0.0


def _grouped(ranges: Magnitudes) -> list[tuple[float, float]]:
    """Ranges within 4 % of each other taken together: (root mean square of the range, tokens)."""
    middle = ranges.middle.clamp(min=1e-300)
    group = torch.floor(torch.log2(middle) * 16)
    keys, index = torch.unique(group, return_inverse=True)
    counts = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, index, ranges.counts)
    squares = torch.zeros(len(keys), dtype=torch.float64).index_add_(
        0, index, ranges.counts * ranges.middle**2
    )
    return list(zip((squares / counts).sqrt().tolist(), counts.tolist(), strict=True))


def per_channel_noise(absmax: Tensor, mean_square: Tensor, levels: int = INT8_LEVELS) -> float:
    """Mean squared error per element when every channel has a step of its own.

    Args:
        absmax: [d] largest magnitude of each channel.
        mean_square: [d] mean of x^2 of each channel.
        levels: steps on each side of zero.

    Per channel the smaller of step^2 / 12 and the channel's own energy: no histogram per channel is kept.
    """
    step = absmax.double() / levels
    return float(torch.minimum(step**2 / 12, mean_square.double()).mean())


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format.

    Attributes:
        name: as in findings.
        mantissa_bits: stored bits of the fraction.
        least_exponent: exponent of the smallest normal number; below it the step no longer shrinks.
        largest: largest finite number.
    """

    name: str
    mantissa_bits: int
    least_exponent: int
    largest: float


FLOAT16 = FloatFormat("float16", 10, -14, 65504.0)
BFLOAT16 = FloatFormat("bfloat16", 7, -126, (2 - 2**-7) * 2.0**127)
FP8_E4M3 = FloatFormat("fp8_e4m3", 3, -6, 448.0)
FP8_E5M2 = FloatFormat("fp8_e5m2", 2, -14, 57344.0)


def float_noise(magnitudes: Magnitudes, form: FloatFormat, scale: float = 1.0) -> float:
    """Mean squared error per element of a cast of x / scale to a float format and back.

    Relative steps are 2^-mantissa_bits of the binade; below the smallest normal number the step stays what it
    is there, so that small values underflow. Magnitudes above the largest number are clipped to it (some
    kernels give NaN instead).
    """
    lower, upper = magnitudes.lower / scale, magnitudes.upper / scale
    middle = (lower + upper) / 2
    exponent = torch.floor(torch.log2(middle.clamp(min=math.ldexp(1.0, -1022))))
    exponent = exponent.clamp(min=float(form.least_exponent))
    step = torch.exp2(exponent - form.mantissa_bits)
    errors = rounding_error(lower, upper, step)
    clipped = (middle - form.largest).clamp(min=0) ** 2
    errors = torch.where(middle > form.largest, clipped, errors)
    return float((magnitudes.counts * errors).sum()) / magnitudes.elements * scale**2


def decibel(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite without noise."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
