"""Reading a tensor on the CPU in one pass; PyTorch would need fourteen, each limited by the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from outlierscope.stats.compiled import compiled
from outlierscope.stats.reading_plan import Tables
from outlierscope.stats.threads import share_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.token_order import TokenOrder
    from outlierscope.stats.reading_plan import Plan


TILE = 512
"""Dims that are worked on together: their sums and extremes stay in the first level cache."""

FLUSH_ROWS = 64
"""Rows that are summed in float32 before their sums are added to the float64 ones."""


@compiled
def largest_bits(bits: NDArray[np.int32]) -> np.int32:
    """Largest magnitude of a row [w], as the bits of a float32: these are in the order of the magnitudes.

    Of integers the compiler finds the largest several at a time, of floating-point numbers it does not.
    """
    largest = np.int32(0)
    for j in range(len(bits)):
        largest = max(largest, np.int32(bits[j] & np.int32(0x7FFFFFFF)))
    return largest


@compiled
def _read_part(
    flat: NDArray[np.float32],
    bits: NDArray[np.int32],
    rows: NDArray[np.int64],
    slot_start: NDArray[np.int64],
    shift: NDArray[np.float32],
    powers: NDArray[np.float64],
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
    token_absmax: NDArray[np.int32],
) -> None:
    """The rows of one part, slot by slot, four at a time: sums and extremes are then loaded and stored less often.

    Args:
        flat: [B * T, d].
        bits: the same memory as integers.
        rows: indices into it.
        slot_start: [s + 1] where in ``rows`` the part's slots begin, and the end.
        shift: [d].
        powers: [4, d], zeros; added to.
        slot_low: [s, d], written.
        slot_high: [s, d], written.
        token_absmax: [N] of all rows, zeros; the bits of float32 are written at the places of the part's rows.
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
                while at + 4 <= end:
                    a, b = flat[rows[at], left:right], flat[rows[at + 1], left:right]
                    c, d = flat[rows[at + 2], left:right], flat[rows[at + 3], left:right]
                    for j in range(width):
                        p, q, r, s = a[j], b[j], c[j], d[j]
                        # In this order no store depends on a comparison, which would take twice the time.
                        least, most = low[j], high[j]
                        least = p if p < least else least
                        least = q if q < least else least
                        least = r if r < least else least
                        low[j] = s if s < least else least
                        most = p if p > most else most
                        most = q if q > most else most
                        most = r if r > most else most
                        high[j] = s if s > most else most
                        middle = centre[j]
                        p, q, r, s = p - middle, q - middle, r - middle, s - middle
                        p2, q2, r2, s2 = p * p, q * q, r * r, s * s
                        first[j] += (p + q) + (r + s)
                        second[j] += (p2 + q2) + (r2 + s2)
                        third[j] += (p2 * p + q2 * q) + (r2 * r + s2 * s)
                        fourth[j] += (p2 * p2 + q2 * q2) + (r2 * r2 + s2 * s2)
                    for row in range(at, at + 4):
                        token_absmax[row] = max(token_absmax[row], largest_bits(bits[rows[row], left:right]))
                    at += 4
                while at < end:
                    a = flat[rows[at], left:right]
                    for j in range(width):
                        p, least, most = a[j], low[j], high[j]
                        low[j] = p if p < least else least
                        high[j] = p if p > most else most
                        p = p - centre[j]
                        p2 = p * p
                        first[j] += p
                        second[j] += p2
                        third[j] += p2 * p
                        fourth[j] += p2 * p2
                    token_absmax[at] = max(token_absmax[at], largest_bits(bits[rows[at], left:right]))
                    at += 1
                for j in range(width):
                    powers[0, left + j] += first[j]
                    powers[1, left + j] += second[j]
                    powers[2, left + j] += third[j]
                    powers[3, left + j] += fourth[j]
            slot_low[slot, left:right] = low[:width]
            slot_high[slot, left:right] = high[:width]


@compiled
def _read_parts(
    first: int,
    stop: int,
    step: int,
    part_slot: NDArray[np.int64],
    flat: NDArray[np.float32],
    bits: NDArray[np.int32],
    rows: NDArray[np.int64],
    slot_start: NDArray[np.int64],
    shift: NDArray[np.float32],
    powers: NDArray[np.float64],
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
    token_absmax: NDArray[np.int32],
) -> None:
    """The parts of ``range(first, stop, step)``, each written into its places in the tables of all parts."""
    for part in range(first, stop, step):
        begin, end = part_slot[part], part_slot[part + 1]
        _read_part(
            flat,
            bits,
            rows,
            slot_start[begin : end + 1],
            shift,
            powers[:, part],
            slot_low[begin:end],
            slot_high[begin:end],
            token_absmax,
        )


def read_on_cpu(
    values: NDArray[np.float32], order: TokenOrder, plan: Plan, shift: NDArray[np.float32]
) -> Tables:
    """Read the rows of ``order`` from contiguous ``values`` [B * T, d], parts side by side.

    The result does not depend on the number of threads.
    """
    dims, slots = values.shape[1], len(plan.slot_class)
    tables = Tables(
        powers=np.zeros((4, len(plan.owners), dims)),
        slot_low=np.empty((slots, dims), dtype=np.float32),
        slot_high=np.empty((slots, dims), dtype=np.float32),
        token_absmax=np.zeros(len(order.rows), dtype=np.float32),
    )
    arguments = (
        plan.part_slot,
        values,
        values.view(np.int32),
        order.row_array,
        plan.slot_start,
        shift,
        tables.powers,
        tables.slot_low,
        tables.slot_high,
        tables.token_absmax.view(np.int32),
    )
    share_out(lambda parts: _read_parts(parts.start, parts.stop, parts.step, *arguments), len(plan.owners))
    return tables
