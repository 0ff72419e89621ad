"""Reading: the one pass over a tensor that a ``Digest`` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlierscope.stats.compiled import compiled
from outlierscope.stats.reading_cpu import largest_bits, read_on_cpu
from outlierscope.stats.reading_plan import plan_reading
from outlierscope.stats.reading_torch import read_with_torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

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
        shift: [d] float32 or float64, around which the powers were taken.
        powers: [4, B, d] float64 sums of the first to fourth powers of (x - shift) by sequence.
        slot_low: [S, d] float32, smallest value of each slot.
        slot_high: [S, d] float32, largest value.
        token_absmax: [N] float32, largest magnitude of each token, in the order of ``TokenOrder.rows``; anything
            where a token holds NaN.
    """

    plan: Plan
    shift: NDArray[Any]
    powers: NDArray[np.float64]
    slot_low: NDArray[np.float32]
    slot_high: NDArray[np.float32]
    token_absmax: NDArray[np.float32]


def read(flat: Tensor, order: TokenOrder) -> Reading:
    """Read the rows of ``order`` from a tensor [B * T, d] once.

    Arithmetic is float32 around the shift (float64 for float64 tensors), sums over many tokens are float64.
    """
    plan = plan_reading(order)
    spaced = order.spaced(SHIFT_ROWS)
    shift: NDArray[Any]
    if flat.device.type == "cpu" and flat.dtype != torch.float64:
        values = flat.float().contiguous().numpy()
        shift = np.empty(flat.shape[1], dtype=np.float32)
        _shift(values, values.view(np.int32), spaced, shift)
        tables = read_on_cpu(values, order, plan, shift)
    else:
        work = torch.float64 if flat.dtype == torch.float64 else torch.float32
        sample = flat.index_select(0, torch.from_numpy(spaced).to(flat.device)).to(work).cpu().numpy()
        shift = np.empty(flat.shape[1], dtype=sample.dtype)
        with np.errstate(over="ignore"):  # the largest of float64 are infinite, which orders them well enough
            bits = sample.astype(np.float32).view(np.int32)
        _shift(sample, bits, np.arange(len(sample)), shift)
        tables = read_with_torch(flat, order, plan, torch.from_numpy(shift).to(flat.device))
    powers = tables.powers  # [4, P, d]
    if len(plan.owners) != len(order.counts) or not all(order.counts):
        powers = np.zeros((4, len(order.counts), flat.shape[1]))
        with np.errstate(invalid="ignore"):  # infinities of both signs; such sequences are read again
            for part, sequence in enumerate(plan.owners):
                powers[:, sequence] += tables.powers[:, part]
    return Reading(plan, shift, powers, tables.slot_low, tables.slot_high, tables.token_absmax)


@compiled
def _shift(
    values: NDArray[Any], bits: NDArray[np.int32], rows: NDArray[np.int64], shift: NDArray[Any]
) -> None:
    """Into ``shift`` [d], the mean of the half of the ``rows`` [k] of values [*, d] with the smaller largest values.

    The other half may hold outliers beside which everything else would lose its digits. ``bits`` are those of the
    values as float32.
    """
    size = np.empty(len(rows), np.int32)
    for index in range(len(rows)):
        size[index] = largest_bits(bits[rows[index]])
    half = (len(rows) + 1) // 2
    shift[:] = 0
    for index in np.argsort(size, kind="mergesort")[:half]:
        shift += values[rows[index]]
    if half:
        shift /= half
