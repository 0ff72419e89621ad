"""SparseSums: counts and sums under integer keys, of which only those that occurred take room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class SparseSums:
    """One row per key, sorted by key.

    Attributes:
        keys: [P, k] int64.
        counts: [P] int64.
        sums: [P, s] float64.
    """

    keys: Tensor
    counts: Tensor
    sums: Tensor

    @classmethod
    def empty(cls, key_columns: int, sum_columns: int) -> SparseSums:
        """No rows."""
        return cls(
            torch.zeros(0, key_columns, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, sum_columns, dtype=torch.float64),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def state(self, name: str) -> dict[str, Tensor]:
        """The columns as named tensors, ``NAME_keys``, ``NAME_counts`` and ``NAME_sums``."""
        return {f"{name}_keys": self.keys, f"{name}_counts": self.counts, f"{name}_sums": self.sums}

    @classmethod
    def of_state(cls, name: str, state: dict[str, Tensor]) -> SparseSums:
        """What ``state`` returned."""
        return cls(state[f"{name}_keys"], state[f"{name}_counts"], state[f"{name}_sums"])

    def plus(self, other: SparseSums) -> SparseSums:
        """Rows of both, those with equal keys added up; ``other`` need be neither sorted nor grouped.

        >>> ones = SparseSums(torch.tensor([[5], [2], [5]]), torch.ones(3).long(), torch.ones(3, 1).double())
        >>> total = SparseSums.empty(1, 1).plus(ones)
        >>> total.keys.flatten().tolist(), total.counts.tolist(), total.sums.flatten().tolist()
        ([2, 5], [1, 2], [1.0, 2.0])
        """
        if not len(other):
            return self
        keys = torch.cat([self.keys, other.keys]).numpy()
        counts = torch.cat([self.counts, other.counts]).numpy()
        sums = torch.cat([self.sums, other.sums]).numpy()
        order = np.lexsort(keys.T[::-1])
        keys = keys[order]
        starts = np.concatenate([[0], (keys[1:] != keys[:-1]).any(1).nonzero()[0] + 1])
        return SparseSums(
            torch.from_numpy(keys[starts]),
            torch.from_numpy(np.add.reduceat(counts[order], starts)),
            torch.from_numpy(np.add.reduceat(sums[order], starts)),
        )
