"""Extremes: the value of largest magnitude of each dim and token class, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.digest import first_located
from outlierscope.stats.records import NONE, put_best, put_others, raise_bar
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    _bar: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
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
        if seen.digest.nonfinite:
            self._take_nonfinite(seen.digest.nonfinite_located)
        if seen.digest.tokens:
            self._take(seen)

    @override
    def merge(self, other: Extremes) -> None:
        if len(other.nonfinite_located):
            self._take_nonfinite(other.nonfinite_located)
        if len(other.value):
            self._make_room(*other.value.shape)
            tables = self._copied()
            put_others(*other._tables(), *tables)
            self._set(tables)
            self._bar = None

    def _take_nonfinite(self, located: Tensor) -> None:
        self.nonfinite_located = first_located(torch.cat([self.nonfinite_located, located]))

    def _take(self, seen: Observation) -> None:
        digest, batch = seen.digest, seen.batch
        self._make_room(len(batch.class_names), seen.tensor.shape[2])
        if self._bar is None:
            value, sequence, *_ = self._tables()
            self._bar = np.where(sequence == NONE, np.float32(-1), np.abs(value))
            self._last = int(sequence.max())
        best = np.empty_like(self._bar)
        ids = batch.sequence_ids.cpu().numpy()
        # An equal value wins over one of a later sequence.
        challenge = (digest.slot_low, digest.slot_high, digest.plan.slot_class)
        ties = self._last > int(ids.min())
        if not raise_bar(*challenge, self._bar, ties, best):
            return
        # On a GPU this copies the tensor, which only batches with new records do: most of them come early.
        values, at = seen.at_hand(digest.order.row_array)
        tables = self._copied()
        put_best(
            values,
            at,
            digest.order.row_array,
            *challenge,
            digest.plan.slot_start,
            self._bar,
            ties,
            best,
            ids,
            digest.order.positions.numpy(),
            batch.token_ids.cpu().numpy(),
            *tables,
        )
        self._set(tables)
        self._bar, self._last = best, max(self._last, int(ids.max()))

    def _tables(self) -> list[NDArray[Any]]:
        return [table.numpy() for table in (self.value, self.sequence, self.position, self.token)]

    def _copied(self) -> list[NDArray[Any]]:
        """The tables, to be changed: others may hold those that are here."""
        return [table.copy() for table in self._tables()]

    def _set(self, tables: list[NDArray[Any]]) -> None:
        self.value, self.sequence, self.position, self.token = map(torch.from_numpy, tables)

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
