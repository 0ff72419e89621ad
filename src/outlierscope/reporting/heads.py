"""Heads in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.criteria.attention import Sink
from outlierscope.criteria.attention_summary import summarize_attention
from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.scanning.findings import from_table

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan


def head_lines(scan: Scan) -> list[str]:
    """How many heads do nothing, on which tokens, and whether that is usual."""
    if "attention" not in scan.manifest["settings"]["only"]:
        return []
    criteria = choose_criteria(("attention",), scan.manifest["settings"]["thresholds"])
    sink = next(criterion for criterion in criteria if isinstance(criterion, Sink))
    summaries = summarize_attention(scan.evidence, from_table(scan.findings), sink)
    lines = [line for summary in summaries for line in summary.lines()]
    if lines:
        return lines
    reasons = [row["why"] for row in scan.manifest["not_observed"] if row["what"] in ("sink", "no_op_head")]
    return [f"not judged: {reasons[0]}" if reasons else "no attention was observed"]
