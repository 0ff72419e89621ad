"""Buckets of positions: exact up to 63, then powers of two, so that tables do not grow with length."""

from __future__ import annotations

import torch
from torch import Tensor

from outlierscope.stats.compiled import compiled

EXACT = 64
"""Positions below this have a bucket of their own."""

BUCKETS = EXACT + 25
"""Number of buckets; the last ends at 2^31."""


def position_bucket(positions: Tensor) -> Tensor:
    """Bucket of each position (int64 tensor, 0 <= position < 2^31).

    >>> position_bucket(torch.tensor([0, 63, 64, 127, 128, 1000])).tolist()
    [0, 63, 64, 64, 65, 67]
    """
    # frexp is exact where log2 may round up just below a power of two.
    exponent = torch.frexp(positions.clamp(min=EXACT).double()).exponent.long() - 1
    return torch.where(positions < EXACT, positions, EXACT - 6 + exponent)


def bucket_names() -> list[str]:
    """What each bucket holds.

    >>> bucket_names()[62:67]
    ['62', '63', '64-127', '128-255', '256-511']
    """
    wide = [f"{2**power}-{2 ** (power + 1) - 1}" for power in range(6, 6 + BUCKETS - EXACT)]
    return [str(position) for position in range(EXACT)] + wide


@compiled
def bucket_of(position: int) -> int:
    """``position_bucket`` of one position, for compiled loops.

    >>> [bucket_of(position) for position in (0, 63, 64, 127, 128, 1000)]
    [0, 63, 64, 64, 65, 67]
    """
    bucket = min(position, EXACT)
    while position >= 2 * EXACT:
        position >>= 1
        bucket += 1
    return bucket
