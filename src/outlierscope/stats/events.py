"""Events: located exceedances of one rule, counted by dim, token, class, position and sequence."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.compiled import compiled
from outlierscope.stats.pairs import Pairs
from outlierscope.stats.positions import BUCKETS, bucket_of
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from outlierscope.stats.located import Located
    from outlierscope.stats.observation import Observation
    from outlierscope.stats.rules import EventRule

COUNTERS = ("sequences", "sequences_with_any", "tokens", "tokens_with_any", "count", "carried")
TABLES = ("by_dim", "by_dim_class", "positions", "sequences_by_dim")

WAITING = 10_000
"""Rows of pairs that wait, at least, before they are grouped."""

Chain: TypeAlias = "tuple[Chain, Pairs] | None"
"""Pairs, each with those before: it grows without being changed or copied, so that copies may share it."""


def _empty(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@dataclass
class Events(Stat["Observation"]):
    """Counts of a rule's events. Whatever is [d] or [d, C] is empty before the first batch.

    Attributes:
        rule: says which values are events.
        count: events.
        carried: events among them that an earlier layer's flag carried on (see ``Massive``).
        by_dim: [d] int64 events.
        by_dim_class: [d, C] int64 events by dim and token class.
        positions: [BUCKETS] int64 events by bucket of their position (``positions.bucket_names``).
        sequences: sequences seen (those with at least one used token).
        sequences_with_any: sequences with at least one event.
        sequences_by_dim: [d] int64 sequences with at least one event in that dim.
        tokens: tokens seen.
        tokens_with_any: tokens with at least one event.
    """

    rule: EventRule
    count: int = 0
    carried: int = 0
    by_dim: Tensor = field(default_factory=lambda: _empty(0))
    by_dim_class: Tensor = field(default_factory=lambda: _empty(0, 0))
    positions: Tensor = field(default_factory=lambda: _empty(BUCKETS))
    sequences: int = 0
    sequences_with_any: int = 0
    sequences_by_dim: Tensor = field(default_factory=lambda: _empty(0))
    tokens: int = 0
    tokens_with_any: int = 0
    _grouped: Pairs = field(default_factory=Pairs.empty, repr=False)
    _waiting: Chain = field(default=None, repr=False)
    _rows_waiting: int = field(default=0, repr=False)

    @property
    @override
    def name(self) -> str:
        return self.rule.name

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """As the rule says."""
        return self.rule.dear

    @property
    def pairs(self) -> Pairs:
        """Events by (dim, token id), each with its strongest."""
        self._group()
        return self._grouped

    def _group(self) -> None:
        if self._waiting:
            self._grouped = Pairs.grouped(self._grouped, *_links(self._waiting))
            self._waiting, self._rows_waiting = None, 0

    @override
    def fresh(self) -> Events:
        return Events(self.rule)

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        self.sequences += len(seen.filled)
        self.tokens += digest.tokens
        found = seen.events(self.rule)
        self._make_room(seen.tensor.shape[2], len(seen.batch.class_names))
        if len(found):
            self._count(found, seen)

    def _count(self, found: Located, seen: Observation) -> None:
        batch, order = seen.batch, seen.digest.order
        sequence, dim = found.sequence.numpy(), found.dim.numpy()  # [K]
        place = sequence * seen.tensor.shape[1] + found.place.numpy()  # [K], ascending, as found is sorted
        position = order.positions.numpy().reshape(-1)[place]
        tables = [getattr(self, table).numpy().copy() for table in TABLES]
        token_class = batch.classes.cpu().numpy().reshape(-1)[place]
        sequences, tokens = _tally(sequence, place, dim, token_class, position, *tables)
        for name, table in zip(TABLES, tables, strict=True):
            setattr(self, name, torch.from_numpy(table))
        self.sequences_with_any += sequences
        self.tokens_with_any += tokens
        self.count += len(found)
        self.carried += int(found.carried.sum())
        self._wait(
            Pairs(
                dim=found.dim,
                token_id=torch.from_numpy(batch.token_ids.cpu().numpy().reshape(-1)[place]),
                count=torch.ones_like(found.dim),
                carried=found.carried.long(),
                value=found.value,
                score=found.score,
                sequence=batch.sequence_ids.cpu()[found.sequence],
                position=torch.from_numpy(position),
            )
        )

    @override
    def merge(self, other: Events) -> None:
        for counter in COUNTERS:
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))
        if len(other.by_dim):
            self._make_room(*other.by_dim_class.shape)
        if not other.count:
            return
        for table in TABLES:
            setattr(self, table, getattr(self, table) + getattr(other, table))
        for pairs in (other._grouped, *_links(other._waiting)):
            self._wait(pairs)

    def _make_room(self, dims: int, classes: int) -> None:
        if not len(self.by_dim):
            self.by_dim, self.sequences_by_dim = _empty(dims), _empty(dims)
            self.by_dim_class = _empty(dims, classes)
        elif self.by_dim_class.shape != (dims, classes):  # compiled loops do not look at bounds
            raise ValueError(
                f"events of {self.by_dim_class.shape[0]} dims and {self.by_dim_class.shape[1]} token classes "
                f"cannot take in those of {dims} dims and {classes} classes"
            )

    def _wait(self, pairs: Pairs) -> None:
        """Put new rows off until they are many: grouping at every batch would cost as the table grows."""
        if len(pairs):
            self._waiting = (self._waiting, pairs)
            self._rows_waiting += len(pairs)
            if self._rows_waiting > WAITING + len(self._grouped):
                self._group()

    @override
    def state(self) -> dict[str, Tensor]:
        pairs = self.pairs
        return (
            {counter: torch.tensor(getattr(self, counter)) for counter in COUNTERS}
            | {table: getattr(self, table) for table in TABLES}
            | {f"pairs_{item.name}": getattr(pairs, item.name) for item in fields(Pairs)}
        )

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        for counter in COUNTERS:
            setattr(self, counter, int(state[counter]))
        for table in TABLES:
            setattr(self, table, state[table])
        self._grouped = Pairs(**{item.name: state[f"pairs_{item.name}"] for item in fields(Pairs)})
        self._waiting, self._rows_waiting = None, 0


def _links(chain: Chain) -> Iterator[Pairs]:
    """What a chain holds, the newest first."""
    while chain is not None:
        chain, pairs = chain
        yield pairs


@compiled
def _tally(
    sequence: NDArray[np.int64],
    place: NDArray[np.int64],
    dim: NDArray[np.int64],
    token_class: NDArray[np.uint8],
    position: NDArray[np.int64],
    by_dim: NDArray[np.int64],
    by_dim_class: NDArray[np.int64],
    positions: NDArray[np.int64],
    sequences_by_dim: NDArray[np.int64],
) -> tuple[int, int]:
    """Count events [K], sorted by sequence and place, into the four tables.

    Args:
        sequence: [K].
        place: [K] which token.
        dim: [K].
        token_class: [K].
        position: [K].
        by_dim: [d], added to.
        by_dim_class: [d, C], added to.
        positions: [BUCKETS], added to.
        sequences_by_dim: [d], added to.

    Returns:
        How many sequences, and how many tokens, have any.
    """
    last = np.full(len(by_dim), -1)
    sequences = tokens = 0
    for event in range(len(sequence)):
        sequences += event == 0 or sequence[event] != sequence[event - 1]
        tokens += event == 0 or place[event] != place[event - 1]
        by_dim[dim[event]] += 1
        by_dim_class[dim[event], token_class[event]] += 1
        positions[bucket_of(position[event])] += 1
        if last[dim[event]] != sequence[event]:
            last[dim[event]] = sequence[event]
            sequences_by_dim[dim[event]] += 1
    return sequences, tokens
