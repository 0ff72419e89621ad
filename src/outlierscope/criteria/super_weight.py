"""super_weight_candidate: single entries of down projections that may carry a model's largest activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.located import sampling, strongest
from outlierscope.model.sites import Site
from outlierscope.stats.extremes import Extremes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.criteria.located import Located
    from outlierscope.weights.summary import MatrixSummary


@dataclass(frozen=True)
class SuperWeightCandidate:
    """W[row, column] of a down projection whose input peaks at ``column`` and whose output peaks at ``row``.

    Source: Yu et al. 2024, "The Super Weight in Large Language Models", section 3.1: per layer the argmax of
    the magnitudes of the down projection's input (column) and of its output (row), where both exceed 50.
    Published: LLaMA-7B layer 2 [3968, 7003], LLaMA-2-7B layer 1 [2533, 7890], Mistral-7B layer 1 [2070,
    7310]. Only a candidate: that the model depends on it shows when it is zeroed, which a scan does not do.
    Ours: the argmax over all tokens read, not over one prompt, and the output is ``mlp_out``, which in
    sandwich blocks stands after a norm.

    Row key: stack, layer. ``value`` is the input at the column, ``score`` the smaller of both magnitudes
    (each must pass the threshold); ``extra`` has ``output`` (the value at the row), ``same_token`` (whether
    both peaks are at one token) and, where the entry is the largest of its column, ``weight`` (W[row, column]
    itself).
    """

    name: ClassVar[str] = "super_weight_candidate"
    kind: ClassVar[Kind] = "weight"
    source: ClassVar[str] = "Yu et al. 2024, section 3.1"

    magnitude: float = 50.0

    def requires(self) -> Iterable[Requirement]:
        """The located extremes of the down projections' inputs and outputs."""
        return (Requirement(("mlp_post", "mlp_out"), Extremes),)

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest score first; ``NotApplied`` when no layer had both sites measured."""
        found: list[Finding] = []
        measured = False
        for stack in evidence.anatomy.stacks.values():
            for layer in stack.layers:
                read, written = (Site(stack.name, layer.index, name) for name in ("mlp_post", "mlp_out"))
                column, row = strongest(evidence, read), strongest(evidence, written)
                if column is None or row is None:
                    continue
                measured = True
                if min(abs(column.value), abs(row.value)) > self.magnitude:
                    found.append(self._row(evidence, read, column, row, layer.layout))
        if not measured:
            return [NotApplied(self.name, "no layer had both mlp_post and mlp_out measured")]
        return sorted(found, key=lambda finding: -(finding.score or 0.0))

    def _row(self, evidence: Evidence, read: Site, column: Located, row: Located, layout: str) -> Finding:
        extra: dict[str, Any] = {
            "output": row.value,
            "same_token": (column.sequence, column.position) == (row.sequence, row.position),
            "layout": layout,
        }
        down = _down_projection(evidence, read)
        if down is not None and int(down.column_argmax[column.dim]) == row.dim:
            extra["weight"] = float(down.column_extreme[column.dim])
        finding = Finding(
            self.name,
            self.kind,
            stack=read.stack,
            layer=read.layer,
            site=read.name,
            module=evidence.module(read),
            parameter=down.parameter if down is not None else None,
            row=row.dim,
            score=min(abs(column.value), abs(row.value)),
            threshold=self.magnitude,
            rule={"magnitude": self.magnitude, **sampling(evidence, dear=False)},
            extra=extra,
        )
        return column.place(finding, evidence)


def _down_projection(evidence: Evidence, site: Site) -> MatrixSummary | None:
    """The layer's own down projection; ``None`` where it has none or has several (experts)."""
    found = [
        summary
        for summary in evidence.weights
        if summary.role == "down" and (summary.stack, summary.layer) == (site.stack, site.layer)
    ]
    return found[0] if len(found) == 1 else None
