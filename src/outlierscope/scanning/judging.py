"""Applying criteria to what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.criteria.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Criterion, Evidence, NotApplied


def judge(criteria: Iterable[Criterion], evidence: Evidence) -> tuple[list[Finding], list[NotApplied]]:
    """The findings of all criteria, and what could not be judged."""
    findings: list[Finding] = []
    not_applied: list[NotApplied] = []
    for criterion in criteria:
        for result in criterion.findings(evidence):
            if isinstance(result, Finding):
                findings.append(result)
            else:
                not_applied.append(result)
    return findings, not_applied


def describe_criteria(criteria: Iterable[Criterion]) -> dict[str, dict[str, Any]]:
    """Thresholds and source of each criterion, for ``scan.json``."""
    return {criterion.name: vars(criterion) | {"source": criterion.source} for criterion in criteria}
