"""weight_column and weight_row: columns and rows of a weight matrix with one entry far above their others."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

import torch

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of
from outlierscope.model.sites import Site
from outlierscope.weights.summary import TOP, MatrixSummary, RatioFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from outlierscope.criteria.criterion import Criterion, Evidence
    from outlierscope.criteria.finding import Kind

READS = {
    "q": "attn_in", "k": "attn_in", "v": "attn_in", "qkv": "attn_in", "o": "z", "cross_o": "cross_z",
    "gate": "mlp_in", "up": "mlp_in", "gate_up": "mlp_in", "down": "mlp_post",
}  # fmt: skip
"""Role of a matrix -> site that it reads: what its columns stand for, where the block has that site."""

WRITES = {
    "q": "q",
    "k": "k",
    "v": "v",
    "o": "attn_out",
    "cross_q": "cross_q",
    "cross_k": "cross_k",
    "cross_v": "cross_v",
    "cross_o": "cross_out",
    "gate": "mlp_gate",
    "up": "mlp_up",
    "down": "mlp_out",
}
"""Role of a matrix -> site that its rows stand for; those of fused matrices belong to several."""


@dataclass(frozen=True)
class WeightColumn:
    """Columns j of a matrix whose r_j is more than 6 std above the mean of r in that matrix.

    Source: An et al. 2025, "Systematic Outliers in Large Language Models": r_j = max_i abs(W[i, j]) /
    mean_i abs(W[i, j]). The source gives no threshold; ours is ``sigma``, with the mean and the unbiased
    standard deviation of r over the columns of the matrix. Among n numbers none is further than (n - 1) /
    sqrt(n) standard deviations from their mean, so narrow matrices cannot be judged.

    Row key: ``parameter``, ``expert``, ``dim``. ``dim`` and ``row`` count from the beginning of the parameter's
    matrix [out, in] (of the expert's own in a mixture), also where only a part of it was judged. ``score`` is in
    standard deviations, ``value`` the largest entry of the column, ``row`` where it is; ``extra`` has ``ratio``
    (r_j itself), ``mean_ratio``, ``std_ratio``, the ``rank`` in the matrix from 1, and at rank 1 ``top``, the
    largest ratios as [column, r] pairs; ``stored``, the tensor's name in the files, where those were read; and
    ``part_rows`` or ``part_columns``, first and last + 1, where only those were judged, being a matrix of their
    own (gate in gate and up).
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
        return _judge_all(self.name, evidence, self.sigma, columns_of, self._row)

    def _row(self, summary: MatrixSummary, evidence: Evidence, at: int, column: int) -> Finding:
        site = READS.get(summary.role)
        head = None
        if site is not None and summary.layer is not None:
            head = head_of(evidence, Site(summary.stack, summary.layer, site), column)
        return Finding(
            self.name,
            self.kind,
            site=site,
            dim=_first(summary.columns) + column,
            row=_first(summary.rows) + int(summary.column_argmax[at]),
            head=head,
            value=float(summary.column_extreme[at]),
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
        return _judge_all(self.name, evidence, self.sigma, rows_of, self._row)

    def _row(self, summary: MatrixSummary, _evidence: Evidence, _at: int, row: int) -> Finding:
        return Finding(self.name, self.kind, site=WRITES.get(summary.role), row=_first(summary.rows) + row)


@dataclass(frozen=True)
class Ratios:
    """The ratios of the columns, or of the rows, of one matrix.

    Attributes:
        values: [kept] float32.
        index: [kept] int64, whose they are; empty where all are kept.
        figures: of all of them, kept or not.
        first: of the first column or row in the parameter's matrix.
    """

    values: Tensor
    index: Tensor
    figures: RatioFigures
    first: int

    def whose(self, at: int) -> int:
        """Column or row of what is judged, from its place among those kept."""
        return int(self.index[at]) if len(self.index) else at

    def outlying(self, sigma: float) -> list[int]:
        """Places of the ratios more than ``sigma`` standard deviations above the mean, the largest first.

        >>> values = torch.tensor([1.0] * 50 + [9.0, 1.0])
        >>> Ratios(values, torch.empty(0), RatioFigures.of(values), 0).outlying(6.0)
        [50]
        """
        values = self.values.double()
        above = (values > self.figures.mean + sigma * self.figures.std).nonzero()[:, 0].tolist()
        return sorted(above, key=lambda at: (-float(values[at]), at))

    def top(self) -> list[list[int | float]]:
        """The largest ratios as [column or row, ratio] pairs."""
        largest = torch.topk(self.values.double(), min(TOP, len(self.values)))
        pairs = zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        return [[self.first + self.whose(at), ratio] for at, ratio in pairs]


def columns_of(summary: MatrixSummary) -> Ratios | None:
    """Ratios of a matrix's columns; ``None`` for a norm."""
    if summary.column_figures is None:
        return None
    first = _first(summary.columns)
    return Ratios(summary.column_ratio, summary.column_index, summary.column_figures, first)


def rows_of(summary: MatrixSummary) -> Ratios | None:
    """Ratios of a matrix's rows; ``None`` for a norm."""
    if summary.row_figures is None:
        return None
    return Ratios(summary.row_ratio, summary.row_index, summary.row_figures, _first(summary.rows))


def kept_sigma(criteria: Iterable[Criterion]) -> float:
    """How many standard deviations above the mean the lowest ratio is that one of the criteria may name."""
    return min((item.sigma for item in criteria if isinstance(item, (WeightColumn, WeightRow))), default=inf)


def _first(span: tuple[int, int] | None) -> int:
    return span[0] if span is not None else 0


def _judge_all(
    name: str,
    evidence: Evidence,
    sigma: float,
    ratios_of: Callable[[MatrixSummary], Ratios | None],
    make_row: Callable[[MatrixSummary, Evidence, int, int], Finding],
) -> list[Finding | NotApplied]:
    found: list[Finding] = []
    matrices = narrow = 0
    rule = {"sigma": sigma, "scope": "the ratios of one matrix"}
    for summary in evidence.weights:
        ratios = ratios_of(summary)
        if ratios is None:
            continue
        matrices += 1
        if (ratios.figures.count - 1) / ratios.figures.count**0.5 <= sigma:
            narrow += 1
            continue
        for rank, at in enumerate(ratios.outlying(sigma), start=1):
            finding = make_row(summary, evidence, at, ratios.whose(at))
            finding.rule = rule
            found.append(_complete(finding, summary, ratios, float(ratios.values[at]), rank))
    found.sort(key=lambda finding: -(finding.score or 0.0))
    if narrow:
        reason = (
            f"not enough data: {narrow} of {matrices} matrices are too small for a ratio {sigma:g} std off"
        )
        return [*found, NotApplied(name, reason)]
    return [*found] if matrices else [NotApplied(name, "no weight matrix was summarised")]


def _complete(finding: Finding, summary: MatrixSummary, ratios: Ratios, ratio: float, rank: int) -> Finding:
    figures = ratios.figures
    finding.stack, finding.layer, finding.expert = summary.stack, summary.layer, summary.expert
    finding.module, finding.parameter = summary.module, summary.parameter
    finding.score, finding.threshold = (ratio - figures.mean) / figures.std, finding.rule["sigma"]
    finding.extra = {
        "role": summary.role,
        "ratio": ratio,
        "mean_ratio": figures.mean,
        "std_ratio": figures.std,
        "rank": rank,
    }
    told = {"stored": summary.stored, "part_rows": summary.rows, "part_columns": summary.columns}
    finding.extra |= {name: value for name, value in told.items() if value is not None}
    if rank == 1:
        finding.extra["top"] = ratios.top()
    return finding
