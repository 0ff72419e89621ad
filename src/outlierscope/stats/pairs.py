"""Pairs: events counted by (dim, token id), sparse, with the strongest of each."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

COLUMNS = {
    "dim": torch.int64,
    "token_id": torch.int64,
    "count": torch.int64,
    "carried": torch.int64,
    "value": torch.float32,
    "score": torch.float64,
    "sequence": torch.int64,
    "position": torch.int64,
}


@dataclass
class Pairs:
    """One row per (dim, token id), sorted by them.

    Attributes:
        dim: [P] int64.
        token_id: [P] int64; -1 where positions have no token.
        count: [P] int64 events.
        carried: [P] int64 events among them that an earlier layer's flag carried on.
        value: [P] float32 signed value of largest magnitude (then smaller sequence, then smaller position).
        score: [P] float64, the rule's figure of that event.
        sequence: [P] int64 id of its sequence.
        position: [P] int64 its position.
    """

    dim: Tensor
    token_id: Tensor
    count: Tensor
    carried: Tensor
    value: Tensor
    score: Tensor
    sequence: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.dim)

    @classmethod
    def empty(cls) -> Pairs:
        """No rows."""
        return cls(**{name: torch.zeros(0, dtype=dtype) for name, dtype in COLUMNS.items()})

    @classmethod
    def grouped(cls, *tables: Pairs) -> Pairs:
        """Rows of several tables (not necessarily grouped or sorted) as one row per (dim, token id)."""
        columns = {
            item.name: torch.cat([getattr(table, item.name) for table in tables]).numpy()
            for item in fields(cls)
        }
        # Several sorts by one key each cost a tenth of one sort by five.
        key = (columns["dim"] << 32) | (columns["token_id"] + 1)
        order = key.argsort(kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        key, magnitude = key[order], np.abs(columns["value"])
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        if not len(starts):
            return cls.empty()
        group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(key)))
        # The strongest of each group; of equals the first by sequence, then position.
        never = np.iinfo(np.int64).max
        best = magnitude == np.maximum.reduceat(magnitude, starts)[group]
        for name in ("sequence", "position"):
            place = np.where(best, columns[name], never)
            best &= place == np.minimum.reduceat(place, starts)[group]
        winners = best.nonzero()[0]
        winners = winners[np.diff(group[winners], prepend=-1) > 0]
        result = {name: column[winners] for name, column in columns.items()}
        for name in ("count", "carried"):
            result[name] = np.add.reduceat(columns[name], starts)
        return cls(**{name: torch.from_numpy(column) for name, column in result.items()})
