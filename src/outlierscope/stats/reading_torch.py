"""Reading a tensor by PyTorch's segment reductions: on any device, in float32 or float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from outlierscope.stats.reading_plan import Tables

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading_plan import Plan


PIECE_ROWS = 256
"""Rows that are summed in float32 before their sums are added in float64."""


def read_with_torch(flat: Tensor, order: TokenOrder, plan: Plan, shift: Tensor) -> Tables:
    """Read the rows of ``order`` from ``flat`` [B * T, d]; ``shift`` [d] has the dtype of the arithmetic."""
    values = flat.index_select(0, order.on(flat.device)).to(shift.dtype)  # [N, d]
    lengths = np.diff(plan.part_start)  # [P]
    counts = -(-lengths // PIECE_ROWS)  # pieces of each part
    first = counts.cumsum() - counts
    pieces = np.full(counts.sum(), PIECE_ROWS)
    pieces[first + counts - 1] = lengths - (counts - 1) * PIECE_ROWS

    def reduced(data: Tensor, how: str, lengths: Tensor) -> Tensor:
        if not len(lengths):
            return data.new_zeros(0, data.shape[1])
        return torch.segment_reduce(data, how, lengths=lengths.to(data.device), axis=0, unsafe=True)

    centred = values - shift
    power = torch.ones_like(centred)
    powers = np.zeros((4, len(lengths), flat.shape[1]))
    for index in range(4):
        power = power * centred
        sums = reduced(power, "sum", torch.from_numpy(pieces)).double().cpu().numpy()
        if len(lengths):
            powers[index] = np.add.reduceat(sums, first)
    slots = torch.from_numpy(plan.slot_length)
    return Tables(
        powers=powers,
        slot_low=reduced(values, "min", slots).float().cpu().numpy(),
        slot_high=reduced(values, "max", slots).float().cpu().numpy(),
        token_absmax=torch.maximum(values.amax(1), -values.amin(1)).float().cpu().numpy(),
    )
