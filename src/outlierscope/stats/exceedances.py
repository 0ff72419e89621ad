"""Exceedances: how many tokens pass a magnitude in each dim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.compiled import compiled
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.stats.observation import Observation


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass
class Exceedances(Stat["Observation"]):
    """Tokens with abs(x) >= threshold by dim; Dettmers et al. 2022 (LLM.int8()), section 4, threshold 6.0.

    Attributes:
        threshold: magnitude that counts.
        by_dim: [d] int64 tokens that reach it.
        tokens: tokens seen.
    """

    threshold: float = 6.0
    by_dim: Tensor = field(default_factory=_empty)
    tokens: int = 0

    @property
    @override
    def name(self) -> str:
        return f"exceedances_{self.threshold:g}"

    @override
    def fresh(self) -> Exceedances:
        return Exceedances(self.threshold)

    @override
    def update(self, seen: Observation) -> None:
        # As float32, which the values are, so that every device compares alike.
        threshold = float(np.float32(self.threshold))
        self._add(_count_beyond(seen, threshold), seen.digest.tokens)

    @override
    def merge(self, other: Exceedances) -> None:
        self._add(other.by_dim, other.tokens)

    def _add(self, by_dim: Tensor, tokens: int) -> None:
        if len(by_dim):
            self.by_dim = self.by_dim + by_dim if len(self.by_dim) else by_dim.clone()
        self.tokens += tokens

    @override
    def state(self) -> dict[str, Tensor]:
        return {"by_dim": self.by_dim, "tokens": torch.tensor(self.tokens)}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.by_dim, self.tokens = state["by_dim"], int(state["tokens"])


def _count_beyond(seen: Observation, threshold: float) -> Tensor:
    """[d] int64 tokens with abs(x) >= threshold, read only where both token and dim reach it."""
    digest, dims = seen.digest, seen.tensor.shape[2]
    total = torch.zeros(dims, dtype=torch.int64)
    if not digest.tokens or digest.dim_absmax.max() < threshold:
        return total
    rows = digest.order.row_array[digest.token_absmax >= threshold]  # [R]
    if seen.tensor.device.type != "cpu":
        flat = seen.tensor.detach().reshape(-1, dims)
        values = flat.index_select(0, torch.from_numpy(rows).to(flat.device)).float()
        return (values.abs_() >= threshold).sum(0).cpu()
    array, at = seen.at_hand(rows)
    _count_columns(array, at, digest.dim_absmax, threshold, total.numpy())
    return total


@compiled
def _count_columns(
    values: NDArray[np.float32],
    at: NDArray[np.int64],
    dim_absmax: NDArray[np.float32],
    threshold: float,
    total: NDArray[np.int64],
) -> None:
    """Add to ``total`` [d], how many of the rows ``at`` reach ``threshold`` in each dim that has such a value."""
    columns = np.flatnonzero(dim_absmax >= threshold)
    for row in at:
        for column in columns:
            total[column] += abs(values[row, column]) >= threshold
