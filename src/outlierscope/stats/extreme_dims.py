"""ExtremeDims: which dim is the largest and which the smallest of every token vector."""

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
class ExtremeDims(Stat["Observation"]):
    """How often each dim is the extreme one of a token vector; Luo, Kulmizev & Mao 2021, section 3.

    Attributes:
        argmax: [d] int64, token vectors whose largest value is at that dim (the first of equals).
        argmin: [d] int64, token vectors whose smallest value is at that dim.
    """

    argmax: Tensor = field(default_factory=_empty)
    argmin: Tensor = field(default_factory=_empty)

    @property
    def name(self) -> str:
        return "extreme_dims"

    def fresh(self) -> ExtremeDims:
        return ExtremeDims()

    def update(self, seen: Observation) -> None:
        digest = seen.digest
        for sequence in range(len(digest.used)):
            values = seen.values(sequence)  # [T_used, d]
            if len(values):
                self._add(
                    torch.bincount(values.argmax(1).cpu(), minlength=values.shape[1]),
                    torch.bincount(values.argmin(1).cpu(), minlength=values.shape[1]),
                )

    def merge(self, other: ExtremeDims) -> None:
        if len(other.argmax):
            self._add(other.argmax, other.argmin)

    def _add(self, argmax: Tensor, argmin: Tensor) -> None:
        self.argmax = self.argmax + argmax if len(self.argmax) else argmax.clone()
        self.argmin = self.argmin + argmin if len(self.argmin) else argmin.clone()

    def state(self) -> dict[str, Tensor]:
        return {"argmax": self.argmax, "argmin": self.argmin}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.argmax, self.argmin = state["argmax"], state["argmin"]
