"""Extremes: the value of largest magnitude of each dim and token class, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlierscope.stats.digest import first_located
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

NONE = -1
"""Sequence, position and token where a class has not been seen."""

BELOW = -2
"""Sequence, position and token of an extreme that was not located, because the record that it will be merged
into stands above it."""

CHUNK_ELEMENTS = 1_000_000
"""Values looked at together when locating."""

LAST = torch.iinfo(torch.int64).max


def _integers(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@dataclass
class Extremes(Stat["Observation"]):
    """Located extremes; tables are [C, d], empty before the first batch.

    Ties: larger magnitude first, then smaller sequence, then smaller position.

    Attributes:
        classes: number of token classes C.
        value: [C, d] float32 signed value of largest magnitude; 0 where there is none.
        sequence: [C, d] int64 id of its sequence; -1 where there is none.
        position: [C, d] int64 its position; -1 where there is none.
        token: [C, d] int64 its token id; -1 where there is none.
        nonfinite_located: [<= 32, 3] int64 (sequence, position, dim) of the first non-finite values.
    """

    classes: int = 5
    value: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    sequence: Tensor = field(default_factory=lambda: _integers(0, 0))
    position: Tensor = field(default_factory=lambda: _integers(0, 0))
    token: Tensor = field(default_factory=lambda: _integers(0, 0))
    nonfinite_located: Tensor = field(default_factory=lambda: _integers(0, 3))
    _record: Extremes | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return "extremes"

    def fresh(self) -> Extremes:
        """An empty one that leaves unlocated what this one's records surpass.

        Such entries never win when it is merged into this one or its successors, whose records only grow.
        Anywhere else they could, and then ``state`` raises rather than give a wrong place.
        """
        return Extremes(self.classes, _record=self)

    def _magnitude(self) -> Tensor:
        """[C, d] magnitude of the records, -1 where there is none."""
        return torch.where(self.sequence == NONE, -1.0, self.value.abs())

    def update(self, seen: Observation) -> None:
        digest = seen.digest
        dims = seen.tensor.shape[2]
        if not len(self.value):
            shape = (self.classes, dims)
            self.value = torch.zeros(shape)
            self.sequence, self.position, self.token = (torch.full(shape, NONE) for _ in range(3))
        if len(digest.nonfinite_located):
            self.nonfinite_located = first_located(
                torch.cat([self.nonfinite_located, digest.nonfinite_located])
            )
        if not digest.tokens:
            return
        low, high = digest.class_minimum.amin(0), digest.class_maximum.amax(0)  # [C, d]
        magnitude = torch.maximum(high, -low)  # -inf where there is no token
        first = int(seen.batch.sequence_ids.min())
        wins = self._beaten(magnitude, first)
        if not wins.any():
            return
        locate = wins
        if self._record is not None and len(self._record.value):
            locate = wins & self._record._beaten(magnitude, first)
            below = wins & ~locate
            self.value[below] = torch.where(high >= -low, high, low)[below]
            for table in (self.sequence, self.position, self.token):
                table[below] = BELOW
        self._locate(seen, magnitude, locate)

    def _beaten(self, magnitude: Tensor, first: int) -> Tensor:
        """[C, d] where a batch whose smallest sequence id is ``first`` may surpass the record."""
        record = self._magnitude()
        return (magnitude > record) | ((magnitude == record) & (self.sequence > first))

    def _locate(self, seen: Observation, magnitude: Tensor, wanted: Tensor) -> None:
        """Find the places of the batch's extremes at the ``wanted`` [C, d] entries and record them."""
        token_class, dim = wanted.nonzero(as_tuple=True)  # [K]
        if not len(dim):
            return
        digest, order = seen.digest, seen.batch.order
        peak = magnitude[token_class, dim]  # [K]
        ids = seen.batch.sequence_ids.cpu()
        has = (digest.class_maximum[:, token_class, dim] == peak) | (
            digest.class_minimum[:, token_class, dim] == -peak
        )  # [B, K]
        owner = torch.where(has, ids[:, None], LAST).min(0)
        row = owner.indices  # [K] row of the batch
        starts = _integers(len(ids), self.classes)
        lengths = _integers(len(ids), self.classes)
        for run in order.runs:
            starts[run.sequence, run.token_class] = run.start
            lengths[run.sequence, run.token_class] = run.stop - run.start
        start, length = starts[row, token_class], lengths[row, token_class]  # [K]
        flat = seen.tensor.detach().reshape(-1)
        width = seen.tensor.shape[2]
        place = torch.full_like(dim, LAST)
        signed = torch.zeros_like(peak)
        for part in _chunks(length):
            size = length[part]
            entry = torch.repeat_interleave(torch.arange(len(size)), size)  # [E]
            offset = torch.arange(len(entry)) - (size.cumsum(0) - size)[entry]
            rows = order.rows[start[part][entry] + offset]  # [E]
            values = flat[(rows * width + dim[part][entry]).to(flat.device)].float().cpu()
            hits = (values.abs() == peak[part][entry]).nonzero().flatten()
            # The last write wins on no device for sure, so take the minimum of the rows.
            place[part] = place[part].scatter_reduce(0, entry[hits], rows[hits], "amin")
        signed = flat[(place * width + dim).to(flat.device)].float().cpu()
        sequence, column = place // seen.tensor.shape[1], place % seen.tensor.shape[1]
        self._write(
            token_class,
            dim,
            signed,
            ids[sequence],
            order.positions[sequence, column],
            seen.batch.token_ids.cpu()[sequence, column],
        )

    def _write(
        self,
        token_class: Tensor,
        dim: Tensor,
        value: Tensor,
        sequence: Tensor,
        position: Tensor,
        token: Tensor,
    ) -> None:
        """Record candidates [K] where they surpass."""
        old = self.value[token_class, dim].abs()
        old_sequence = self.sequence[token_class, dim]
        better = (old_sequence < 0) | (value.abs() > old) | ((value.abs() == old) & (sequence < old_sequence))
        index = (token_class[better], dim[better])
        self.value[index] = value[better]
        self.sequence[index] = sequence[better]
        self.position[index] = position[better]
        self.token[index] = token[better]

    def merge(self, other: Extremes) -> None:
        if len(other.nonfinite_located):
            self.nonfinite_located = first_located(
                torch.cat([self.nonfinite_located, other.nonfinite_located])
            )
        if not len(other.value):
            return
        if not len(self.value):
            self.value, self.sequence = other.value.clone(), other.sequence.clone()
            self.position, self.token = other.position.clone(), other.token.clone()
            return
        mine, theirs = self._magnitude(), other._magnitude()
        earlier = (other.sequence < self.sequence) | (
            (other.sequence == self.sequence) & (other.position < self.position)
        )
        wins = (theirs > mine) | ((theirs == mine) & earlier & (other.sequence >= 0))
        if wins.any():
            self.value = torch.where(wins, other.value, self.value)
            self.sequence = torch.where(wins, other.sequence, self.sequence)
            self.position = torch.where(wins, other.position, self.position)
            self.token = torch.where(wins, other.token, self.token)

    def state(self) -> dict[str, Tensor]:
        if bool((self.sequence == BELOW).any()):
            raise RuntimeError(
                "extremes measured against the records of one scan were merged into another, "
                "where some would win without having been located"
            )
        return {
            "value": self.value,
            "sequence": self.sequence,
            "position": self.position,
            "token": self.token,
            "nonfinite_located": self.nonfinite_located,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.value, self.sequence = state["value"], state["sequence"]
        self.position, self.token = state["position"], state["token"]
        self.nonfinite_located = state["nonfinite_located"]


def _chunks(length: Tensor) -> list[slice]:
    """Slices of entries whose ``length`` [K] add up to about ``CHUNK_ELEMENTS`` each."""
    group = length.cumsum(0) // CHUNK_ELEMENTS
    cuts = [0, *((group[1:] != group[:-1]).nonzero().flatten() + 1).tolist(), len(length)]
    return [slice(first, last) for first, last in zip(cuts, cuts[1:], strict=False)]
