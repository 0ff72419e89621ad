"""weight_column and weight_row: columns and rows of a weight matrix with one entry far above their others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of
from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.weights.summary import MatrixSummary

READS = {
    "q": "attn_in", "k": "attn_in", "v": "attn_in", "qkv": "attn_in", "o": "z",
    "gate": "mlp_in", "up": "mlp_in", "gate_up": "mlp_in", "down": "mlp_post",
}  # fmt: skip
"""Role of a matrix -> site that it reads: what its columns stand for."""

WRITES = {
    "q": "q",
    "k": "k",
    "v": "v",
    "o": "attn_out",
    "gate": "mlp_gate",
    "up": "mlp_up",
    "down": "mlp_out",
}
"""Role of a matrix -> site that its rows stand for; those of fused matrices belong to several."""

TOP = 5
"""Columns or rows with the largest ratios that the first row of every matrix lists."""


@dataclass(frozen=True)
class WeightColumn:
    """Columns j of a matrix whose r_j is more than 6 std above the mean of r in that matrix.

    Source: An et al. 2025, "Systematic Outliers in Large Language Models": r_j = max_i abs(W[i, j]) /
    mean_i abs(W[i, j]). The source gives no threshold; ours is ``sigma``, with the mean and the unbiased
    standard deviation of r over the columns of the matrix. Among n numbers none is further than (n - 1) /
    sqrt(n) standard deviations from their mean, so narrow matrices cannot be judged.

    Row key: ``parameter``, ``expert``, ``dim``. ``score`` is in standard deviations, ``value`` the largest
    entry of the column, ``row`` where it is; ``extra`` has ``ratio`` (r_j itself), ``mean_ratio``,
    ``std_ratio``, the ``rank`` in the matrix from 1, and at rank 1 ``top``, the largest ratios as [column, r]
    pairs.
    """

    name: ClassVar[str] = "weight_column"
    kind: ClassVar[Kind] = "weight"
    source: ClassVar[str] = "An et al. 2025, weight outliers; threshold ours"

    sigma: float = 6.0

    def requires(self) -> Iterable[Requirement]:
        """Nothing of the pass: weights are summarised without running the model."""
        return ()

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest score first; a ``NotApplied`` when some matrices are too narrow to judge."""
        return _judge_all(self.name, evidence, self.sigma, lambda summary: summary.column_ratio, self._row)

    def _row(self, summary: MatrixSummary, evidence: Evidence, column: int) -> Finding:
        site = READS.get(summary.role)
        head = None
        if site is not None and summary.layer is not None:
            head = head_of(evidence, Site(summary.stack, summary.layer, site), column)
        return Finding(
            self.name,
            self.kind,
            site=site,
            dim=column,
            row=int(summary.column_argmax[column]),
            head=head,
            value=float(summary.column_extreme[column]),
        )


@dataclass(frozen=True)
class WeightRow:
    """Rows of a matrix whose ratio of largest to mean magnitude is more than 6 std above the mean ratio.

    Source and threshold as for ``weight_column``, along rows. Row key: ``parameter``, ``expert``, ``row``;
    ``extra`` as there, with ``top`` as [row, r] pairs.
    """

    name: ClassVar[str] = "weight_row"
    kind: ClassVar[Kind] = "weight"
    source: ClassVar[str] = "An et al. 2025, weight outliers; threshold ours"

    sigma: float = 6.0

    def requires(self) -> Iterable[Requirement]:
        """Nothing of the pass: weights are summarised without running the model."""
        return ()

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest score first; a ``NotApplied`` when some matrices are too short to judge."""
        return _judge_all(self.name, evidence, self.sigma, lambda summary: summary.row_ratio, self._row)

    def _row(self, summary: MatrixSummary, _evidence: Evidence, row: int) -> Finding:
        return Finding(self.name, self.kind, site=WRITES.get(summary.role), row=row)


def _judge_all(
    name: str,
    evidence: Evidence,
    sigma: float,
    ratios_of: Callable[[MatrixSummary], Tensor],
    make_row: Callable[[MatrixSummary, Evidence, int], Finding],
) -> list[Finding | NotApplied]:
    found: list[Finding] = []
    matrices = narrow = 0
    for summary in evidence.weights:
        ratios = ratios_of(summary).double()
        if not len(ratios):
            continue
        matrices += 1
        if (len(ratios) - 1) / len(ratios) ** 0.5 <= sigma:
            narrow += 1
            continue
        for rank, index in enumerate(outlying(ratios, sigma), start=1):
            finding = make_row(summary, evidence, index)
            found.append(_complete(finding, summary, ratios, index, rank, sigma))
    found.sort(key=lambda finding: -(finding.score or 0.0))
    if narrow:
        reason = (
            f"not enough data: {narrow} of {matrices} matrices are too small for a ratio {sigma:g} std off"
        )
        return [*found, NotApplied(name, reason)]
    return [*found] if matrices else [NotApplied(name, "no weight matrix was summarised")]


def outlying(ratios: Tensor, sigma: float) -> list[int]:
    """Indices of the numbers more than ``sigma`` unbiased standard deviations above the mean, largest first.

    >>> outlying(torch.tensor([1.0] * 50 + [9.0, 1.0]), 6.0)
    [50]
    """
    threshold = ratios.mean() + sigma * ratios.std()
    above = (ratios > threshold).nonzero()[:, 0].tolist()
    return sorted(above, key=lambda index: (-float(ratios[index]), index))


def _complete(
    finding: Finding, summary: MatrixSummary, ratios: Tensor, index: int, rank: int, sigma: float
) -> Finding:
    mean, std = float(ratios.mean()), float(ratios.std())
    finding.stack, finding.layer, finding.expert = summary.stack, summary.layer, summary.expert
    finding.module, finding.parameter = summary.module, summary.parameter
    finding.score, finding.threshold = (float(ratios[index]) - mean) / std, sigma
    finding.rule = {"sigma": sigma, "scope": "the ratios of one matrix"}
    finding.extra = {
        "role": summary.role,
        "ratio": float(ratios[index]),
        "mean_ratio": mean,
        "std_ratio": std,
        "rank": rank,
    }
    if rank == 1:
        top = torch.topk(ratios, min(TOP, len(ratios)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        finding.extra["top"] = [[place, ratio] for place, ratio in pairs]
    return finding
