"""Reading a tensor on the CPU in one pass; PyTorch would need fourteen, each limited by the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from outlierscope.stats.compiled import compiled, compiled_for_numbers
from outlierscope.stats.reading_plan import Tables
from outlierscope.stats.threads import share_out

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading_plan import Plan


TILE = 512
"""Dims that are worked on together: their sums and extremes stay in the first level cache."""

FLUSH_ROWS = 64
"""Rows that are summed in float32 before their sums are added to the float64 ones."""


@compiled_for_numbers
def _largest(row: NDArray[np.float32]) -> np.float32:
    """Largest magnitude of a row [w]."""
    largest = np.float32(0)
    for j in range(len(row)):
        magnitude = abs(row[j])
        largest = magnitude if magnitude > largest else largest
    return largest


@compiled
def _read_part(
    flat: NDArray[np.float32],
    rows: NDArray[np.int64],
    slot_start: NDArray[np.int64],
    shift: NDArray[np.float32],
    powers: NDArray[np.float64],
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
    token_absmax: NDArray[np.float32],
) -> None:
    """The rows of one part, slot by slot, four at a time: sums and extremes are then loaded and stored less often.

    Args:
        flat: [B * T, d].
        rows: indices into it.
        slot_start: [s + 1] where in ``rows`` the part's slots begin, and the end.
        shift: [d].
        powers: [4, d], zeros; added to.
        slot_low: [s, d], written.
        slot_high: [s, d], written.
        token_absmax: [N] of all rows, zeros; written at the places of the part's rows.
    """
    dims = flat.shape[1]
    low, high = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    # Arrays of their own: the compiler must see that they do not overlap, or it works number by number.
    first, second = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    third, fourth = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for left in range(0, dims, TILE):
        right = min(dims, left + TILE)
        width = right - left
        centre = shift[left:right]
        for slot in range(len(slot_start) - 1):
            at, stop = slot_start[slot], slot_start[slot + 1]
            low[:width] = flat[rows[at], left:right]
            high[:width] = low[:width]
            while at < stop:
                end = min(stop, at + FLUSH_ROWS)
                first[:width] = 0
                second[:width] = 0
                third[:width] = 0
                fourth[:width] = 0
                while at < end:
                    a = flat[rows[at], left:right]
                    if at + 4 <= end:
                        b = flat[rows[at + 1], left:right]
                        c = flat[rows[at + 2], left:right]
                        d = flat[rows[at + 3], left:right]
                        for j in range(width):
                            least_ab = a[j] if a[j] < b[j] else b[j]
                            least_cd = c[j] if c[j] < d[j] else d[j]
                            least = least_ab if least_ab < least_cd else least_cd
                            low[j] = least if least < low[j] else low[j]
                            most_ab = a[j] if a[j] > b[j] else b[j]
                            most_cd = c[j] if c[j] > d[j] else d[j]
                            most = most_ab if most_ab > most_cd else most_cd
                            high[j] = most if most > high[j] else high[j]
                        for j in range(width):
                            middle = centre[j]
                            p, q, r, s = a[j] - middle, b[j] - middle, c[j] - middle, d[j] - middle
                            p2, q2, r2, s2 = p * p, q * q, r * r, s * s
                            first[j] += (p + q) + (r + s)
                            second[j] += (p2 + q2) + (r2 + s2)
                            third[j] += (p2 * p + q2 * q) + (r2 * r + s2 * s)
                            fourth[j] += (p2 * p2 + q2 * q2) + (r2 * r2 + s2 * s2)
                        for row in range(at, at + 4):
                            largest = _largest(flat[rows[row], left:right])
                            token_absmax[row] = max(token_absmax[row], largest)
                        at += 4
                    else:
                        for j in range(width):
                            low[j] = a[j] if a[j] < low[j] else low[j]
                            high[j] = a[j] if a[j] > high[j] else high[j]
                            p = a[j] - centre[j]
                            p2 = p * p
                            first[j] += p
                            second[j] += p2
                            third[j] += p2 * p
                            fourth[j] += p2 * p2
                        token_absmax[at] = max(token_absmax[at], _largest(a))
                        at += 1
                for j in range(width):
                    powers[0, left + j] += first[j]
                    powers[1, left + j] += second[j]
                    powers[2, left + j] += third[j]
                    powers[3, left + j] += fourth[j]
            slot_low[slot, left:right] = low[:width]
            slot_high[slot, left:right] = high[:width]


def read_on_cpu(flat: Tensor, order: TokenOrder, plan: Plan, shift: Tensor) -> Tables:
    """Read the rows of ``order`` from ``flat`` [B * T, d], parts side by side; float32 whatever its dtype.

    The result does not depend on the number of threads.
    """
    dims, slots = flat.shape[1], len(plan.slot_class)
    flat = flat.float().contiguous()
    tables = Tables(
        powers=np.zeros((4, len(plan.owners), dims)),
        slot_low=torch.empty(slots, dims),
        slot_high=torch.empty(slots, dims),
        token_absmax=torch.zeros(len(order.rows)),
    )
    values, rows, centre = flat.numpy(), order.rows.numpy(), shift.numpy()
    low, high = tables.slot_low.numpy(), tables.slot_high.numpy()
    largest = tables.token_absmax.numpy()

    def read(part: int) -> None:
        first, last = plan.part_slot[part : part + 2]
        starts = plan.slot_start[first : last + 1]
        _read_part(
            values,
            rows,
            starts,
            centre,
            tables.powers[:, part],
            low[first:last],
            high[first:last],
            largest,
        )

    share_out(read, len(plan.owners))
    return tables
