"""Exceedances: how many tokens pass a magnitude in each dim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.reading import BLOCK_ELEMENTS
from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
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
        self._add(_count_beyond(seen, self.threshold), seen.digest.tokens)

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
    if not digest.tokens:
        return total
    rows = digest.order.rows[digest.token_absmax >= threshold]  # [R]
    columns = (digest.dim_absmax >= threshold).nonzero().flatten()  # [D]
    if not len(rows) or not len(columns):
        return total
    flat = seen.tensor.detach().reshape(-1, dims)
    device = flat.device
    every = 16 * len(columns) > dims  # whole rows are read faster than many single values
    for chunk in torch.split(rows, max(1, BLOCK_ELEMENTS // (dims if every else len(columns)))):
        where = chunk.to(device)
        values = flat.index_select(0, where) if every else flat[where[:, None], columns.to(device)]
        values = values.float().abs_()
        # 0.0 and 1.0 in float32 add up faster than truth values, and exactly below 2^24 rows.
        counts = torch.ge(values, threshold, out=values).sum(0).long().cpu()
        if every:
            total += counts
        else:
            total[columns] += counts
    return total
