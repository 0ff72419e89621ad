"""Central power sums and how they combine.

Chan, Golub & LeVeque 1979; Pebay 2008 (SAND2008-6212), equations 2.1 to 2.6. In NumPy, whose calls cost a
third of PyTorch's: these arrays are small, and there are some at every site and batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlierscope.stats.compiled import compiled

Array = NDArray[np.float64]


@dataclass
class PowerSums:
    """Count, mean and sums of powers of deviations from the mean; float64 arrays of one shape.

    Attributes:
        count: how many values; of the shape of the others, or one number for all.
        mean: their mean.
        m2: sum of (x - mean)^2.
        m3: sum of (x - mean)^3.
        m4: sum of (x - mean)^4.
    """

    count: Array | float
    mean: Array
    m2: Array
    m3: Array
    m4: Array

    @classmethod
    def of(cls, values: Array) -> PowerSums:
        """Of ``values`` [n, ...] over their first axis; zeros when n is 0."""
        n = len(values)
        mean = values.sum(0) / max(n, 1)
        mean = mean + (values - mean).sum(0) / max(n, 1)
        deviation = values - mean
        square = deviation * deviation
        return cls(float(n), mean, square.sum(0), (square * deviation).sum(0), (square * square).sum(0))

    def assign(self, index: Any, other: PowerSums) -> None:
        """Overwrite the entries at ``index``; the count stays."""
        self.mean[index] = other.mean
        self.m2[index] = other.m2
        self.m3[index] = other.m3
        self.m4[index] = other.m4


def sums_from_shifted(counts: Array, shift: Array, powers: Array) -> tuple[PowerSums, PowerSums, Array]:
    """Central power sums from sums of powers of (x - shift), by sequence and dim.

    Args:
        counts: [B] tokens of each sequence.
        shift: [d].
        powers: [4, B, d], sums of the first to fourth powers.

    Returns:
        [d] sums of each dim over all sequences; [B] sums of each sequence over all dims; and [B] the size of the
        terms that made the latter's m4: where m4 is far smaller, they cancelled.
    """
    by_dim, pooled = np.zeros((4, len(shift))), np.zeros((5, len(counts)))
    _centralise(counts, shift, powers, by_dim, pooled)
    return PowerSums(float(counts.sum()), *by_dim), PowerSums(counts * len(shift), *pooled[:4]), pooled[4]


@compiled
def _centralise(counts: Array, shift: Array, powers: Array, by_dim: Array, pooled: Array) -> None:
    """Into zeros ``by_dim`` [4, d] and ``pooled`` [5, B]: mean, m2, m3, m4, and the terms of the pooled m4.

    With one centre c for all dims and e = shift - c, sum (x - c)^k follows from the binomial theorem.
    """
    centre = shift.mean()
    for b in range(len(counts)):
        n = counts[b]
        p1 = p2 = p3 = p4 = terms = 0.0
        for j in range(len(shift)):
            s1, s2, s3, s4 = powers[0, b, j], powers[1, b, j], powers[2, b, j], powers[3, b, j]
            by_dim[0, j] += s1
            by_dim[1, j] += s2
            by_dim[2, j] += s3
            by_dim[3, j] += s4
            e1 = shift[j] - centre
            e2 = e1 * e1
            p1 += s1 + n * e1
            p2 += s2 + 2 * e1 * s1 + n * e2
            p3 += s3 + 3 * e1 * s2 + 3 * e2 * s1 + n * e2 * e1
            p4 += s4 + 4 * e1 * s3 + 6 * e2 * s2 + 4 * e2 * e1 * s1 + n * e2 * e2
            terms += s4 + n * e2 * e2
        pooled[0, b], pooled[1, b], pooled[2, b], pooled[3, b] = _central(
            n * len(shift), centre, p1, p2, p3, p4
        )
        pooled[4, b] = terms
    total = counts.sum()
    for j in range(len(shift)):
        by_dim[0, j], by_dim[1, j], by_dim[2, j], by_dim[3, j] = _central(
            total, shift[j], by_dim[0, j], by_dim[1, j], by_dim[2, j], by_dim[3, j]
        )


@compiled
def _central(
    n: float, shift: float, s1: float, s2: float, s3: float, s4: float
) -> tuple[float, float, float, float]:
    """Mean, m2, m3, m4 from n values and their sums of powers of (x - shift)."""
    delta = s1 / max(n, 1.0)  # mean - shift
    twice = delta * s1  # n delta^2
    square = delta * delta
    m2 = s2 - twice
    m3 = s3 - 3 * delta * s2 + 2 * delta * twice
    m4 = s4 - 4 * delta * s3 + 6 * square * s2 - 3 * square * twice
    return shift + delta, 0.0 if m2 < 0 else m2, m3, 0.0 if m4 < 0 else m4


def over_dims(sums: PowerSums) -> PowerSums:
    """All dims of [d] sums with one count together: one number each."""
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
    """Two groups together; each has one count, and [n] sums."""
    a, b = float(first.count), float(second.count)
    if not a:
        return second
    if not b:
        return first
    result = np.empty((4, len(first.mean)))
    combine_into(result, first, second)
    return PowerSums(a + b, *result)


def combine_into(result: Array, first: PowerSums, second: PowerSums) -> None:
    """Into ``result`` [4, n], the mean, m2, m3 and m4 of two groups together; neither may be empty."""
    _combine(
        float(first.count),
        first.mean,
        first.m2,
        first.m3,
        first.m4,
        float(second.count),
        second.mean,
        second.m2,
        second.m3,
        second.m4,
        result,
    )


@compiled
def _combine(
    a: float,
    mean_a: Array,
    m2_a: Array,
    m3_a: Array,
    m4_a: Array,
    b: float,
    mean_b: Array,
    m2_b: Array,
    m3_b: Array,
    m4_b: Array,
    result: Array,
) -> None:
    """Into ``result`` [4, n]: mean, m2, m3, m4 of both."""
    n = a + b
    p, q = a / n, b / n
    for j in range(len(mean_a)):
        delta = mean_b[j] - mean_a[j]
        square = delta * delta
        result[0, j] = mean_a[j] + delta * q
        result[1, j] = m2_a[j] + m2_b[j] + square * (a * q)
        result[2, j] = (
            m3_a[j] + m3_b[j] + delta * (3 * p * m2_b[j] - 3 * q * m2_a[j] + square * (a * q * (p - q)))
        )
        result[3, j] = (
            m4_a[j]
            + m4_b[j]
            + 4 * delta * (p * m3_b[j] - q * m3_a[j])
            + square
            * (6 * p * p * m2_b[j] + 6 * q * q * m2_a[j] + square * (a * q * (p * p - p * q + q * q)))
        )
