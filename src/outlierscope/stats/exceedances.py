"""Exceedances: how many tokens pass a magnitude in each dim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    def name(self) -> str:
        return f"exceedances_{self.threshold:g}"

    def fresh(self) -> Exceedances:
        return Exceedances(self.threshold)

    def update(self, seen: Observation) -> None:
        counts = torch.zeros(seen.tensor.shape[2], dtype=torch.int64)
        for sequence in range(len(seen.digest.used)):
            counts += (seen.values(sequence).abs() >= self.threshold).sum(0).cpu()
        self._add(counts, seen.digest.tokens)

    def merge(self, other: Exceedances) -> None:
        self._add(other.by_dim, other.tokens)

    def _add(self, by_dim: Tensor, tokens: int) -> None:
        if len(by_dim):
            self.by_dim = self.by_dim + by_dim if len(self.by_dim) else by_dim.clone()
        self.tokens += tokens

    def state(self) -> dict[str, Tensor]:
        return {"by_dim": self.by_dim, "tokens": torch.tensor(self.tokens)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.by_dim, self.tokens = state["by_dim"], int(state["tokens"])
