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
        order = np.lexsort(
            (
                columns["position"],
                columns["sequence"],
                -np.abs(columns["value"]),
                columns["token_id"],
                columns["dim"],
            )
        )
        columns = {name: column[order] for name, column in columns.items()}
        dim, token_id = columns["dim"], columns["token_id"]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (dim[1:] != dim[:-1]) | (token_id[1:] != token_id[:-1])
        starts = new.nonzero()[0]
        result = {name: column[starts] for name, column in columns.items()}
        for name in ("count", "carried"):
            result[name] = np.add.reduceat(columns[name], starts) if len(starts) else columns[name]
        return cls(**{name: torch.from_numpy(column) for name, column in result.items()})
