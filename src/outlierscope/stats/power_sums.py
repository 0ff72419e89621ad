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


def from_shifted(count: Array, shift: Array, powers: Array) -> PowerSums:
    """Central power sums from the sums of powers of (x - shift).

    Args:
        count: [n] values.
        shift: [n].
        powers: [4, n], sums of the first to fourth powers.
    """
    central = np.empty_like(powers)
    _centre(count, shift, powers, central)
    return PowerSums(count, *central)


@compiled
def _centre(count: Array, shift: Array, powers: Array, central: Array) -> None:
    """Into ``central`` [4, n]: mean, m2, m3, m4."""
    for j in range(len(count)):
        s1, s2, s3, s4 = powers[0, j], powers[1, j], powers[2, j], powers[3, j]
        delta = s1 / max(count[j], 1.0)  # mean - shift
        twice = delta * s1  # n delta^2
        square = delta * delta
        central[0, j] = shift[j] + delta
        m2 = s2 - twice
        m4 = s4 - 4 * delta * s3 + 6 * square * s2 - 3 * square * twice
        central[1, j] = 0.0 if m2 < 0 else m2
        central[2, j] = s3 - 3 * delta * s2 + 2 * delta * twice
        central[3, j] = 0.0 if m4 < 0 else m4


def pool_shifted(counts: Array, shift: Array, powers: Array) -> tuple[PowerSums, Array]:
    """Power sums of each sequence over all its values, from sums by dim of powers of (x - shift).

    With one centre c for all dims and e = shift - c, sum (x - c)^k follows from the binomial theorem.

    Args:
        counts: [B] tokens of each sequence.
        shift: [d].
        powers: [4, B, d].

    Returns:
        [B] sums, and [B] the size of the terms that made m4: where m4 is far smaller, they cancelled.
    """
    centre = float(shift.mean())
    about_centre = np.zeros((5, len(counts)))
    _move_centre(counts, shift - centre, powers, about_centre)
    total = counts * len(shift)
    return from_shifted(total, np.full(len(counts), centre), about_centre[:4]), about_centre[4]


@compiled
def _move_centre(counts: Array, e: Array, powers: Array, result: Array) -> None:
    """Into ``result`` [5, B], sums over all dims of powers of (x - c), and the two extreme terms of the fourth."""
    for b in range(len(counts)):
        n = counts[b]
        for j in range(len(e)):
            s1, s2, s3, s4 = powers[0, b, j], powers[1, b, j], powers[2, b, j], powers[3, b, j]
            e1 = e[j]
            e2 = e1 * e1
            result[0, b] += s1 + n * e1
            result[1, b] += s2 + 2 * e1 * s1 + n * e2
            result[2, b] += s3 + 3 * e1 * s2 + 3 * e2 * s1 + n * e2 * e1
            result[3, b] += s4 + 4 * e1 * s3 + 6 * e2 * s2 + 4 * e2 * e1 * s1 + n * e2 * e2
            result[4, b] += s4 + n * e2 * e2


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
    tables = [(sums.mean, sums.m2, sums.m3, sums.m4) for sums in (first, second)]
    _combine(a, *tables[0], b, *tables[1], result)
    return PowerSums(a + b, *result)


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
