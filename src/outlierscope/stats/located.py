"""Located: single values with their places, and how they are read from the few rows that can hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outlierscope.stats.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.stats.observation import Observation
    from outlierscope.stats.power_sums import Array


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
        """[K] int64 that order and identify the places (B and d below 2^20, T below 2^23)."""
        return self.tokens() << 20 | self.dim

    def tokens(self) -> Tensor:
        """[K] int64 that order and identify the tokens."""
        return self.sequence << 23 | self.place

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
    order = digest.order
    bar = np.where(possible, least, np.inf).astype(np.float32)[order.sequence_of.numpy()]  # [N]
    rows = order.row_array[digest.token_absmax >= bar]  # [R]
    columns = (digest.dim_absmax >= least[possible].min()).nonzero()[0]  # [D]
    if not len(rows) or not len(columns):
        return Located.nothing()
    rows.sort()
    values, at = seen.at_hand(rows)
    sequence = rows // order.shape[1]
    arguments = (values, at, sequence, columns, centre, np.where(np.isnan(limit), np.inf, limit))
    index = np.empty((_list_beyond(*arguments, np.empty((0, 2), dtype=np.int64)), 2), dtype=np.int64)
    _list_beyond(*arguments, index)
    row, column = index[:, 0], index[:, 1]
    return Located.at(
        torch.from_numpy(sequence[row]),
        torch.from_numpy(rows[row] % order.shape[1]),
        torch.from_numpy(column),
        torch.from_numpy(values[at[row], column]),
    )


@compiled
def _list_beyond(
    values: NDArray[np.float32],
    at: NDArray[np.int64],
    sequence: NDArray[np.int64],
    columns: NDArray[np.int64],
    centre: Array,
    limit: Array,
    index: NDArray[np.int64],
) -> int:
    """List (number of the row, column) of each value with abs(x - centre) > limit, as many as ``index`` holds.

    Args:
        values: [*, d].
        at: [R] the rows to look at.
        sequence: [R] the sequence of each.
        columns: [D] the columns to look at.
        centre: [B] of each sequence.
        limit: [B] of each sequence.
        index: [K, 2], written.

    Returns:
        How many there are.
    """
    found = 0
    for row in range(len(at)):
        middle, most = centre[sequence[row]], limit[sequence[row]]
        for column in columns:
            if abs(np.float64(values[at[row], column]) - middle) > most:
                if found < len(index):
                    index[found, 0] = row
                    index[found, 1] = column
                found += 1
    return found


def read_at(seen: Observation, places: Located) -> Located:
    """The values of this tensor at places found in another."""
    device = seen.tensor.device
    index = (places.sequence.to(device), places.place.to(device), places.dim.to(device))
    values = seen.tensor.detach()[index].float().cpu()
    return Located.at(places.sequence, places.place, places.dim, values)
