"""Located: single values with their places, and how they are read from the few rows that can hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

CHUNK_ELEMENTS = 1_000_000
"""Candidates looked at together: bounds the memory of dense cases."""


@dataclass
class Located:
    """Values and their places, sorted by sequence, place, dim; on the CPU.

    Attributes:
        sequence: [K] int64 row of the batch.
        place: [K] int64 index into T, padding included.
        dim: [K] int64.
        value: [K] float32.
        score: [K] float64, the rule's own figure.
        carried: [K] bool, flagged by a memory of earlier layers rather than by the rule itself.
    """

    sequence: Tensor
    place: Tensor
    dim: Tensor
    value: Tensor
    score: Tensor
    carried: Tensor

    def __len__(self) -> int:
        return len(self.value)

    def where(self, mask: Tensor) -> Located:
        """Those where ``mask`` [K] holds."""
        return Located(*(getattr(self, item.name)[mask] for item in fields(self)))

    def keys(self) -> Tensor:
        """[K] int64 that order and identify the places."""
        return (self.sequence << 52) | (self.place << 26) | self.dim

    def among(self, other: Located) -> Tensor:
        """[K] bool, whether ``other`` holds the same place."""
        return torch.isin(self.keys(), other.keys())

    def first_of_each_token(self) -> Located:
        """The lowest dim of each token."""
        tokens = self.keys() >> 26
        new = torch.ones(len(self), dtype=torch.bool)
        new[1:] = tokens[1:] != tokens[:-1]
        return self.where(new)

    @classmethod
    def joined(cls, *parts: Located) -> Located:
        """All of them, sorted."""
        everything = cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))
        return everything.where(everything.keys().argsort())

    @classmethod
    def at(cls, sequence: Tensor, place: Tensor, dim: Tensor, value: Tensor) -> Located:
        """Values that were not judged yet."""
        return cls(
            sequence,
            place,
            dim,
            value,
            torch.zeros(len(value), dtype=torch.float64),
            torch.zeros(len(value), dtype=torch.bool),
        )


def read_candidates(seen: Observation, tokens: Tensor, dims: Tensor) -> Located:
    """Values at the given ``tokens`` [B, T] and ``dims`` [B, d] masks: a superset for a rule to judge.

    A value can only pass a threshold that its token's and its dim's extremes pass, so that only the
    crossings of such rows and columns are read again.
    """
    places = tokens.flatten().nonzero().flatten()  # [R]
    length = tokens.shape[1]
    columns = dims.any(0).nonzero().flatten()  # [D]
    if not len(places) or not len(columns):
        empty = torch.zeros(0, dtype=torch.int64)
        return Located.at(empty, empty, empty, torch.zeros(0))
    flat = seen.tensor.detach().reshape(-1, seen.tensor.shape[2])
    device = flat.device
    parts = []
    for chunk in places.split(max(1, CHUNK_ELEMENTS // len(columns))):
        values = flat[chunk[:, None].to(device), columns.to(device)].float().cpu()  # [R', D]
        wanted = dims[chunk // length][:, columns]
        row, column = wanted.nonzero(as_tuple=True)
        parts.append(
            Located.at(chunk[row] // length, chunk[row] % length, columns[column], values[row, column])
        )
    return parts[0] if len(parts) == 1 else Located.joined(*parts)


def read_at(seen: Observation, places: Located) -> Located:
    """The values of this tensor at places found in another."""
    device = seen.tensor.device
    index = (places.sequence.to(device), places.place.to(device), places.dim.to(device))
    values = seen.tensor.detach()[index].float().cpu()
    return Located.at(places.sequence, places.place, places.dim, values)
