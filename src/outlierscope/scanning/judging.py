"""Applying criteria to what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.criteria.criterion import NotApplied
from outlierscope.criteria.finding import Finding
from outlierscope.model.sites import ALL_SITES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Criterion, Evidence


def judge(criteria: Iterable[Criterion], evidence: Evidence) -> tuple[list[Finding], list[NotApplied]]:
    """The findings of all criteria, and what could not be judged."""
    findings: list[Finding] = []
    not_applied: list[NotApplied] = []
    for criterion in criteria:
        results = list(criterion.findings(evidence))
        reason = None if results else _nothing_measured(criterion, evidence)
        if reason is not None:
            results = [NotApplied(criterion.name, reason)]
        for result in results:
            if isinstance(result, Finding):
                findings.append(result)
            else:
                not_applied.append(result)
    return findings, not_applied


def _nothing_measured(criterion: Criterion, evidence: Evidence) -> str | None:
    """Why a criterion had nothing to look at; ``None`` when it had, or needs none of the pass."""
    requirements = list(criterion.requires())
    anatomy = evidence.anatomy
    if not requirements or any(
        evidence.stat(site, requirement.make().name) is not None
        for requirement in requirements
        for site in anatomy.sites(*requirement.sites)
    ):
        return None
    if criterion.kind == "attention" and anatomy.proved is None:
        return anatomy.reason
    wanted = {name for requirement in requirements for name in requirement.sites}
    names = ", ".join(name for name in ALL_SITES if name in wanted)
    if anatomy.sites(*wanted):
        return f"it looks at {names}, which --sites or --layers leave out"
    reasons = dict.fromkeys(why for site, why in anatomy.missing.items() if site.name in wanted)
    return "; ".join(reasons) or f"no block has any of {names}"


def describe_criteria(criteria: Iterable[Criterion]) -> dict[str, dict[str, Any]]:
    """Thresholds and source of each criterion, for ``scan.json``."""
    return {criterion.name: vars(criterion) | {"source": criterion.source} for criterion in criteria}
