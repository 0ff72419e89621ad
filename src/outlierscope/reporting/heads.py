"""Heads in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.criteria.attention import Sink
from outlierscope.criteria.attention_summary import AttentionSummary, summarize_attention
from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.reporting.outliers import figures
from outlierscope.reporting.wording import counted, position_of, quoted
from outlierscope.scanning.findings import from_table

if TYPE_CHECKING:
    from outlierscope.criteria.finding import Finding
    from outlierscope.scanning.scan import Scan


def head_lines(scan: Scan, summaries: list[AttentionSummary]) -> list[str]:
    """How many heads do nothing, on which tokens, and whether that is usual."""
    if "attention" not in scan.manifest["settings"]["only"]:
        return []
    several = len(summaries) > 1
    lines = [line for summary in summaries for line in sentences(summary, named=several)]
    if lines:
        return lines
    reasons = [row["why"] for row in scan.manifest["not_observed"] if row["what"] in ("sink", "no_op_head")]
    return [f"not judged: {reasons[0]}" if reasons else "no attention was observed"]


def sentences(summary: AttentionSummary, *, named: bool = False) -> list[str]:
    """One stack's heads in sentences, which name the stack where there are several."""
    where = (
        f"{summary.stack}'s cross attention: " if summary.site == "cross_pattern" else f"{summary.stack}: "
    )
    lines = [
        (where if named else "")
        + f"attention sinks: {summary.sinks} of {counted(summary.heads, 'head')}; no-op heads: {summary.no_ops}"
        + (f" ({summary.usual})" if summary.usual else "")
    ]
    if summary.strongest:
        heads = [
            f"layer {row.layer} head {row.head} gives {row.value or 0:.2f} to {_key(row)}"
            for row in summary.strongest
        ]
        lines.append("strongest: " + ", ".join(heads))
    return lines


def _key(row: Finding) -> str:
    if row.token is not None or row.token_id is not None:
        return quoted(row.token, row.token_id)
    return position_of(row.token_class) if row.token_class else "one key"


def attention_figures(summaries: list[AttentionSummary]) -> list[dict[str, Any]]:
    """The same in numbers, one entry per stack and kind of attention."""
    return [
        {
            "stack": summary.stack,
            "site": summary.site,
            "heads": summary.heads,
            "sink_heads": summary.sinks,
            "no_op_heads": summary.no_ops,
            "first_token_sink_rate": summary.first_token_rate,
            "strongest": [figures(vars(row)) for row in summary.strongest],
        }
        for summary in summaries
    ]


def attention_summaries(scan: Scan) -> list[AttentionSummary]:
    """One per stack and kind of attention that was asked for and judged."""
    if "attention" not in scan.manifest["settings"]["only"]:
        return []
    criteria = choose_criteria(("attention",), scan.manifest["settings"]["thresholds"])
    sink = next(criterion for criterion in criteria if isinstance(criterion, Sink))
    return summarize_attention(scan.evidence, from_table(scan.findings), sink)
