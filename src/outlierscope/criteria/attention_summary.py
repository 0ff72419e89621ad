"""What the first screen says about attention: how many heads are sinks or no-ops; is that usual?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from outlierscope.criteria.attention import Sink
from outlierscope.model.sites import PATTERNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Finding


FEW = 0.1
"""Share of heads below which sinks are called few (ours)."""


@dataclass(frozen=True)
class AttentionSummary:
    """The heads of one stack, or those of its cross attention.

    Attributes:
        stack: name of the stack.
        site: ``pattern`` or ``cross_pattern``.
        heads: heads whose sinks were judged.
        sinks: heads that the rule ``sink`` reports.
        no_ops: heads that the rule ``no_op_head`` reports.
        first_token_rate: share of (layer, head) with a sink on the first token, averaged over sequences, at
            epsilon 0.3 (Gu et al. 2024); ``None`` when nothing was judged.
        strongest: the sink rows with the largest mean alpha, at most three.
        usual: whether that is usual, in words that name the source; empty where no source tells.
    """

    stack: str
    site: str
    heads: int
    sinks: int
    no_ops: int
    first_token_rate: float | None
    strongest: tuple[Finding, ...]
    usual: str


def summarize_attention(
    evidence: Evidence, findings: Sequence[Finding], sink: Sink | None = None
) -> list[AttentionSummary]:
    """One summary per stack and kind of attention that was judged.

    Args:
        evidence: of the scan.
        findings: rows of all criteria.
        sink: the criterion as it was applied; with the usual thresholds if not given.
    """
    sink = sink or Sink()
    judged = sink.judged(evidence)
    summaries = []
    for stack, name in product(evidence.anatomy.stacks, PATTERNS):
        stats = {
            site: judged[site]
            for site in evidence.anatomy.sites(name)
            if site.stack == stack and site in judged
        }
        rows = [row for row in findings if (row.stack, row.site) == (stack, name)]
        sinks = [row for row in rows if row.criterion == "sink"]
        heads = sum(len(stat.largest_alpha) for stat in stats.values())
        rate = None
        if heads:
            first = [
                stat.positions[stat.epsilons.index(sink.epsilon), :, 0].double().sum() / stat.sequences
                for stat in stats.values()
            ]
            rate = float(sum(first)) / heads
        causal = any(stat.whole_windows < stat.sequences for stat in stats.values())
        summaries.append(
            AttentionSummary(
                stack=stack,
                site=name,
                heads=heads,
                sinks=len(sinks),
                no_ops=sum(row.criterion == "no_op_head" for row in rows),
                first_token_rate=rate,
                strongest=tuple(sorted(sinks, key=lambda row: -(row.value or 0.0))[:3]),
                usual=_usual(sinks, heads, rate, causal=causal) if name == "pattern" else "",
            )
        )
    return [summary for summary in summaries if summary.heads]


def _usual(sinks: list[Finding], heads: int, rate: float | None, *, causal: bool) -> str:
    on_first = sum(row.token_class in ("initial", "cls") for row in sinks)
    if causal and len(sinks) < FEW * heads:
        return "few for a decoder: Gu et al. 2024 report 18 % at 60 M parameters, 45 % at 1 B"
    if sinks and len(sinks) < FEW * heads:
        return f"fewer than {FEW:.0%} of the heads: they play no great part here"
    if causal:
        published = (
            f"first-token sink rate {rate or 0:.0%}; Gu et al. 2024: 18 % at 60 M parameters, 45 % at 1 B"
        )
        if 2 * on_first >= len(sinks):
            return f"usual for a decoder: keep the first token in calibration and in serving; {published}"
        return f"usual in number for a decoder, but mostly not on the first token; {published}"
    if not sinks:
        return ""
    if 2 * sum(row.token_class in ("special", "strong_delimiter", "initial", "cls") for row in sinks) >= len(
        sinks
    ):
        return (
            "usual for an encoder: heads that rest on special tokens and delimiters, Bondarenko et al. 2023"
        )
    return (
        f"{len(sinks) / heads:.0%} of the heads, mostly on ordinary tokens, which is not usual for an encoder"
    )
