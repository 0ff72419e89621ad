"""Reading a tensor by PyTorch's segment reductions: on any device, in float32 or float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading import Plan


@dataclass
class Tables:
    """What either way of reading gives, on the CPU; P parts, S slots, N tokens.

    Attributes:
        powers: [4, P, d] float64, sums of the first to fourth powers of (x - shift) by part.
        slot_low: [S, d] float32.
        slot_high: [S, d] float32.
        token_absmax: [N] float32; anything where a token holds NaN.
    """

    powers: NDArray[np.float64]
    slot_low: Tensor
    slot_high: Tensor
    token_absmax: Tensor


def read_by_segments(flat: Tensor, order: TokenOrder, plan: Plan, shift: Tensor) -> Tables:
    """Read the rows of ``order`` from ``flat`` [B * T, d]; ``shift`` [d] has the dtype of the arithmetic."""
    values = flat.index_select(0, order.on(flat.device)).to(shift.dtype)  # [N, d]
    slots = torch.from_numpy(plan.slot_length).to(flat.device)
    parts = torch.from_numpy(np.diff(plan.part_start)).to(flat.device)

    def reduced(data: Tensor, how: str, lengths: Tensor) -> Tensor:
        if not len(lengths):
            return data.new_zeros(0, data.shape[1])
        return torch.segment_reduce(data, how, lengths=lengths, axis=0, unsafe=True)

    centred = values - shift
    power = torch.ones_like(centred)
    powers = [reduced(power := power * centred, "sum", parts).double().cpu() for _ in range(4)]
    return Tables(
        powers=torch.stack(powers).numpy(),
        slot_low=reduced(values, "min", slots).float().cpu(),
        slot_high=reduced(values, "max", slots).float().cpu(),
        token_absmax=torch.maximum(values.amax(1), -values.amin(1)).float().cpu(),
    )
