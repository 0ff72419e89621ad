"""Reading: the one pass over a tensor that a ``Digest`` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from outlierscope.stats.compiled import compiled
from outlierscope.stats.reading_cpu import read_on_cpu
from outlierscope.stats.reading_plan import plan_reading
from outlierscope.stats.reading_torch import read_with_torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading_plan import Plan

SHIFT_ROWS = 64
"""Rows looked at for the shift of the power sums, which is the mean of half of them. The mean of any k of n
rows is within sqrt(n / k - 1) standard deviations of that of all, so that little is lost by cancellation."""


@dataclass
class Reading:
    """Tables of one pass, on the CPU.

    Attributes:
        plan: how the batch was cut.
        shift: [d] around which the powers were taken.
        powers: [4, B, d] float64 sums of the first to fourth powers of (x - shift) by sequence.
        slot_low: [S, d] float32, smallest value of each slot.
        slot_high: [S, d] float32, largest value.
        token_absmax: [N] float32, largest magnitude of each token, in the order of ``TokenOrder.rows``; anything
            where a token holds NaN.
    """

    plan: Plan
    shift: Tensor
    powers: NDArray[np.float64]
    slot_low: Tensor
    slot_high: Tensor
    token_absmax: Tensor


def read(flat: Tensor, order: TokenOrder) -> Reading:
    """Read the rows of ``order`` from a tensor [B * T, d] once.

    Arithmetic is float32 around the shift (float64 for float64 tensors), sums over many tokens are float64.
    """
    plan = plan_reading(order)
    work = torch.float64 if flat.dtype == torch.float64 else torch.float32
    sample = flat.index_select(0, order.spaced(SHIFT_ROWS).to(flat.device)).to(work).cpu()
    shift = sample.new_empty(flat.shape[1])
    _shift(sample.numpy(), shift.numpy())
    on_cpu = flat.device.type == "cpu" and work == torch.float32
    tables = (read_on_cpu if on_cpu else read_with_torch)(flat, order, plan, shift.to(flat.device))
    powers = tables.powers  # [4, P, d]
    if plan.owners != list(range(len(order.counts))):
        powers = np.zeros((4, len(order.counts), flat.shape[1]))
        with np.errstate(invalid="ignore"):  # infinities of both signs; such sequences are read again
            for part, sequence in enumerate(plan.owners):
                powers[:, sequence] += tables.powers[:, part]
    return Reading(
        plan,
        shift,
        powers,
        tables.slot_low,
        tables.slot_high,
        tables.token_absmax,
    )


@compiled
def _shift(sample: NDArray[Any], shift: NDArray[Any]) -> None:
    """Into ``shift`` [d], the mean of the half of the sampled rows [k, d] with the smaller largest values.

    The other half may hold outliers beside which everything else would lose its digits.
    """
    size = np.zeros(len(sample), sample.dtype)
    for row in range(len(sample)):
        for value in sample[row]:
            size[row] = max(size[row], abs(value))
    half = (len(sample) + 1) // 2
    shift[:] = 0
    for row in np.argsort(size, kind="mergesort")[:half]:
        shift += sample[row]
    if half:
        shift /= half
