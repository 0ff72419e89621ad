"""Events: histograms of six-sigma outliers over dims, tokens and positions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from outlierscope.criteria.event_rows import DELIMITERS
from outlierscope.reporting.page.parts import COLOURS, Figure, Table, axis, label, stack_prefix
from outlierscope.reporting.wording import quoted, share
from outlierscope.stats.events import Events
from outlierscope.stats.positions import bucket_names
from outlierscope.stats.rules import SixSigma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outlierscope.scanning.scan import Scan

MOST_BARS = 24
"""Bars of a histogram over dims or tokens."""


def six_sigma_events(scan: Scan, stack: str) -> list[Events]:
    """Six-sigma events of one stack, of the MLP's output as in the source, else of the residual stream."""
    for name in ("mlp_out", "resid_post"):
        found = [
            stat
            for site in scan.evidence.anatomy.sites(name)
            if site.stack == stack
            for stat in scan.evidence.measurements.at(scan.evidence.anatomy.canonical(site))
            if isinstance(stat, Events) and isinstance(stat.rule, SixSigma) and stat.count
        ]
        if found:
            return found
    return []


def delimiter_share(scan: Scan, stack: str, events: list[Events]) -> list[str]:
    """The share of events on delimiters and on the first position in a sentence; nothing where no class is one."""
    names = scan.evidence.corpus.class_names
    by_class = torch.stack([stat.by_dim_class.sum(0) for stat in events]).sum(0)  # [C]
    total = int(by_class.sum())
    held = sum(int(by_class[index]) for index, name in enumerate(names) if name in DELIMITERS)
    first = sum(int(by_class[index]) for index, name in enumerate(names) if name == "initial")
    if not total or not set(names) & set(DELIMITERS):
        return []
    return [
        f"{stack_prefix(scan, stack)}{share(held / total)} of the six_sigma events are on delimiters and special tokens, "
        f"{share(first / total)} on the first position."
    ]


def event_histograms(scan: Scan, stack: str, events: list[Events]) -> list[Figure]:
    """Histograms of events over dims, tokens and positions."""
    dims: Counter[str] = Counter()
    tokens: Counter[int] = Counter()
    positions = torch.stack([stat.positions for stat in events]).sum(0)  # [BUCKETS]
    for stat in events:
        for dim in stat.by_dim.nonzero().flatten().tolist():
            dims[str(dim)] += int(stat.by_dim[dim])
        for token_id, count in zip(stat.pairs.token_id.tolist(), stat.pairs.count.tolist(), strict=True):
            tokens[token_id] += count
    prefix = f"{stack_prefix(scan, stack)}six_sigma events by "
    figures = [_bars(f"{prefix}dim", "dim", f"events-dims-{stack}", dims.most_common(MOST_BARS), len(dims))]
    named = [
        (quoted(scan.evidence.token_text(token_id), token_id), count)
        for token_id, count in tokens.most_common(MOST_BARS)
        if token_id >= 0
    ]
    if named:
        figures.append(_bars(f"{prefix}token", "token", f"events-tokens-{stack}", named, len(tokens)))
    last = int(positions.nonzero().max())
    by_position = [
        (name, count / _width(name))
        for name, count in zip(bucket_names()[: last + 1], positions[: last + 1].tolist(), strict=True)
    ]
    figures.append(
        _bars(f"{prefix}position", "position", f"events-positions-{stack}", by_position, len(by_position))
    )
    return figures


def _bars(title: str, noun: str, name: str, bars: Sequence[tuple[str, float]], total: int) -> Figure:
    places = list(range(len(bars)))
    step = max(1, len(bars) // 24)
    which = f"the {len(bars)} most frequent of {total:,}" if total > len(bars) else "all that have any"
    return Figure(
        title=title,
        explanation=(
            f"Values further than 6 std from the mean of their tensor, over all layers; by {noun}, {which}"
            + (
                " (one by one up to 63, then mean counts of whole powers of two)"
                if noun == "position"
                else ""
            )
            + ". After Bondarenko et al. 2023, figure 1."
        ),
        alternative=f"Histogram of {len(bars)} bars; the highest is {max(bars, key=lambda bar: bar[1])[0]}.",
        traces=[
            {
                "type": "bar",
                "x": places,
                "y": [count for _, count in bars],
                "marker": {"color": COLOURS[0]},
                "customdata": [label(text) for text, _ in bars],
                "hovertemplate": f"{noun} %{{customdata}}: %{{y:,.4~g}} events<extra></extra>",
            }
        ],
        layout={
            "xaxis": axis(
                noun,
                tickvals=places[::step],
                ticktext=[label(text) for text, _ in bars[::step]],
                tickangle=-60,
            ),
            "yaxis": axis("events"),
            "showlegend": False,
        },
        table=Table(name, title, (noun, "events"), list(bars)),
    )


def _width(bucket: str) -> int:
    """Positions that a bucket holds: 1 for ``"5"``, 64 for ``"64-127"``."""
    first, _, last = bucket.partition("-")
    return int(last or first) - int(first) + 1
