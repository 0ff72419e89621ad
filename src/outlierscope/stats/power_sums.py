"""Central power sums and how they combine: Chan, Golub & LeVeque 1979; Pebay 2008 (SAND2008-6212), eq. 2.1 to 2.6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class PowerSums:
    """Count, mean and sums of powers of deviations from the mean; tensors of one shape.

    Attributes:
        count: how many values; broadcasts against the others.
        mean: float64.
        m2: sum of (x - mean)^2, float64.
        m3: sum of (x - mean)^3, float64.
        m4: sum of (x - mean)^4, float64.
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
            torch.tensor(n), mean, square.sum(0), (square * deviation).sum(0), (square * square).sum(0)
        )

    def assign(self, index: Any, other: PowerSums) -> None:  # noqa: ANN401
        """Overwrite the entries at ``index``; the count stays."""
        self.mean[index] = other.mean
        self.m2[index] = other.m2
        self.m3[index] = other.m3
        self.m4[index] = other.m4


def from_shifted(count: Tensor, shift: Tensor, powers: Tensor) -> PowerSums:
    """Central power sums from sums of powers of (x - shift).

    Args:
        count: [B].
        shift: [B, d] float64.
        powers: [4, B, d] float64, sums of the first to fourth powers.
    """
    n = count[:, None].double()
    s1, s2, s3, s4 = powers.unbind(0)
    delta = s1 / n.clamp(min=1)  # mean - shift
    square = delta * delta
    return PowerSums(
        count[:, None],
        shift + delta,
        (s2 - delta * s1).clamp_(min=0),
        s3 - 3 * delta * s2 + 2 * square * s1,
        (s4 - 4 * delta * s3 + 6 * square * s2 - 3 * square * delta * s1).clamp_(min=0),
    )


def over_axis(sums: PowerSums, axis: int) -> PowerSums:
    """Combine the groups along one axis (0: sequences, 1: dims) of [B, d] sums into one group each."""
    n = sums.count.double()
    total = sums.count.expand_as(sums.mean).sum(axis)
    weights = n / total.double().clamp(min=1).unsqueeze(axis)
    mean = (weights * sums.mean).sum(axis)
    delta = sums.mean - mean.unsqueeze(axis)
    n_delta = n * delta
    square = delta * delta
    m2 = (sums.m2 + n_delta * delta).sum(axis)
    m3 = (sums.m3 + 3 * delta * sums.m2 + n_delta * square).sum(axis)
    m4 = (sums.m4 + 4 * delta * sums.m3 + 6 * square * sums.m2 + n_delta * delta * square).sum(axis)
    return PowerSums(total, mean, m2, m3, m4)


def over_dims(sums: PowerSums) -> PowerSums:
    """All dims of each sequence together: [B, d] to [B]."""
    return over_axis(sums, 1)


def over_sequences(sums: PowerSums) -> PowerSums:
    """All sequences together: [B, d] to [d]."""
    return over_axis(sums, 0)


def combined(first: PowerSums, second: PowerSums) -> PowerSums:
    """Two groups together."""
    stacked = PowerSums(*(torch.stack(pair) for pair in zip(_fields(first), _fields(second), strict=True)))
    return over_axis(stacked, 0)


def _fields(sums: PowerSums) -> list[Tensor]:
    return [sums.count.expand_as(sums.mean), sums.mean, sums.m2, sums.m3, sums.m4]
