"""Exact order statistics of magnitudes by one counting pass; a sort or ``kthvalue`` costs many times as much."""

from __future__ import annotations

import torch
from torch import Tensor

from outlierscope.stats.histogram import BINS, magnitude_bins


def select_ranks(magnitudes: Tensor, ranks: tuple[int, ...]) -> list[float]:
    """The ``rank``-th smallest, from 1, of float32 magnitudes [n] >= 0, for each rank.

    >>> select_ranks(torch.tensor([4.0, 1.0, 3.0, 2.0]), (1, 3))
    [1.0, 3.0]
    """
    bins = magnitude_bins(magnitudes)
    cumulative = torch.bincount(bins, minlength=BINS).cumsum(0)
    found = []
    for rank in ranks:
        place = int(torch.searchsorted(cumulative, torch.tensor(rank, device=cumulative.device)))
        before = int(cumulative[place - 1]) if place else 0
        inside = magnitudes[bins == place].sort().values
        found.append(float(inside[rank - before - 1]))
    return found
