"""How a batch is cut for reading, and the tables that either way of reading fills."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.token_order import TokenOrder

PARTS = 4
"""Fewer sequences than this are cut into parts, so that a single one keeps several threads busy."""


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


@lru_cache(maxsize=2)  # the batch at hand, and what is left of it where values are not finite
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
class Tables:
    """What either way of reading gives; P parts, S slots, N tokens.

    Attributes:
        powers: [4, P, d] float64, sums of the first to fourth powers of (x - shift) by part.
        slot_low: [S, d] float32.
        slot_high: [S, d] float32.
        token_absmax: [N] float32; anything where a token holds NaN.
    """

    powers: NDArray[np.float64]
    slot_low: NDArray[np.float32]
    slot_high: NDArray[np.float32]
    token_absmax: NDArray[np.float32]
