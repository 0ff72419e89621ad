"""Rows of findings about number formats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of
from outlierscope.criteria.located import class_name, sampling, strongest

if TYPE_CHECKING:
    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.linear_inputs import LinearInput
    from outlierscope.criteria.noise import FloatFormat
    from outlierscope.model.sites import Site

NORM_SQUARE = 256.0
"""From this magnitude on its square is beyond float16."""


def range_rows(
    evidence: Evidence, name: str, sites: tuple[str, ...], form: FloatFormat, headroom: float
) -> tuple[list[Finding], float]:
    """Sites within ``headroom`` of the format's end, most severe first, and the largest ratio of any site.

    The ratio is -1 when no site was measured. Sites that share one tensor give one row.
    """
    rows: list[Finding] = []
    largest = -1.0
    seen: set[Site] = set()
    for place in evidence.anatomy.sites(*sites):
        canonical = evidence.anatomy.canonical(place)
        moments = evidence.stat(canonical, "moments")
        if canonical in seen or moments is None:
            continue
        seen.add(canonical)
        site = canonical if canonical.name in sites else place
        nonfinite = int(moments.nonfinite)
        absmax = float(moments.absmax().max()) if int(moments.count) else 0.0
        ratio = math.inf if nonfinite else absmax / form.largest
        largest = max(largest, ratio)
        if ratio * headroom < 1:
            continue
        finding = Finding(
            name,
            "format",
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=evidence.module(site),
            score=ratio,
            threshold=1 / headroom,
            rule={
                "largest": form.largest,
                "headroom": headroom,
                "scope": "largest magnitude over all tokens",
                **sampling(evidence, dear=False),
            },
            extra={
                "predicted": True,
                "word": "fails" if ratio > 1 else "at risk",
                "nonfinite_tokens": nonfinite,
                "square_overflows_float16": absmax >= NORM_SQUARE,
                "modules": evidence.modules(site),
            },
        )
        peak = strongest(evidence, site)
        rows.append(peak.place(finding, evidence) if peak else finding)
    return sorted(rows, key=lambda row: -(row.score or 0.0)), largest


def input_rows(
    evidence: Evidence,
    inputs: list[LinearInput],
    word: str,
    total_damage: float,
    rule: dict[str, Any],
    threshold: float,
) -> list[Finding]:
    """One row per linear input, in the given order."""
    rows = []
    for rank, item in enumerate(inputs, start=1):
        site = item.site
        modules = evidence.modules(site)
        finding = Finding(
            item.scheme,
            "format",
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=modules[0] if modules else None,
            score=item.damage,
            threshold=threshold,
            rule={**rule, "scope": "inputs of linear layers", **sampling(evidence, dear=True)},
            extra={
                "predicted": True,
                "word": word,
                "rank": rank,
                "damage_share": item.damage / total_damage if total_damage else 0.0,
                "sqnr_decibel": item.sqnr if math.isfinite(item.sqnr) else None,
                "step": item.step,
                "modules": modules,
                "range_without_class": range_without_class(evidence, site),
            },
        )
        peak = strongest(evidence, site)
        if peak:
            peak.place(finding, evidence)
            finding.head = head_of(evidence, site, peak.dim)
        rows.append(finding)
    return rows


def range_without_class(evidence: Evidence, site: Site) -> dict[str, float]:
    """Largest magnitude of the site when one token class is left out, by the class left out.

    Tells whether leaving a class of tokens out of the calibration would narrow the range.
    """
    extremes = evidence.stat(site, "extremes")
    if extremes is None or not len(extremes.value):
        return {}
    by_class = extremes.value.abs().masked_fill(extremes.sequence < 0, 0.0).amax(1)  # [C]
    seen = (extremes.sequence >= 0).any(1)  # [C]
    return {
        class_name(evidence, index): max(
            (float(by_class[other]) for other in range(len(by_class)) if other != index and seen[other]),
            default=0.0,
        )
        for index in range(len(by_class))
        if seen[index]
    }
