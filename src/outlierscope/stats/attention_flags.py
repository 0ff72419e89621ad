"""AttentionFlags: which keys were flagged in the first sequences, for questions about joint occurrence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outlierscope.stats.flags import SEQUENCES
from outlierscope.stats.sinks import judged_alpha
from outlierscope.stats.stat import Stat
from outlierscope.stats.systematic_attention import judged_keys

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation

KEYS_PER_SEQUENCE = 512
"""Flagged keys kept of one sequence: the first ones by position."""


@dataclass
class AttentionFlags(Stat["AttentionObservation"]):
    """Keys flagged by either rule, of the ``SEQUENCES`` (64) sequences with the smallest ids; dear.

    Attributes:
        ratio: threshold of ``SystematicAttention``.
        shortest: least length for that rule.
        epsilon: threshold of ``SinkRates``.
        sequences: [<= 64, 3] int64 (sequence id, whether judged by the first rule, by the second), ascending.
        rows: [K, 4] int64 (sequence id, position, 1 where flagged by the first rule, number of heads for
            which it is a sink).
        left_out: [<= 64] int64 flagged keys of each sequence beyond ``KEYS_PER_SEQUENCE``.
    """

    ratio: float = 0.1
    shortest: int = 256
    epsilon: float = 0.3
    sequences: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.int64))
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.int64))
    left_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``attention_flags_0.1_0.3`` for these thresholds, with the least length where it is not 256."""
        suffix = "" if self.shortest == 256 else f"_{self.shortest}"
        return f"attention_flags_{self.ratio:g}_{self.epsilon:g}{suffix}"

    def fresh(self) -> AttentionFlags:
        """An empty one with the same parameters."""
        return AttentionFlags(self.ratio, self.shortest, self.epsilon)

    def update(self, seen: AttentionObservation) -> None:
        """Take in one layer's attention of one batch."""
        full = len(self.sequences) == SEQUENCES
        for sequence, number in enumerate(seen.batch.sequence_ids.tolist()):
            late = full and number > int(self.sequences[-1, 0])
            seen_at_all = bool(seen.real[sequence].any()) and bool(seen.query_real[sequence].any())
            if not late and bool(seen.finite[sequence]) and seen_at_all:
                self._take(*self._flagged(seen, sequence, number))

    def _flagged(
        self, seen: AttentionObservation, sequence: int, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = seen.batch.rows(sequence)
        length = rows.stop - rows.start
        table = torch.zeros(length, 2, dtype=torch.int64)  # flagged by the first rule, heads by the second
        long = min(length, int(seen.query_real[sequence].sum())) >= self.shortest
        if long:
            table[:, 0] = judged_keys(seen, sequence, self.ratio)[2]
        judged = judged_alpha(seen, sequence)
        if judged is not None:
            alpha, visible = judged  # [H, K], [K]
            table[: len(visible), 1] = ((alpha > self.epsilon) & visible).sum(0)
        key = table.any(1).nonzero().flatten()
        left_out = max(0, len(key) - KEYS_PER_SEQUENCE)
        key = key[:KEYS_PER_SEQUENCE]
        found = torch.cat([torch.full((len(key), 1), number), key[:, None], table[key]], 1)
        covered = [number, int(long), int(judged is not None)]
        return torch.tensor([covered]), found, torch.tensor([left_out])

    def merge(self, other: AttentionFlags) -> None:
        """Take in what another one of the same parameters has seen."""
        self._take(other.sequences, other.rows, other.left_out)

    def _take(self, sequences: Tensor, rows: Tensor, left_out: Tensor) -> None:
        together = torch.cat([self.sequences, sequences])
        order = together[:, 0].argsort(stable=True)[:SEQUENCES]
        self.sequences = together[order]
        self.left_out = torch.cat([self.left_out, left_out])[order]
        rows = torch.cat([self.rows, rows])
        rows = rows[torch.isin(rows[:, 0], self.sequences[:, 0])]
        # Rows of one sequence come from one update, sorted by position.
        self.rows = rows[rows[:, 0].argsort(stable=True)]

    def state(self) -> dict[str, Tensor]:
        """The fields as named tensors."""
        return {"sequences": self.sequences, "rows": self.rows, "left_out": self.left_out}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.sequences, self.rows, self.left_out = state["sequences"], state["rows"], state["left_out"]
