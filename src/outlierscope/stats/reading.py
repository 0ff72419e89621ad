"""Reading: the one pass over a tensor that a ``Digest`` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from outlierscope.stats.compiled import compiled
from outlierscope.stats.fused import read_by_parts
from outlierscope.stats.segments import read_by_segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.token_order import TokenOrder

PARTS = 4
"""Fewer sequences than this are cut into parts, so that a single one keeps several cores busy."""

SHIFT_ROWS = 64
"""Rows looked at for the shift of the power sums, which is the mean of half of them. The mean of any k of n
rows is within sqrt(n / k - 1) standard deviations of that of all, so that little is lost by cancellation."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch is cut; all places are places in ``TokenOrder.rows``.

    A *part* is a sequence or a piece of one; a *slot* is the tokens of one class in a part.

    Attributes:
        owners: [P] the sequence (row of the batch) of each part, ascending.
        part_start: [P + 1] where each part begins, and the end.
        part_slot: [P + 1] the first slot of each part, and the number of slots.
        slot_class: [S] token class of each slot.
        slot_start: [S + 1] where each slot begins, and the end.
    """

    owners: list[int]
    part_start: NDArray[np.int64]
    part_slot: NDArray[np.int64]
    slot_class: NDArray[np.int64]
    slot_start: NDArray[np.int64]

    @property
    def slot_length(self) -> NDArray[np.int64]:
        """[S] tokens of each slot."""
        return np.diff(self.slot_start)


@lru_cache(maxsize=16)
def plan_reading(order: TokenOrder) -> Plan:
    """Cut a batch; computed once for all of its sites."""
    owners, part_start = [], [0]
    for sequence, count in enumerate(order.counts):
        pieces = min(count, -(-PARTS // len(order.counts)))
        owners += [sequence] * pieces
        part_start += [order.bounds[sequence] + count * piece // pieces for piece in range(1, pieces + 1)]
    run_start = np.array([run.start for run in order.runs], dtype=np.int64)
    run_class = np.array([run.token_class for run in order.runs], dtype=np.int64)
    slot_start = np.union1d(run_start, np.array(part_start, dtype=np.int64))  # with the end
    of_run = run_start.searchsorted(slot_start[:-1], side="right") - 1
    return Plan(
        owners=owners,
        part_start=np.array(part_start, dtype=np.int64),
        part_slot=slot_start.searchsorted(part_start).astype(np.int64),
        slot_class=run_class[of_run],
        slot_start=slot_start.astype(np.int64),
    )


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
    tables = (read_by_parts if on_cpu else read_by_segments)(flat, order, plan, shift.to(flat.device))
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
