"""Records: which values of a batch surpass the extremes so far, where they stand, and how they are put down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlierscope.stats.compiled import compiled

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

NONE = -1
"""Sequence, position and token where a class has not been seen."""

Indices = NDArray[np.int64]


@dataclass
class Found:
    """Located values [K] of a tensor of ``dims`` dims and ``classes`` token classes, at most one for each of both."""

    classes: int
    dims: int
    token_class: Indices
    dim: Indices
    value: NDArray[np.float32]
    sequence: Indices
    position: Indices
    token: Indices


def put_records(tables: list[NDArray[Any]], found: Found) -> bool:
    """Put new extremes into the flat tables of values, sequences, positions and tokens, where they surpass them.

    Returns:
        Whether anything changed.
    """
    value, sequence, position, token = tables
    cell = found.token_class * found.dims + found.dim
    return _overwrite(
        value,
        sequence,
        position,
        token,
        cell,
        found.value,
        found.sequence,
        found.position,
        found.token,
    )


@compiled
def _overwrite(
    value: NDArray[np.float32],
    sequence: Indices,
    position: Indices,
    token: Indices,
    cell: Indices,
    new_value: NDArray[np.float32],
    new_sequence: Indices,
    new_position: Indices,
    new_token: Indices,
) -> bool:
    """Put new extremes [W] into flat tables where they surpass what is in their ``cell``.

    Of equal magnitudes the first by sequence, then position, stays.

    Returns:
        Whether anything changed.
    """
    changed = False
    for index in range(len(cell)):
        at = cell[index]
        old, new = abs(value[at]), abs(new_value[index])
        wins = sequence[at] == NONE or new > old
        if new == old and not wins:
            same = new_sequence[index] == sequence[at]
            wins = new_sequence[index] < sequence[at] or (same and new_position[index] < position[at])
        if wins:
            value[at], sequence[at] = new_value[index], new_sequence[index]
            position[at], token[at] = new_position[index], new_token[index]
            changed = True
    return changed


@compiled
def mark_winners(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    slot_class: Indices,
    bar: NDArray[np.float32],
    ties: bool,
    wins: NDArray[np.bool_],
) -> bool:
    """Mark in ``wins`` [S, d] the magnitudes above ``bar`` [C, d] that are the largest of their class and dim.

    Args:
        low: [S, d] smallest value of each slot.
        high: [S, d] largest.
        slot_class: [S].
        bar: the largest magnitudes so far.
        ties: whether reaching the bar is enough.
        wins: written.

    Returns:
        Whether any is marked.
    """
    best = bar.copy()
    for slot in range(len(low)):
        most = best[slot_class[slot]]
        for dim in range(low.shape[1]):
            peak = max(high[slot, dim], -low[slot, dim])
            most[dim] = peak if peak > most[dim] else most[dim]
    found = False
    for slot in range(len(low)):
        most, least = best[slot_class[slot]], bar[slot_class[slot]]
        for dim in range(low.shape[1]):
            peak = max(high[slot, dim], -low[slot, dim])
            won = peak == most[dim] and (peak > least[dim] or ties)
            wins[slot, dim] = won
            found = found or won
    return found


@compiled
def _find_places(
    values: NDArray[np.float32],
    at: Indices,
    slot_start: Indices,
    slot: Indices,
    dim: Indices,
    peak: NDArray[np.float32],
    found: Indices,
) -> None:
    """Into ``found`` [W], the first place in each ``slot`` at which the magnitude in ``dim`` is ``peak``."""
    for winner in range(len(slot)):
        for place in range(slot_start[slot[winner]], slot_start[slot[winner] + 1]):
            if abs(values[at[place], dim[winner]]) == peak[winner]:
                found[winner] = place
                break


def locate(seen: Observation, slot: Indices, dim: Indices, peak: NDArray[np.float32]) -> Found:
    """Where the magnitudes ``peak`` [W] stand in the rows of their slots; the first of each (class, dim)."""
    plan, order = seen.digest.plan, seen.digest.order
    length, dims = order.shape[1], seen.tensor.shape[2]
    # On a GPU this copies the tensor, which only batches with new records do: most of them come early.
    values, at = seen.at_hand(order.rows)
    place = np.empty_like(slot)  # [W], in order.rows
    _find_places(values, at, plan.slot_start, slot, dim, peak, place)
    row = order.rows.numpy()[place]
    # Of equal values the first by (sequence id, place) is the one.
    ids = seen.batch.sequence_ids.cpu().numpy()
    cell = plan.slot_class[slot] * dims + dim
    by_cell = np.lexsort((row % length, ids[row // length], cell))
    firsts = by_cell[np.flatnonzero(np.diff(cell[by_cell], prepend=-1))]
    cell, row, place = cell[firsts], row[firsts], place[firsts]
    dim = cell % dims
    return Found(
        len(seen.batch.class_names),
        dims,
        cell // dims,
        dim,
        values[at[place], dim],
        ids[row // length],
        order.positions.numpy().reshape(-1)[row],
        seen.batch.token_ids.cpu().numpy().reshape(-1)[row],
    )
