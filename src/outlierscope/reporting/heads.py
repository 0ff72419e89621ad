"""Heads in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.criteria.attention_summary import summarize_attention
from outlierscope.scanning.findings import from_table

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan


def head_lines(scan: Scan) -> list[str]:
    """How many heads do nothing, on which tokens, and whether that is usual."""
    if "attention" not in scan.manifest["settings"]["only"]:
        return []
    summaries = summarize_attention(scan.evidence, from_table(scan.findings))
    lines = [line for summary in summaries for line in summary.lines()]
    if lines:
        return lines
    reasons = [row["why"] for row in scan.manifest["not_observed"] if row["what"] in ("sink", "no_op_head")]
    return [f"not judged: {reasons[0]}" if reasons else "no attention was observed"]
