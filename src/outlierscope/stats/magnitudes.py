"""TopMagnitudes: the largest magnitudes of a tensor beside its usual ones, per sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from outlierscope.stats.stat import Stat

if TYPE_CHECKING:
    from outlierscope.stats.observation import Observation

FIGURES = ("top_1", "top_2", "top_3", "quantile_9999", "median", "mean")
"""Figures of abs(x) over all values [T, d] of one sequence."""


@dataclass
class TopMagnitudes(Stat["Observation"]):
    """The three largest magnitudes, the .9999 quantile, median and mean of abs(x), over sequences; dear.

    Sun et al. 2024, table 1, and An et al. 2025, figure 2, give top-3 and median. All are exact; the median
    of an even number of values is the mean of the middle two, the quantile the ceil(.9999 n)-th smallest.

    Attributes:
        count: sequences with at least one token.
        mean: [6] float64 mean over sequences of each of ``FIGURES``.
        maximum: [6] float64 largest over sequences.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(len(FIGURES), dtype=torch.float64))
    maximum: Tensor = field(default_factory=lambda: torch.zeros(len(FIGURES), dtype=torch.float64))
    dear: ClassVar[bool] = True

    @property
    @override
    def name(self) -> str:
        return "top_magnitudes"

    @override
    def fresh(self) -> TopMagnitudes:
        return TopMagnitudes()

    @override
    def update(self, seen: Observation) -> None:
        if seen.filled:
            figures = torch.stack([_figures(seen, sequence) for sequence in seen.filled])  # [B', 6]
            self._take(len(figures), figures.mean(0), figures.amax(0))

    @override
    def merge(self, other: TopMagnitudes) -> None:
        if other.count:
            self._take(other.count, other.mean, other.maximum)

    def _take(self, count: int, mean: Tensor, maximum: Tensor) -> None:
        self.mean = self.mean + (mean - self.mean) * (count / (self.count + count))
        self.maximum = torch.maximum(self.maximum, maximum)
        self.count += count

    def mean_of(self, figure: str) -> float:
        """Mean over sequences of one of ``FIGURES``; ``ValueError`` for any other name."""
        return float(self.mean[FIGURES.index(figure)])

    def maximum_of(self, figure: str) -> float:
        """Largest over sequences of one of ``FIGURES``; ``ValueError`` for any other name."""
        return float(self.maximum[FIGURES.index(figure)])

    @override
    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "mean": self.mean, "maximum": self.maximum}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.count, self.mean, self.maximum = int(state["count"]), state["mean"], state["maximum"]


def _figures(seen: Observation, sequence: int) -> Tensor:
    """[6] float64 ``FIGURES`` of one sequence."""
    start, stop = seen.digest.order.bounds[sequence : sequence + 2]
    # The three largest values stand in tokens whose absmax is among the three largest.
    tokens = torch.from_numpy(seen.digest.token_absmax[start:stop]).topk(min(3, stop - start)).indices + start
    rows = seen.digest.order.rows[tokens].to(seen.tensor.device)
    values = seen.tensor.detach().reshape(-1, seen.tensor.shape[2])[rows].float().abs().flatten()
    top = values.topk(min(3, len(values))).values.double().cpu()
    top = torch.cat([top, top[-1:].expand(3 - len(top))])
    rest = [seen.quantile_9999(sequence), seen.median(sequence), seen.mean_abs(sequence)]
    return torch.cat([top, torch.tensor(rest, dtype=torch.float64)])
