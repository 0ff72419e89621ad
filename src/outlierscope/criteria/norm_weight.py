"""norm_weight: dims at which norms of several layers carry an extreme gamma or beta."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.weights.summary import MatrixSummary


@dataclass(frozen=True)
class NormWeight:
    """Gamma or beta of a norm over 3 std from that norm's mean, at the same dim in more than 3 layers.

    Source: Kovaleva et al. 2021, "BERT Busters", section 3; Puccetti et al. 2022. Published:
    bert-base-uncased dims 308 and 381, roberta-base 77 and 588. Mean and unbiased standard deviation are over
    the dims of one gamma (or beta); layers are counted for each norm of the block and for gamma and beta
    apart. Parameters that layers share count once. A constant offset (norms that multiply by 1 + weight)
    changes nothing.

    Row key: stack, norm (``extra["norm"]``: its name in the block, and gamma or beta), ``dim``. ``layer``,
    ``parameter``, ``value`` and ``score`` (in std) are those of the layer where it stands out most, ``count``
    is the number of layers; ``extra`` lists ``layers``, ``values`` and ``scores``, and has ``stored``, the tensor's name in
    the files, where those were read.
    """

    name: ClassVar[str] = "norm_weight"
    kind: ClassVar[Kind] = "weight"
    source: ClassVar[str] = "Kovaleva et al. 2021; Puccetti et al. 2022"

    sigma: float = 3.0
    layers: int = 3

    def requires(self) -> Iterable[Requirement]:
        """Nothing of the pass: norms are summarised without running the model."""
        return ()

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the most layers first; a ``NotApplied`` per stack with norms in too few layers."""
        groups: dict[str, dict[tuple[str, int], list[MatrixSummary]]] = {}
        for summary in evidence.weights:
            if summary.role == "norm" and summary.layer is not None:
                by_norm = groups.setdefault(summary.stack, defaultdict(list))
                by_norm[norm_in_block(summary), len(summary.values)].append(summary)
        found: list[Finding] = []
        refused: list[NotApplied] = []
        if not groups:
            refused.append(NotApplied(self.name, "no norm of a block has weights"))
        for stack, by_norm in groups.items():
            most = max(len(norms) for norms in by_norm.values())
            if most <= self.layers:
                reason = f"not enough data: {most} layers of {stack} have norms of their own, "
                refused.append(NotApplied(self.name, reason + f"the rule needs more than {self.layers}"))
            for (norm, _), norms in by_norm.items():
                found += self._of_norm(norm, norms)
        found.sort(key=lambda finding: (-(finding.count or 0), -(finding.score or 0.0)))
        return [*found, *refused]

    def _of_norm(self, norm: str, norms: list[MatrixSummary]) -> list[Finding]:
        flagged: dict[int, list[tuple[MatrixSummary, float]]] = defaultdict(list)
        for summary in norms:
            for dim, score in _far_dims(summary, self.sigma):
                flagged[dim].append((summary, score))
        return [self._row(norm, dim, places) for dim, places in flagged.items() if len(places) > self.layers]

    def _row(self, norm: str, dim: int, places: list[tuple[MatrixSummary, float]]) -> Finding:
        strongest, score = max(places, key=lambda place: place[1])
        places = sorted(places, key=lambda place: place[0].layer or 0)
        return Finding(
            self.name,
            self.kind,
            stack=strongest.stack,
            layer=strongest.layer,
            module=strongest.module,
            parameter=strongest.parameter,
            dim=dim,
            value=float(strongest.values[dim]),
            score=score,
            threshold=self.sigma,
            count=len(places),
            rule={"sigma": self.sigma, "more_than_layers": self.layers, "scope": "the dims of one norm"},
            extra={
                "norm": norm,
                "layers": [summary.layer for summary, _ in places],
                "values": [float(summary.values[dim]) for summary, _ in places],
                "scores": [score for _, score in places],
                **({"stored": strongest.stored} if strongest.stored is not None else {}),
            },
        )


def _far_dims(summary: MatrixSummary, sigma: float) -> list[tuple[int, float]]:
    values = summary.values.double()
    finite = values.isfinite()
    if int(finite.sum()) < 2:
        return []
    std = values[finite].std()
    if not float(std):
        return []
    scores = ((values - values[finite].mean()).abs() / std).masked_fill(~finite, 0.0)
    return [(dim, float(scores[dim])) for dim in (scores > sigma).nonzero()[:, 0].tolist()]


def norm_in_block(summary: MatrixSummary) -> str:
    """Which norm of the block it is, the same for all layers, and whether it is gamma or beta.

    The layer's number is taken out of the full name, so that norms at the same place in each block fall
    together.
    """
    module = re.sub(rf"(^|.*?\.){summary.layer}(\.|$)", "", summary.module, count=1)
    beta = summary.parameter.endswith(("bias", "beta"))
    return f"{module or summary.module} {'beta' if beta else 'gamma'}"
