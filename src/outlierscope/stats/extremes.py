"""Extremes: the value of largest magnitude of each dim and token class, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.digest import first_located
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

NONE = -1
"""Sequence, position and token where a class has not been seen."""

CHUNK_ELEMENTS = 1_000_000
"""Values looked at together when locating."""


def _integers(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@dataclass
class Found:
    """Located values [K] of a tensor of ``dims`` dims, at most one for each (token class, dim)."""

    dims: int
    token_class: Tensor
    dim: Tensor
    value: Tensor
    sequence: Tensor
    position: Tensor
    token: Tensor


@dataclass
class Extremes(Stat["Observation"]):
    """Located extremes; tables are [C, d], empty before the first batch.

    Ties: larger magnitude first, then smaller sequence, then smaller position.

    Attributes:
        classes: number of token classes C.
        value: [C, d] float32 signed value of largest magnitude; 0 where there is none.
        sequence: [C, d] int64 id of its sequence; -1 where there is none.
        position: [C, d] int64 its position; -1 where there is none.
        token: [C, d] int64 its token id; -1 where there is none (or the position has no token).
        nonfinite_located: [<= 32, 3] int64 (sequence, position, dim) of the first non-finite values.
    """

    classes: int = 5
    value: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    sequence: Tensor = field(default_factory=lambda: _integers(0, 0))
    position: Tensor = field(default_factory=lambda: _integers(0, 0))
    token: Tensor = field(default_factory=lambda: _integers(0, 0))
    nonfinite_located: Tensor = field(default_factory=lambda: _integers(0, 3))
    _records: Extremes | None = field(default=None, repr=False, compare=False)
    _partial: bool = field(default=False, repr=False, compare=False)
    _challengers: list[Found] = field(default_factory=list, repr=False, compare=False)
    _bar: Tensor | None = field(default=None, repr=False, compare=False)
    _last: int = field(default=NONE, repr=False, compare=False)

    @property
    @override
    def name(self) -> str:
        return "extremes"

    @override
    def fresh(self) -> Extremes:
        """An empty one.

        Where this one has records already, the new one locates and keeps only what may surpass them: locating
        everything at every batch would cost more than all other statistics together. As records only grow,
        merging it into this one gives what a full one would give; merging it anywhere else, or asking for
        its ``state``, raises ``RuntimeError``.
        """
        records = self if self._records is None else self._records
        return Extremes(self.classes, _records=records if len(records.value) else None)

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        if len(digest.nonfinite_located):
            self.nonfinite_located = first_located(
                torch.cat([self.nonfinite_located, digest.nonfinite_located])
            )
        if not digest.tokens:
            return
        self._partial = self._records is not None
        found = (self._records or self)._surpassing(seen)
        if found is not None:
            self._take(found)

    @override
    def merge(self, other: Extremes) -> None:
        if len(other.nonfinite_located):
            self.nonfinite_located = first_located(
                torch.cat([self.nonfinite_located, other.nonfinite_located])
            )
        if other._partial:
            if self._records is None and other._records is not self:
                raise RuntimeError(PARTIAL)
            if self._records is not None and other._records is not self._records:
                raise RuntimeError(PARTIAL)
            for found in other._challengers:
                self._take(found)
            self._partial = self._records is not None
        elif len(other.value):
            if self._partial and other is not self._records:
                raise RuntimeError(PARTIAL)
            self._records, self._partial = None, False
            challengers, self._challengers = self._challengers, []
            for found in (other._as_found(), *challengers):
                self._take(found)

    def _as_found(self) -> Found:
        index = (self.sequence != NONE).nonzero(as_tuple=True)
        tables = (self.value, self.sequence, self.position, self.token)
        return Found(self.value.shape[1], *index, *(table[index] for table in tables))

    def _take(self, found: Found) -> None:
        if self._records is not None:
            self._challengers.append(found)
        else:
            self._record(found)

    def _surpassing(self, seen: Observation) -> Found | None:
        """The extremes of a batch that surpass these records, located."""
        digest, plan = seen.digest, seen.digest.plan
        self._make_room(seen.tensor.shape[2])
        if self._bar is None:
            self._bar = torch.where(self.sequence == NONE, -1.0, self.value.abs())
            self._last = int(self.sequence.max())
        peaks = torch.maximum(digest.slot_high, -digest.slot_low)  # [S, d]
        bar = self._bar[plan.slot_class]
        wins = peaks > bar
        if self._last > int(seen.batch.sequence_ids.min()):
            wins |= peaks == bar  # an equal value wins over one of a later sequence
        slot, dim = (torch.from_numpy(index) for index in wins.numpy().nonzero())  # [W]
        if not len(slot):
            return None
        peak = peaks[slot, dim]
        cell = plan.slot_class[slot] * self.value.shape[1] + dim
        best = torch.full((self.value.numel(),), -1.0).scatter_reduce(0, cell, peak, "amax")
        highest = peak == best.index_select(0, cell)
        return _locate(seen, slot[highest], dim[highest], peak[highest])

    def _record(self, found: Found) -> None:
        """Take over what surpasses the records; never in place, as others may hold the same tables."""
        self._make_room(found.dims)
        index = (found.token_class, found.dim)
        sequence, position = self.sequence[index], self.position[index]
        old, new = self.value[index].abs(), found.value.abs()
        earlier = (found.sequence < sequence) | ((found.sequence == sequence) & (found.position < position))
        wins = (sequence == NONE) | (new > old) | ((new == old) & earlier)
        if not bool(wins.any()):
            return
        index = (found.token_class[wins], found.dim[wins])
        self.value = self.value.index_put(index, found.value[wins])
        self.sequence = self.sequence.index_put(index, found.sequence[wins])
        self.position = self.position.index_put(index, found.position[wins])
        self.token = self.token.index_put(index, found.token[wins])
        self._bar = None

    def _make_room(self, dims: int) -> None:
        if not len(self.value):
            shape = (self.classes, dims)
            self.value, self._bar = torch.zeros(shape), None
            self.sequence, self.position, self.token = (torch.full(shape, NONE) for _ in range(3))

    @override
    def state(self) -> dict[str, Tensor]:
        if self._partial:
            raise RuntimeError(PARTIAL)
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


PARTIAL = (
    "extremes that were gathered against the records of one statistic can only be merged into that one "
    "(or with others gathered against it)"
)


def _locate(seen: Observation, slot: Tensor, dim: Tensor, peak: Tensor) -> Found:
    """Where the magnitudes ``peak`` [W] stand in the rows of their slots; the first of each (class, dim)."""
    plan, order = seen.digest.plan, seen.digest.order
    flat = seen.tensor.detach().reshape(-1)
    length, dims = order.shape[1], seen.tensor.shape[2]
    rows, entries = [], []
    for part in _chunks(plan.slot_length[slot]):
        # Each entry is compared with every row of its slot: E pairs (entry, row).
        size = plan.slot_length[slot[part]]
        entry = torch.repeat_interleave(size)  # [E]
        start = plan.slot_start[slot[part]] - (size.cumsum(0) - size)
        place = start.index_select(0, entry).add_(torch.arange(len(entry)))
        row = plan.slot_rows.index_select(0, place)  # [E]
        index = (row * dims).add_(dim[part].index_select(0, entry))
        values = flat.index_select(0, index.to(flat.device)).float().cpu().abs_()
        hit = (values == peak[part].index_select(0, entry)).numpy().nonzero()[0]
        rows.append(row[hit])
        entries.append(entry[hit] + part.start)
    row, entry = torch.cat(rows), torch.cat(entries)
    ids = seen.batch.sequence_ids.cpu()[row // length]
    # Sorted by (class, dim), then (sequence, place): the first of each cell is the one to keep.
    cell = plan.slot_class[slot[entry]] * dims + dim[entry]
    by_place = (ids << 32 | row % length).argsort()
    by_cell = by_place[cell[by_place].argsort(stable=True)]
    cell, row, ids = cell[by_cell], row[by_cell], ids[by_cell]
    first = torch.ones(len(cell), dtype=torch.bool)
    first[1:] = cell[1:] != cell[:-1]
    cell, row, ids = cell[first], row[first], ids[first]
    dim = cell % dims
    return Found(
        dims,
        cell // dims,
        dim,
        flat.index_select(0, (row * dims + dim).to(flat.device)).float().cpu(),
        ids,
        order.positions.flatten()[row],
        seen.batch.token_ids.cpu().flatten()[row],
    )


def _chunks(length: Tensor) -> list[slice]:
    """Slices of entries whose ``length`` [K] add up to about ``CHUNK_ELEMENTS`` each."""
    group = length.cumsum(0) // CHUNK_ELEMENTS
    cuts = [0, *((group[1:] != group[:-1]).nonzero().flatten() + 1).tolist(), len(length)]
    return [slice(first, last) for first, last in pairwise(cuts)]
