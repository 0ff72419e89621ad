"""Reading: the one pass over a tensor, in blocks that stay in cache, that a ``Digest`` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outlierscope.stats.workspace import workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.token_order import TokenOrder

BLOCK_ELEMENTS = 800_000
"""Elements of one block: its two float32 buffers stay in the last level cache, and the cost of a call from
Python is small beside its work."""

SHIFT_ROWS = 64
"""Rows looked at for the shift of the power sums, which is the mean of half of them. The mean of any k of n
rows is within sqrt(n / k - 1) standard deviations of that of all, so that little is lost by cancellation."""

FEW = 16
"""Runs of fewer rows than this are not reduced one by one, but with their like in the whole batch."""


@dataclass(frozen=True)
class Block:
    """Rows that are read together; all ranges are places in ``TokenOrder.rows``.

    Attributes:
        start: first.
        stop: one past the last.
        first: number of the first of its parts, which are sequences or cut from one.
        lengths: rows of each part.
        runs: rows of each class run in it, and its slot; -1 where it is short and was gathered elsewhere.
    """

    start: int
    stop: int
    first: int
    lengths: list[int]
    runs: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch is cut for tensors of some width; a *slot* is rows of one class that are reduced together.

    Attributes:
        blocks: in the order of reading.
        owners: the sequence (row of the batch) of each part.
        slot_class: [S] token class of each slot, ascending.
        slot_rows: int64, rows of all slots.
        slot_start: [S] where each slot begins in ``slot_rows``.
        slot_length: [S] and how many rows it has.
        scattered: (slot, rows) of the slots whose rows are gathered from short runs.
    """

    blocks: list[Block]
    owners: list[int]
    slot_class: NDArray[np.int64]
    slot_rows: Tensor
    slot_start: NDArray[np.int64]
    slot_length: NDArray[np.int64]
    scattered: list[tuple[int, Tensor]]


