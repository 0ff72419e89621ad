"""Located: single values with their places, and how they are read from the few rows that can hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation
    from outlierscope.stats.power_sums import Array

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

    @classmethod
    def at(cls, sequence: Tensor, place: Tensor, dim: Tensor, value: Tensor) -> Located:
        """Values that were not judged yet."""
        score = torch.zeros(len(value), dtype=torch.float64)
        return cls(sequence, place, dim, value, score, torch.zeros(len(value), dtype=torch.bool))

    @classmethod
    def nothing(cls) -> Located:
        """No values."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls.at(none, none, none, torch.zeros(0))

    @classmethod
    def joined(cls, *parts: Located) -> Located:
        """All of them, sorted."""
        everything = cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))
        return everything.where(everything.keys().argsort())

    def where(self, mask: Tensor) -> Located:
        """Those where ``mask`` [K] holds, or at these indices."""
        return Located(*(getattr(self, item.name)[mask] for item in fields(self)))

    def keys(self) -> Tensor:
        """[K] int64 that order and identify the places (T and d below 2^26)."""
        return self.tokens() << 26 | self.dim

    def tokens(self) -> Tensor:
        """[K] int64 that order and identify the tokens."""
        return self.sequence << 26 | self.place

    def among(self, other: Located) -> Tensor:
        """[K] bool, whether ``other`` holds the same place."""
        return torch.isin(self.keys(), other.keys())

    def first_of_each_token(self) -> Located:
        """The lowest dim of each token."""
        tokens = self.tokens()
        new = torch.ones(len(self), dtype=torch.bool)
        new[1:] = tokens[1:] != tokens[:-1]
        return self.where(new)


def read_beyond(seen: Observation, centre: Array, limit: Array) -> Located:
    """The values with abs(x - centre) > limit.

    Such a value's token and dim have an absmax above limit - abs(centre), so that only the crossings of
    such rows and columns are read again.

    Args:
        seen: the tensor and its digest.
        centre: [B], one for each sequence.
        limit: [B]; where it is NaN or infinite, nothing passes.
    """
    digest = seen.digest
    with np.errstate(invalid="ignore"):
        least = (limit - np.abs(centre)) * (1 - 1e-6)  # [B], a little below: rounding must lose nothing
        possible = digest.inf_norms > least  # [B]
    if not possible.any():
        return Located.nothing()
    order, dims = digest.order, len(digest.dim_absmax)
    bar = torch.from_numpy(np.where(possible, least, np.inf)).float()[order.sequence_of]  # [N]
    rows = order.rows[digest.token_absmax >= bar].sort().values  # [R]
    columns = (digest.dim_absmax >= float(least[possible].min())).nonzero().flatten()  # [D]
    if not len(rows) or not len(columns):
        return Located.nothing()
    flat = seen.tensor.detach().reshape(-1, dims)
    device = flat.device
    centres, limits, bars = torch.from_numpy(centre), torch.from_numpy(limit), torch.from_numpy(least).float()
    parts = []
    for chunk in torch.split(rows, max(1, CHUNK_ELEMENTS // dims)):
        sequences, places = chunk // order.shape[1], chunk % order.shape[1]  # [R]
        values = flat.index_select(0, chunk.to(device)).index_select(1, columns.to(device)).float()  # [R, D]
        near = values.abs() >= bars[sequences, None].to(device)
        row, column = (torch.from_numpy(index) for index in near.cpu().numpy().nonzero())  # [K]
        found = values[row.to(device), column.to(device)].cpu()
        sequence = sequences[row]
        passed = (found.double() - centres[sequence]).abs() > limits[sequence]
        parts.append(
            Located.at(sequence[passed], places[row[passed]], columns[column[passed]], found[passed])
        )
    return parts[0] if len(parts) == 1 else Located.joined(*parts)


def read_at(seen: Observation, places: Located) -> Located:
    """The values of this tensor at places found in another."""
    device = seen.tensor.device
    index = (places.sequence.to(device), places.place.to(device), places.dim.to(device))
    values = seen.tensor.detach()[index].float().cpu()
    return Located.at(places.sequence, places.place, places.dim, values)
