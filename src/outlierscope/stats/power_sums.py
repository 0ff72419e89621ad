"""Central power sums and how they combine.

Chan, Golub & LeVeque 1979; Pebay 2008 (SAND2008-6212), equations 2.1 to 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class PowerSums:
    """Count, mean and sums of powers of deviations from the mean; float64 tensors.

    Attributes:
        count: how many values; of the shape of the others, or 0-d.
        mean: their mean.
        m2: sum of (x - mean)^2.
        m3: sum of (x - mean)^3.
        m4: sum of (x - mean)^4.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @classmethod
    def of(cls, values: Tensor) -> PowerSums:
        """Of float64 ``values`` [n, ...] over their first axis; zeros when n is 0."""
        n = len(values)
        mean = values.sum(0) / max(n, 1)
        mean = mean + (values - mean).sum(0) / max(n, 1)
        deviation = values - mean
        square = deviation * deviation
        return cls(
            torch.tensor(float(n), dtype=torch.float64),
            mean,
            square.sum(0),
            (square * deviation).sum(0),
            (square * square).sum(0),
        )

    def assign(self, index: Any, other: PowerSums) -> None:  # noqa: ANN401
        """Overwrite the entries at ``index``; the count stays."""
        self.mean[index] = other.mean
        self.m2[index] = other.m2
        self.m3[index] = other.m3
        self.m4[index] = other.m4


def from_shifted(count: Tensor, shift: Tensor, powers: Tensor) -> PowerSums:
    """Central power sums from the sums of powers of (x - shift).

    Args:
        count: values; of the shape of ``shift``, or 0-d.
        shift: any shape.
        powers: [4, *shape], sums of the first to fourth powers.
    """
    s1, s2, s3, s4 = powers.unbind(0)
    delta = s1 / count.clamp(min=1)  # mean - shift
    twice = delta * s1  # n delta^2
    square = delta * delta
    return PowerSums(
        count,
        shift + delta,
        (s2 - twice).clamp_(min=0),
        s3 - 3 * delta * s2 + 2 * delta * twice,
        (s4 - 4 * delta * s3 + 6 * square * s2 - 3 * square * twice).clamp_(min=0),
    )


def pool_shifted(counts: Tensor, shift: Tensor, powers: Tensor) -> tuple[PowerSums, Tensor]:
    """Power sums of each sequence over all its values, from sums by dim of powers of (x - shift).

    With one centre c for all dims and e = shift - c, sum (x - c)^k follows from the binomial theorem; all the
    sums over dims that it takes are one product of matrices.

    Args:
        counts: [B] float64 tokens of each sequence.
        shift: [d] float64.
        powers: [4, B, d] float64.

    Returns:
        [B] sums, and [B] the size of the terms that made m4: where m4 is far smaller, they cancelled.
    """
    dims = len(shift)
    centre = shift.mean()
    e = shift - centre  # [d]
    columns = torch.stack([torch.ones_like(e), e, e * e, e * e * e], 1)  # [d, 4]
    r = powers.reshape(-1, dims) @ columns  # [4 B, 4]: sum_d S_k e^j
    (p1, a11, a12, a13), (p2, a21, a22, _), (p3, a31, _, _), (p4, _, _, _) = (
        block.unbind(1) for block in r.view(4, -1, 4).unbind(0)
    )
    e1, e2, e3 = columns.sum(0).unbind(0)[1:]
    e4 = (columns[:, 2] ** 2).sum()
    about_centre = torch.stack(
        [
            p1 + counts * e1,
            p2 + 2 * a11 + counts * e2,
            p3 + 3 * (a21 + a12) + counts * e3,
            p4 + 4 * (a31 + a13) + 6 * a22 + counts * e4,
        ]
    )
    return from_shifted(counts * dims, centre.expand_as(counts), about_centre), p4 + counts * e4


def over_dims(sums: PowerSums) -> PowerSums:
    """All dims of [d] sums with one count together: 0-d."""
    n = sums.count
    mean = sums.mean.mean()
    mean = mean + (sums.mean - mean).mean()  # exact where all are equal
    delta = sums.mean - mean
    square = delta * delta
    return PowerSums(
        n * len(sums.mean),
        mean,
        (sums.m2 + n * square).sum(),
        (sums.m3 + 3 * delta * sums.m2 + n * delta * square).sum(),
        (sums.m4 + 4 * delta * sums.m3 + 6 * square * sums.m2 + n * square * square).sum(),
    )


def combined(first: PowerSums, second: PowerSums) -> PowerSums:
    """Two groups together; counts are 0-d."""
    a, b = float(first.count), float(second.count)
    if not a:
        return second
    if not b:
        return first
    n = a + b
    p, q = a / n, b / n
    delta = second.mean - first.mean
    square = delta * delta
    return PowerSums(
        first.count + second.count,
        first.mean + delta * q,
        first.m2 + second.m2 + square * (a * q),
        first.m3
        + second.m3
        + 3 * delta * (p * second.m2 - q * first.m2)
        + square * delta * (a * q * (p - q)),
        first.m4
        + second.m4
        + 4 * delta * (p * second.m3 - q * first.m3)
        + 6 * square * (p * p * second.m2 + q * q * first.m2)
        + square * square * (a * q * (p * p - p * q + q * q)),
    )