@lru_cache(maxsize=16)
def plan_reading(order: TokenOrder, dims: int) -> Plan:
    """Cut a batch into blocks for a tensor of ``dims`` dims; computed once for all sites of that width."""
    size = max(1, BLOCK_ELEMENTS // max(1, dims))
    parts: list[tuple[int, int, int]] = []  # (sequence, start, stop)
    for sequence, count in enumerate(order.counts):
        pieces = -(-count // size)
        cuts = [order.bounds[sequence] + count * piece // max(pieces, 1) for piece in range(pieces + 1)]
        parts += [(sequence, first, last) for first, last in pairwise(cuts)]

    groups: list[list[int]] = []  # numbers of the parts of each block
    for number, (_, _, stop) in enumerate(parts):
        if groups and stop - parts[groups[-1][0]][1] <= size:
            groups[-1].append(number)
        else:
            groups.append([number])

    cut_runs = _runs_of_parts(order, [(start, stop) for _, start, stop in parts])
    long = sorted(run for run in cut_runs if run[2] - run[1] >= FEW)  # by class, then place
    short: dict[int, list[Tensor]] = {}
    for token_class, start, stop in cut_runs:
        if stop - start < FEW:
            short.setdefault(token_class, []).append(order.rows[start:stop])
    slots: list[tuple[int, Tensor, int]] = (
        [  # class, rows, first place of a long run (else -1)
            (token_class, order.rows[start:stop], start) for token_class, start, stop in long
        ]
        + [(token_class, torch.cat(rows), -1) for token_class, rows in short.items()]
    )
    slots.sort(key=lambda slot: (slot[0], slot[2]))
    lengths = np.array([len(rows) for _, rows, _ in slots], dtype=np.int64)
    slot_class = [token_class for token_class, _, _ in slots]
    slot_of = {start: slot for slot, (_, _, start) in enumerate(slots) if start >= 0}
    return Plan(
        blocks=[
            Block(
                start := parts[group[0]][1],
                stop := parts[group[-1]][2],
                group[0],
                [parts[number][2] - parts[number][1] for number in group],
                [
                    (last - first, slot_of.get(first, -1))
                    for _, first, last in cut_runs
                    if start <= first < stop
                ],
            )
            for group in groups
        ],
        owners=[sequence for sequence, _, _ in parts],
        slot_class=np.array(slot_class, dtype=np.int64),
        slot_rows=torch.cat([rows for _, rows, _ in slots]) if slots else order.rows,
        slot_start=lengths.cumsum() - lengths,
        slot_length=lengths,
        scattered=[(slot, rows) for slot, (_, rows, start) in enumerate(slots) if start < 0],
    )


def _runs_of_parts(order: TokenOrder, parts: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(class, start, stop) of the class runs, cut where parts begin."""
    found = []
    runs = iter(order.runs)
    run = next(runs, None)
    for start, stop in parts:
        while run is not None and run.start < stop:
            found.append((run.token_class, max(run.start, start), min(run.stop, stop)))
            if run.stop > stop:
                break
            run = next(runs, None)
    return found


@dataclass
class Reading:
    """Tables of one pass; on the tensor's device, in float32 (float64 for float64 tensors).

    Attributes:
        plan: how the batch was cut.
        shift: [d] around which the powers were taken.
        powers: [4, P, d] sums of the first to fourth powers of (x - shift) by part.
        slot_low: [S, d] smallest value of each slot.
        slot_high: [S, d] largest value.
        token_low: [N] smallest value of each token, in the order of ``TokenOrder.rows``.
        token_high: [N] largest value.
    """

    plan: Plan
    shift: Tensor
    powers: Tensor
    slot_low: Tensor
    slot_high: Tensor
    token_low: Tensor
    token_high: Tensor


def read(flat: Tensor, order: TokenOrder) -> Reading:
    """Read the rows of ``order`` from a tensor [B * T, d] once."""
    dims, device = flat.shape[1], flat.device
    work = torch.float64 if flat.dtype == torch.float64 else torch.float32
    plan, rows = plan_reading(order, dims), order.on(device)

    def table(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=work, device=device)

    slots = len(plan.slot_class)
    result = Reading(
        plan,
        _shift(flat.index_select(0, order.spaced(SHIFT_ROWS).to(device)).to(work)),
        table(4, len(plan.owners), dims),
        table(slots, dims),
        table(slots, dims),
        table(len(rows)),
        table(len(rows)),
    )
    lows, highs = result.slot_low.unbind(0), result.slot_high.unbind(0)
    for slot, scattered in plan.scattered:
        few = flat.index_select(0, scattered.to(device)).to(work)
        torch.amin(few, 0, out=lows[slot])
        torch.amax(few, 0, out=highs[slot])
    largest = max((block.stop - block.start for block in plan.blocks), default=0)
    buffers = workspace(2 * largest * dims, work, device).view(2, largest, dims)
    for block in plan.blocks:
        start, stop = block.start, block.stop
        x, y = buffers[0, : stop - start], buffers[1, : stop - start]
        if flat.dtype == work:
            torch.index_select(flat, 0, rows[start:stop], out=x)
        else:
            x.copy_(flat.index_select(0, rows[start:stop]))
        torch.amin(x, 1, out=result.token_low[start:stop])
        torch.amax(x, 1, out=result.token_high[start:stop])
        pieces = torch.split(x, [rows for rows, _ in block.runs])
        for run, (_, slot) in zip(pieces, block.runs, strict=True):
            if slot >= 0:
                torch.amin(run, 0, out=lows[slot])
                torch.amax(run, 0, out=highs[slot])
        x.sub_(result.shift)
        torch.mul(x, x, out=y)
        _add_parts(x, block, result.powers[0])
        _add_parts(y, block, result.powers[1])
        x.mul_(y)
        y.mul_(y)
        _add_parts(x, block, result.powers[2])
        _add_parts(y, block, result.powers[3])
    return result


def _add_parts(values: Tensor, block: Block, table: Tensor) -> None:
    """Sum the rows [R, d] of each part of a block into its row of ``table`` [P, d]."""
    parts = len(block.lengths)
    if len(set(block.lengths)) == 1:
        target = table[block.first : block.first + parts]
        torch.sum(values.view(parts, block.lengths[0], values.shape[1]), 1, out=target)
        return
    for number, part in enumerate(torch.split(values, block.lengths), start=block.first):
        torch.sum(part, 0, out=table[number])


def _shift(sample: Tensor) -> Tensor:
    """[d] mean of the half of the sampled rows [k, d] with the smaller largest values.

    The other half may hold outliers beside which everything else would lose its digits.
    """
    if not len(sample):
        return sample.sum(0)
    size = torch.maximum(sample.amax(1), -sample.amin(1))
    return sample.index_select(0, size.argsort()[: (len(sample) + 1) // 2]).mean(0)
