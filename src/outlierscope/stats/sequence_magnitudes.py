"""Exact figures of abs(x) over one sequence's tensor; dear."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 32768
"""One bin for each pattern of the upper 16 bits of a float32 without its sign (which are a bfloat16)."""


def magnitude_bins(values: Tensor) -> Tensor:
    """Bin of abs(value) for each float32 value: the upper 16 bits without the sign; int32, same shape.

    >>> magnitude_bins(torch.tensor([0.0, 1.0, -1.0])).tolist()
    [0, 16256, 16256]
    """
    return (values.view(torch.int32) >> 16).bitwise_and_(0x7FFF)


def count_magnitudes(values: Tensor) -> Tensor:
    """[BINS] int64 histogram of abs(x) of float32 ``values`` of any shape; on the CPU."""
    return torch.bincount(magnitude_bins(values).flatten(), minlength=BINS).cpu()


def select_ranks(values: Tensor, counts: Tensor, ranks: tuple[int, ...]) -> list[float]:
    """The ``rank``-th smallest abs(x), from 1, of float32 ``values``, for each of the ascending ranks; exact.

    >>> values = torch.tensor([4.0, -1.0, 3.0, 2.0])
    >>> select_ranks(values, count_magnitudes(values), (1, 3))
    [1.0, 3.0]

    The histogram tells in which bin a rank lies, and only what that bin holds is sorted. A sort of
    everything, or ``torch.median``, costs many times as much.
    """
    cumulative = counts.numpy().cumsum()
    bins = magnitude_bins(values).flatten().cpu().numpy()
    flat = values.flatten()
    held: dict[int, Tensor] = {}
    found = []
    for rank in ranks:
        place = int(np.searchsorted(cumulative, rank))
        if place not in held:
            inside = torch.from_numpy((bins == place).nonzero()[0])
            held[place] = flat.index_select(0, inside.to(flat.device)).abs().sort().values
        before = int(cumulative[place - 1]) if place else 0
        found.append(float(held[place][rank - before - 1]))
    return found
