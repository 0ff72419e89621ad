"""ExtremeDims: which dim is the largest and which the smallest of every token vector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.reading import BLOCK_ELEMENTS
from outlierscope.stats.stat import Stat
from outlierscope.stats.workspace import workspace

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
    @override
    def name(self) -> str:
        return "extreme_dims"

    @override
    def fresh(self) -> ExtremeDims:
        return ExtremeDims()

    @override
    def update(self, seen: Observation) -> None:
        digest = seen.digest
        if digest.tokens:
            self._add(
                _count_extreme(seen, digest.token_high, largest=True),
                _count_extreme(seen, digest.token_low, largest=False),
            )

    @override
    def merge(self, other: ExtremeDims) -> None:
        if len(other.argmax):
            self._add(other.argmax, other.argmin)

    def _add(self, argmax: Tensor, argmin: Tensor) -> None:
        self.argmax = self.argmax + argmax if len(self.argmax) else argmax.clone()
        self.argmin = self.argmin + argmin if len(self.argmin) else argmin.clone()

    @override
    def state(self) -> dict[str, Tensor]:
        return {"argmax": self.argmax, "argmin": self.argmin}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.argmax, self.argmin = state["argmax"], state["argmin"]


def _count_extreme(seen: Observation, extremes: Tensor, *, largest: bool) -> Tensor:
    """[d] int64, for how many tokens each dim is the first that holds the token's extreme.

    Comparing with the known extreme and adding up costs a fifth of what ``argmax`` does.
    """
    order, dims = seen.digest.order, seen.tensor.shape[2]
    flat = seen.tensor.detach().reshape(-1, dims)
    device = flat.device
    # NaN equals nothing: what was left out counts nowhere.
    target = torch.full((len(flat),), torch.nan)
    target[order.rows] = extremes
    target = target.to(device)
    total = torch.zeros(dims, dtype=torch.int64)
    size = max(1, BLOCK_ELEMENTS // dims)
    buffer = workspace(min(size, len(flat)) * dims, torch.float32, device).view(-1, dims)
    for start in range(0, len(flat), size):
        block, wanted = flat[start : start + size], target[start : start + size, None]
        block = block if block.dtype == torch.float32 else block.float()
        equal = torch.eq(block, wanted, out=buffer[: len(block)])  # [R, d] of 0.0 and 1.0
        counts = equal.sum(0).long()
        if int(counts.sum()) > int((wanted == wanted).sum()):  # some token holds its extreme twice
            used = (wanted == wanted).flatten()
            rows = block[used]
            counts = torch.bincount(rows.argmax(1) if largest else rows.argmin(1), minlength=dims)
        total += counts.cpu()
    return total
