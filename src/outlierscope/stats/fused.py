"""Reading a tensor on the CPU in one pass; PyTorch would need fourteen, each limited by the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlierscope.stats.compiled import compiled
from outlierscope.stats.segments import Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading import Plan

    Row = NDArray[np.float32]

TILE = 512
"""Dims that are worked on together: their sums and extremes stay in the first level cache."""

FLUSH_ROWS = 64
"""Rows that are summed in float32 before their sums are added to the float64 ones."""


@compiled
def _take_four(a: Row, b: Row, c: Row, d: Row, shift: Row, extremes: Row, sums: Row) -> None:
    """Four rows [w] into ``extremes`` [2, w] (low, high) and ``sums`` [4, w] of powers."""
    low, high = extremes[0], extremes[1]
    for j in range(len(shift)):
        least_ab = a[j] if a[j] < b[j] else b[j]
        least_cd = c[j] if c[j] < d[j] else d[j]
        least = least_ab if least_ab < least_cd else least_cd
        low[j] = least if least < low[j] else low[j]
        most_ab = a[j] if a[j] > b[j] else b[j]
        most_cd = c[j] if c[j] > d[j] else d[j]
        most = most_ab if most_ab > most_cd else most_cd
        high[j] = most if most > high[j] else high[j]
    first, second, third, fourth = sums[0], sums[1], sums[2], sums[3]
    for j in range(len(shift)):
        p, q, r, s = a[j] - shift[j], b[j] - shift[j], c[j] - shift[j], d[j] - shift[j]
        p2, q2, r2, s2 = p * p, q * q, r * r, s * s
        first[j] += (p + q) + (r + s)
        second[j] += (p2 + q2) + (r2 + s2)
        third[j] += (p2 * p + q2 * q) + (r2 * r + s2 * s)
        fourth[j] += (p2 * p2 + q2 * q2) + (r2 * r2 + s2 * s2)


@compiled
def _take_one(a: Row, shift: Row, extremes: Row, sums: Row) -> None:
    """One row, as ``_take_four``."""
    low, high = extremes[0], extremes[1]
    first, second, third, fourth = sums[0], sums[1], sums[2], sums[3]
    for j in range(len(shift)):
        low[j] = a[j] if a[j] < low[j] else low[j]
        high[j] = a[j] if a[j] > high[j] else high[j]
        p = a[j] - shift[j]
        p2 = p * p
        first[j] += p
        second[j] += p2
        third[j] += p2 * p
        fourth[j] += p2 * p2


@compiled
def _read_part(
    flat: NDArray[np.float32],
    rows: NDArray[np.int64],
    slot_start: NDArray[np.int64],
    shift: Row,
    powers: NDArray[np.float64],
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
) -> None:
    """The rows of one part, slot by slot.

    Args:
        flat: [B * T, d].
        rows: indices into it.
        slot_start: [s + 1] where in ``rows`` the part's slots begin, and the end.
        shift: [d].
        powers: [4, d], zeros; added to.
        slot_low: [s, d], written.
        slot_high: [s, d], written.
    """
    dims = flat.shape[1]
    sums = np.empty((4, TILE), np.float32)
    extremes = np.empty((2, TILE), np.float32)
    for left in range(0, dims, TILE):
        right = min(dims, left + TILE)
        width = right - left
        centre = shift[left:right]
        for slot in range(len(slot_start) - 1):
            at, stop = slot_start[slot], slot_start[slot + 1]
            extremes[0, :width] = flat[rows[at], left:right]
            extremes[1, :width] = flat[rows[at], left:right]
            while at < stop:
                end = min(stop, at + FLUSH_ROWS)
                sums[:] = 0
                while at + 4 <= end:
                    _take_four(
                        flat[rows[at], left:right],
                        flat[rows[at + 1], left:right],
                        flat[rows[at + 2], left:right],
                        flat[rows[at + 3], left:right],
                        centre,
                        extremes,
                        sums,
                    )
                    at += 4
                while at < end:
                    _take_one(flat[rows[at], left:right], centre, extremes, sums)
                    at += 1
                for power in range(4):
                    for j in range(width):
                        powers[power, left + j] += sums[power, j]
            slot_low[slot, left:right] = extremes[0, :width]
            slot_high[slot, left:right] = extremes[1, :width]


def read_by_parts(flat: Tensor, order: TokenOrder, plan: Plan, shift: Tensor) -> Tables:
    """Read the rows of ``order`` from ``flat`` [B * T, d], parts side by side; float32 whatever its dtype.

    The result does not depend on the number of threads.
    """
    dims, slots = flat.shape[1], len(plan.slot_class)
    flat = flat.float().contiguous()
    tables = Tables(
        powers=np.zeros((4, len(plan.owners), dims)),
        slot_low=torch.empty(slots, dims),
        slot_high=torch.empty(slots, dims),
        token_low=flat.amin(1).index_select(0, order.rows),
        token_high=flat.amax(1).index_select(0, order.rows),
    )
    values, rows, centre = flat.numpy(), order.rows.numpy(), shift.numpy()
    low, high = tables.slot_low.numpy(), tables.slot_high.numpy()

    def read(part: int) -> None:
        first, last = plan.part_slot[part : part + 2]
        starts = plan.slot_start[first : last + 1]
        _read_part(values, rows, starts, centre, tables.powers[:, part], low[first:last], high[first:last])

    share_out(read, len(plan.owners))
    return tables


def share_out(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with 0 to ``count`` - 1, on as many threads as PyTorch uses; this one does its share."""
    threads = max(1, min(torch.get_num_threads(), count))

    def run(first: int) -> None:
        for index in range(first, count, threads):
            work(index)

    others = [_pool(threads).submit(run, first) for first in range(1, threads)]
    run(0)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="outlierscope-reading")
