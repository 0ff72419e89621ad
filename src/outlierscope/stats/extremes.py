"""Extremes: the value of largest magnitude of each dim and token class, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.digest import first_located
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

NONE = -1
"""Sequence, position and token where a class has not been seen."""

CHUNK_ELEMENTS = 250_000
"""Values looked at together when locating: bounds the memory that it takes."""

Indices = NDArray[np.int64]


def _integers(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@dataclass
class Found:
    """Located values [K] of a tensor of ``dims`` dims, at most one for each (token class, dim)."""

    dims: int
    token_class: Indices
    dim: Indices
    value: NDArray[np.float32]
    sequence: Indices
    position: Indices
    token: Indices


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
        tables = (self.value, self.sequence, self.position, self.token)
        value, sequence, position, token = (table.numpy() for table in tables)
        index = (sequence != NONE).nonzero()
        return Found(
            self.value.shape[1],
            index[0],
            index[1],
            value[index],
            sequence[index],
            position[index],
            token[index],
        )

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
        peaks = torch.maximum(digest.slot_high, -digest.slot_low).numpy()  # [S, d]
        bar = self._bar.numpy()[plan.slot_class]
        wins = peaks > bar
        if self._last > int(seen.batch.sequence_ids.min()):
            wins |= peaks == bar  # an equal value wins over one of a later sequence
        slot, dim = wins.nonzero()  # [W]
        if not len(slot):
            return None
        peak = peaks[slot, dim]
        cell = plan.slot_class[slot] * self.value.shape[1] + dim
        best = np.full(self.value.numel(), -1.0, dtype=np.float32)
        np.maximum.at(best, cell, peak)
        highest = peak == best[cell]
        return _locate(seen, slot[highest], dim[highest], peak[highest])

    def _record(self, found: Found) -> None:
        """Take over what surpasses the records; never in place, as others may hold the same tables."""
        self._make_room(found.dims)
        tables = (self.value, self.sequence, self.position, self.token)
        value, sequence, position, token = (table.numpy().reshape(-1) for table in tables)
        cell = found.token_class * found.dims + found.dim
        old, new, since = np.abs(value[cell]), np.abs(found.value), sequence[cell]
        earlier = (found.sequence < since) | ((found.sequence == since) & (found.position < position[cell]))
        wins = (since == NONE) | (new > old) | ((new == old) & earlier)
        if not wins.any():
            return
        cell = cell[wins]
        value, sequence, position, token = value.copy(), sequence.copy(), position.copy(), token.copy()
        value[cell], sequence[cell] = found.value[wins], found.sequence[wins]
        position[cell], token[cell] = found.position[wins], found.token[wins]
        shape = self.value.shape
        self.value, self.sequence, self.position, self.token = (
            torch.from_numpy(table).view(shape) for table in (value, sequence, position, token)
        )
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


def _locate(seen: Observation, slot: Indices, dim: Indices, peak: NDArray[np.float32]) -> Found:
    """Where the magnitudes ``peak`` [W] stand in the rows of their slots; the first of each (class, dim)."""
    plan, order = seen.digest.plan, seen.digest.order
    flat = seen.tensor.detach().reshape(-1)
    length, dims = order.shape[1], seen.tensor.shape[2]
    ids = seen.batch.sequence_ids.cpu().numpy()
    by_id = ids.argsort(kind="stable")  # rows of the batch, by the number of their sequence
    rank = by_id.argsort()
    # The winners come sorted by slot; each row of a slot is compared with all winners of it. Going row by row
    # meets neighbouring memory, which is several times as fast as going winner by winner.
    slots, first_winner, winners = np.unique(slot, return_index=True, return_counts=True)
    sizes = plan.slot_length[slots]
    which = np.repeat(np.arange(len(slots)), sizes)  # [R], index into slots
    offset = np.arange(len(which)) - np.repeat(sizes.cumsum() - sizes, sizes)
    rows = plan.slot_rows.numpy()[plan.slot_start[slots][which] + offset]  # [R]
    dim_of, peak_of = torch.from_numpy(dim), torch.from_numpy(peak)
    keys, owners = [], []
    for part in _chunks(winners[which]):
        many = winners[which[part]]  # [R'] winners to compare each row with; E pairs in all
        pair_row = torch.repeat_interleave(torch.from_numpy(many))  # [E]
        start = torch.from_numpy(first_winner[which[part]] - (many.cumsum() - many))
        entry = start.index_select(0, pair_row).add_(torch.arange(len(pair_row)))  # [E]
        index = torch.from_numpy(rows[part] * dims).index_select(0, pair_row)
        index.add_(dim_of.index_select(0, entry))
        values = flat.index_select(0, index.to(flat.device)).float().cpu().abs_()
        hit = (values == peak_of.index_select(0, entry)).numpy().nonzero()[0]
        row = rows[part][pair_row.numpy()[hit]]
        keys.append(rank[row // length] * length + row % length)
        owners.append(entry.numpy()[hit])
    key, owner = np.concatenate(keys), np.concatenate(owners)
    # Of equal values the first by (sequence id, place) is the one.
    cell = plan.slot_class[slot[owner]] * dims + dim[owner]
    by_cell = np.lexsort((key, cell))
    firsts = np.flatnonzero(np.diff(cell[by_cell], prepend=-1))
    cell, key = cell[by_cell][firsts], key[by_cell][firsts]
    row = by_id[key // length] * length + key % length
    dim = cell % dims
    return Found(
        dims,
        cell // dims,
        dim,
        flat.index_select(0, torch.from_numpy(row * dims + dim).to(flat.device)).float().cpu().numpy(),
        ids[row // length],
        order.positions.numpy().reshape(-1)[row],
        seen.batch.token_ids.cpu().numpy().reshape(-1)[row],
    )


def _chunks(sizes: Indices) -> list[slice]:
    """Slices of rows whose ``sizes`` [R] add up to about ``CHUNK_ELEMENTS`` each."""
    group = sizes.cumsum() // CHUNK_ELEMENTS
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
    return [slice(first, last) for first, last in pairwise(cuts)]
