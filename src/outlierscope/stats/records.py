"""Records: which values of a batch surpass the extremes so far, where they stand, and how they are put down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from outlierscope.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Values = NDArray[np.float32]

NONE = -1
"""Sequence, position and token where a class has not been seen."""


@compiled
def _comes_first(
    magnitude: float,
    sequence: int,
    position: int,
    value: float,
    old_sequence: int,
    old_position: int,
) -> bool:
    """Whether a value surpasses a record: by magnitude, then the smaller sequence, then the smaller position."""
    if old_sequence == NONE or magnitude != abs(value):
        return old_sequence == NONE or magnitude > abs(value)
    return sequence < old_sequence or (sequence == old_sequence and position < old_position)


@compiled
def raise_bar(low: Values, high: Values, slot_class: Indices, bar: Values, ties: bool, best: Values) -> bool:
    """Into ``best`` [C, d], the larger of ``bar`` [C, d] and the magnitudes of a batch.

    Args:
        low: [S, d] smallest value of each slot.
        high: [S, d] largest.
        slot_class: [S].
        bar: the largest magnitudes so far; below zero where there are none.
        ties: whether reaching the bar is enough to surpass it.
        best: written.

    Returns:
        Whether any magnitude surpasses the bar.
    """
    best[:] = bar
    for slot in range(len(low)):
        most = best[slot_class[slot]]
        for dim in range(low.shape[1]):
            peak = max(high[slot, dim], -low[slot, dim])
            most[dim] = peak if peak > most[dim] else most[dim]
    surpassed = False
    for token_class in range(len(best)):
        for dim in range(best.shape[1]):
            surpassed = surpassed or best[token_class, dim] > bar[token_class, dim]
    if ties and not surpassed:
        for slot in range(len(low)):
            for dim in range(low.shape[1]):
                peak = max(high[slot, dim], -low[slot, dim])
                surpassed = surpassed or peak == bar[slot_class[slot], dim]
    return surpassed


@compiled
def put_best(
    values: Values,
    at: Indices,
    rows: Indices,
    low: Values,
    high: Values,
    slot_class: Indices,
    slot_start: Indices,
    bar: Values,
    ties: bool,
    best: Values,
    ids: Indices,
    positions: Indices,
    token_ids: Indices,
    value: Values,
    sequence: Indices,
    position: Indices,
    token: Indices,
) -> None:
    """Put the values of a batch that surpass the bar into the records [C, d].

    Args:
        values: [*, d], among them the rows of the batch.
        at: [N] where in ``values`` each is.
        rows: [N] its place in the batch [B * T].
        low: as ``raise_bar`` took it, like ``high``, ``slot_class``, ``bar`` and ``ties``.
        slot_start: [S + 1] where in ``rows`` each slot begins, and the end.
        best: [C, d] what ``raise_bar`` wrote.
        ids: [B] sequence ids.
        positions: [B, T].
        token_ids: [B, T].
        value: records, written, like ``sequence``, ``position`` and ``token``.
    """
    length = positions.shape[1]
    for kind in range(best.shape[0]):
        slots = np.flatnonzero(slot_class == kind)
        for dim in range(best.shape[1]):
            peak = best[kind, dim]
            if not (peak > bar[kind, dim] or ties):
                continue
            for slot in slots:
                if max(high[slot, dim], -low[slot, dim]) != peak:
                    continue
                place = slot_start[slot]
                while place < slot_start[slot + 1] - 1 and abs(values[at[place], dim]) != peak:
                    place += 1
                b, t = rows[place] // length, rows[place] % length
                number, where = ids[b], positions[b, t]
                if _comes_first(
                    peak, number, where, value[kind, dim], sequence[kind, dim], position[kind, dim]
                ):
                    value[kind, dim], sequence[kind, dim] = values[at[place], dim], number
                    position[kind, dim], token[kind, dim] = where, token_ids[b, t]


@compiled
def put_others(
    new_value: Values,
    new_sequence: Indices,
    new_position: Indices,
    new_token: Indices,
    value: Values,
    sequence: Indices,
    position: Indices,
    token: Indices,
) -> None:
    """Put records [C, d] into others, where they surpass them."""
    for kind in range(len(value)):
        for dim in range(value.shape[1]):
            number, where = new_sequence[kind, dim], new_position[kind, dim]
            if number != NONE and _comes_first(
                abs(new_value[kind, dim]),
                number,
                where,
                value[kind, dim],
                sequence[kind, dim],
                position[kind, dim],
            ):
                value[kind, dim], sequence[kind, dim] = new_value[kind, dim], number
                position[kind, dim], token[kind, dim] = where, new_token[kind, dim]
