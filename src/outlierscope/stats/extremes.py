"""Extremes: the value of largest magnitude of each dim and token class, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.digest import first_located
from outlierscope.stats.records import NONE, Found, locate, mark_winners, put_records
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation


def _integers(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@dataclass
class Extremes(Stat["Observation"]):
    """Located extremes; tables are [C, d], empty before the first batch, which says how many classes C there are.

    Ties: larger magnitude first, then smaller sequence, then smaller position.

    Attributes:
        value: [C, d] float32 signed value of largest magnitude; 0 where there is none.
        sequence: [C, d] int64 id of its sequence; -1 where there is none.
        position: [C, d] int64 its position; -1 where there is none.
        token: [C, d] int64 its token id; -1 where there is none (or the position has no token).
        nonfinite_located: [<= 32, 3] int64 (sequence, position, dim) of the first non-finite values.
    """

    value: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    sequence: Tensor = field(default_factory=lambda: _integers(0, 0))
    position: Tensor = field(default_factory=lambda: _integers(0, 0))
    token: Tensor = field(default_factory=lambda: _integers(0, 0))
    nonfinite_located: Tensor = field(default_factory=lambda: _integers(0, 3))
    _bar: Tensor | None = field(default=None, repr=False, compare=False)
    _last: int = field(default=NONE, repr=False, compare=False)

    @property
    @override
    def name(self) -> str:
        return "extremes"

    @override
    def fresh(self) -> Extremes:
        return Extremes()

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        self._take_nonfinite(digest.nonfinite_located)
        if digest.tokens:
            found = self._surpassing(seen)
            if found is not None:
                self._record(found)

    @override
    def merge(self, other: Extremes) -> None:
        self._take_nonfinite(other.nonfinite_located)
        if len(other.value):
            self._record(other._as_found())

    def _take_nonfinite(self, located: Tensor) -> None:
        if len(located):
            self.nonfinite_located = first_located(torch.cat([self.nonfinite_located, located]))

    def _as_found(self) -> Found:
        tables = (self.value, self.sequence, self.position, self.token)
        value, sequence, position, token = (table.numpy() for table in tables)
        index = (sequence != NONE).nonzero()
        classes, dims = self.value.shape
        return Found(
            classes,
            dims,
            index[0],
            index[1],
            value[index],
            sequence[index],
            position[index],
            token[index],
        )

    def _surpassing(self, seen: Observation) -> Found | None:
        """The extremes of a batch that surpass these records, located."""
        digest, plan = seen.digest, seen.digest.plan
        self._make_room(len(seen.batch.class_names), seen.tensor.shape[2])
        if self._bar is None:
            self._bar = torch.where(self.sequence == NONE, -1.0, self.value.abs())
            self._last = int(self.sequence.max())
        low, high = digest.slot_low.numpy(), digest.slot_high.numpy()  # [S, d]
        wins = np.empty(low.shape, dtype=np.bool_)
        # An equal value wins over one of a later sequence.
        ties = self._last > int(seen.batch.sequence_ids.min())
        if not mark_winners(low, high, plan.slot_class, self._bar.numpy(), ties, wins):
            return None
        slot, dim = wins.nonzero()  # [W]
        return locate(seen, slot, dim, np.maximum(high[slot, dim], -low[slot, dim]))

    def _record(self, found: Found) -> None:
        """Take over what surpasses the records; never in place, as others may hold the same tables."""
        self._make_room(found.classes, found.dims)
        tables = (self.value, self.sequence, self.position, self.token)
        copies = [table.numpy().reshape(-1).copy() for table in tables]
        if not put_records(copies, found):
            return
        shape = self.value.shape
        self.value, self.sequence, self.position, self.token = (
            torch.from_numpy(copy).view(shape) for copy in copies
        )
        self._bar = None

    def _make_room(self, classes: int, dims: int) -> None:
        shape = (classes, dims)
        if not len(self.value):
            self.value, self._bar = torch.zeros(shape), None
            self.sequence, self.position, self.token = (torch.full(shape, NONE) for _ in range(3))
        elif self.value.shape != shape:  # compiled loops do not look at bounds
            raise ValueError(
                f"extremes of {len(self.value)} token classes and {self.value.shape[1]} dims cannot take in "
                f"those of {classes} classes and {dims} dims"
            )

    @override
    def state(self) -> dict[str, Tensor]:
        return {
            "value": self.value,
            "sequence": self.sequence,
            "position": self.position,
            "token": self.token,
            "nonfinite_located": self.nonfinite_located,
        }

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.value, self.sequence = state["value"], state["sequence"]
        self.position, self.token = state["position"], state["token"]
        self.nonfinite_located = state["nonfinite_located"]
        self._bar = None
