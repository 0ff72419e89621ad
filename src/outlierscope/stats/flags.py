"""Flags: the places of a rule's events in the first sequences, for questions about joint occurrence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation
    from outlierscope.stats.rules import EventRule

SEQUENCES = 64
"""Sequences whose flags are kept: those with the smallest ids among the sampled ones."""

EVENTS_PER_SEQUENCE = 4096
"""Flags kept of one sequence: the first by position, then dim."""


@dataclass
class Flags(Stat["Observation"]):
    """Flags of at most ``SEQUENCES`` sequences and ``EVENTS_PER_SEQUENCE`` events each; dear.

    Attributes:
        rule: says which values are events.
        sequences: [<= 64] int64 ids of the sequences covered, ascending, with or without events.
        rows: [K, 3] int64 (sequence id, position, dim), sorted.
        left_out: [<= 64] int64 events of each covered sequence beyond the bound.
    """

    rule: EventRule
    sequences: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.int64))
    left_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    dear: ClassVar[bool] = True

    @property
    @override
    def name(self) -> str:
        return "flags_" + self.rule.name

    @override
    def fresh(self) -> Flags:
        return Flags(self.rule)

    @override
    def update(self, seen: Observation) -> None:
        found = seen.events(self.rule)
        ids = seen.batch.sequence_ids.cpu()
        position = seen.digest.order.positions[found.sequence, found.place]
        rows = torch.stack([ids[found.sequence], position, found.dim], 1)  # [K, 3], sorted within a sequence
        filled = torch.tensor(seen.filled, dtype=torch.int64)
        counts = torch.bincount(found.sequence, minlength=len(ids))  # [B]
        rank = torch.arange(len(found)) - (counts.cumsum(0) - counts)[found.sequence]
        left_out = (counts - EVENTS_PER_SEQUENCE).clamp(min=0)
        self._take(ids[filled], rows[rank < EVENTS_PER_SEQUENCE], left_out[filled])

    @override
    def merge(self, other: Flags) -> None:
        self._take(other.sequences, other.rows, other.left_out)

    def _take(self, sequences: Tensor, rows: Tensor, left_out: Tensor) -> None:
        together = torch.cat([self.sequences, sequences])
        order = together.argsort()[:SEQUENCES]
        self.sequences = together[order]
        self.left_out = torch.cat([self.left_out, left_out])[order]
        rows = torch.cat([self.rows, rows])
        rows = rows[torch.isin(rows[:, 0], self.sequences)]
        # Rows of one sequence come from one batch, already sorted by position and dim.
        self.rows = rows[rows[:, 0].argsort(stable=True)]

    @override
    def state(self) -> dict[str, Tensor]:
        return {"sequences": self.sequences, "rows": self.rows, "left_out": self.left_out}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.sequences, self.rows, self.left_out = state["sequences"], state["rows"], state["left_out"]
