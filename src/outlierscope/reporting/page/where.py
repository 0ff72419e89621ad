"""Where: in which dims, on which tokens and at which positions outliers stand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.criteria.event_rows import DELIMITERS
from outlierscope.reporting.page.parts import (
    COLOURS,
    SCALE,
    Figure,
    Section,
    Table,
    axis,
    label,
    stack_prefix,
)
from outlierscope.reporting.wording import positions_of, quoted, share
from outlierscope.scanning.findings import table_rows
from outlierscope.stats.events import Events
from outlierscope.stats.extreme_dims import ExtremeDims
from outlierscope.stats.positions import bucket_names
from outlierscope.stats.rules import SixSigma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from outlierscope.model.sites import Site
    from outlierscope.scanning.scan import Scan

MOST_DIMS = 24
"""Dims that a heat map shows each by itself: those that stand out most in any layer."""

STRIP = 256
"""Cells of the strip of all dims; of wider streams several dims share a cell, which shows their largest."""

MOST_BARS = 24
"""Bars of a histogram over dims or tokens."""

MOST_CONTEXTS = 3
"""Example contexts of each rule."""


def where_section(scan: Scan) -> Section | None:
    """Maps of dims and histograms of events; ``None`` where no activations were observed."""
    parts: list[Figure | Table] = []
    sentences = []
    for stack in scan.evidence.anatomy.stacks:
        streams = [
            (site, scan.evidence.stat(site, "moments"))
            for site in scan.evidence.anatomy.sites("resid_post")
            if site.stack == stack
        ]
        found = [(site, moments) for site, moments in streams if moments is not None and moments.count]
        if found:
            parts += _dims(scan, stack, found)
        events = _events(scan, stack)
        if events:
            parts += _histograms(scan, stack, events)
            sentences += _delimiter_share(scan, stack, events)
    contexts = _contexts(scan)
    if contexts is not None:
        parts.append(contexts)
    return Section("where", "Where: dims, tokens, positions", sentences, parts) if parts else None


def _dims(scan: Scan, stack: str, found: list[tuple[Site, Any]]) -> list[Figure]:
    layers = [int(site.layer or 0) for site, _ in found]
    absmax = torch.stack([moments.absmax() for _, moments in found])  # [L, d]
    means = torch.stack([moments.mean for _, moments in found])  # [L, d]
    usual = absmax.median(1, keepdim=True).values.clamp_min(1e-30)  # [L, 1]
    dims = sorted((absmax / usual).amax(0).topk(min(MOST_DIMS, absmax.shape[1])).indices.tolist())
    prefix = stack_prefix(scan, stack)
    named = {"xaxis": axis("dim", tickvals=list(range(len(dims))), ticktext=[str(dim) for dim in dims])}
    figures = [
        _map(
            f"{prefix}largest magnitude by layer and dim (resid_post)",
            f"The {len(dims)} dims of the residual stream that stand out most from the median dim of "
            "their layer; logarithmic colours.",
            f"dims-{stack}",
            layers,
            [str(dim) for dim in dims],
            absmax[:, dims].clamp_min(1e-12).log10(),
            absmax[:, dims],
            named,
        ),
        _strip(f"{prefix}all dims at a glance (resid_post)", f"strip-{stack}", layers, absmax),
        _map(
            f"{prefix}mean vector by layer (resid_post)",
            "Mean over all tokens of the same dims; a mean far from 0 may be what every token carries, or "
            "few tokens with very large values: compare with the map above (Luo, Kulmizev & Mao 2021).",
            f"means-{stack}",
            layers,
            [str(dim) for dim in dims],
            means[:, dims],
            means[:, dims],
            named,
            diverging=True,
        ),
    ]
    extremes = [(site, scan.evidence.stat(site, ExtremeDims().name)) for site, _ in found]
    known = [(int(site.layer or 0), stat) for site, stat in extremes if stat is not None and len(stat.argmax)]
    if known:
        figures += [_extreme(prefix, stack, known, which) for which in ("argmax", "argmin")]
    return figures


def _map(
    title: str,
    explanation: str,
    name: str,
    layers: list[int],
    dims: list[str],
    drawn: Tensor,
    values: Tensor,
    layout: dict[str, Any],
    *,
    diverging: bool = False,
) -> Figure:
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": drawn.tolist(),
        "y": layers,
        "customdata": [
            [f"layer {layer}, dim {dim}: {value:.4g}" for dim, value in zip(dims, row, strict=True)]
            for layer, row in zip(layers, values.tolist(), strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    if diverging:
        end = float(values.abs().max()) or 1.0
        trace |= {"colorscale": "RdBu", "zmin": -end, "zmax": end}
    else:
        # Dims that are next to nothing would take all the colours.
        low = max(float(drawn.min()), float(drawn.median()) - 1)
        high = max(float(drawn.max()), low + 0.1)
        ticks = [low + (high - low) * step / 4 for step in range(5)]
        trace |= {
            "colorscale": SCALE,
            "zmin": low,
            "zmax": high,
            "colorbar": {
                "tickvals": ticks,
                "ticktext": [f"{10.0**tick:.2g}" if tick < 3 else f"{10.0**tick:,.0f}" for tick in ticks],
            },
        }
    return Figure(
        title=title,
        explanation=explanation,
        alternative=f"Heat map of {len(layers)} layers by {len(dims)} cells of dims.",
        traces=[trace],
        layout={
            "yaxis": axis("layer", dtick=1 if len(layers) <= 16 else None),
            "height": min(260 + 12 * len(layers), 700),
            **layout,
        },
        table=Table(
            name,
            title,
            ("layer", *(f"dim {dim}" for dim in dims)),
            [(layer, *row) for layer, row in zip(layers, values.tolist(), strict=True)],
        ),
    )


def _strip(title: str, name: str, layers: list[int], absmax: Tensor) -> Figure:
    width = absmax.shape[1]
    each = -(-width // STRIP)
    starts = range(0, width, each)
    values = torch.stack([absmax[:, start : start + each].amax(1) for start in starts], 1)  # [L, cells]
    names = [str(start) if each == 1 else f"{start}-{min(start + each, width) - 1}" for start in starts]
    ticks = list(range(0, len(names), max(1, len(names) // 8)))
    cells = "one dim" if each == 1 else f"{each} neighbouring dims, of which the largest shows"
    return _map(
        title,
        f"All {width:,} dims; a cell is {cells}. Logarithmic colours: lines from bottom to top are "
        "dims that stand out everywhere.",
        name,
        layers,
        names,
        values.clamp_min(1e-12).log10(),
        values,
        {"xaxis": axis("dim", tickvals=ticks, ticktext=[names[tick].split("-")[0] for tick in ticks])},
    )


def _extreme(prefix: str, stack: str, known: list[tuple[int, ExtremeDims]], which: str) -> Figure:
    counts = torch.stack([getattr(stat, which) for _, stat in known]).double()  # [L, d]
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    dims = shares.amax(0).topk(min(len(COLOURS), shares.shape[1])).indices.tolist()
    layers = [layer for layer, _ in known]
    word = "largest" if which == "argmax" else "smallest"
    return Figure(
        title=f"{prefix}how often a dim is the {word} of its token's vector (resid_post)",
        explanation=(
            f"Share of tokens whose {word} value is at that dim. A dim that is it for half of all "
            "tokens in all layers is an extreme "
            "neuron (Luo, Kulmizev & Mao 2021, section 3)."
        ),
        alternative=f"Curves over {len(layers)} layers for {len(dims)} dims.",
        traces=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"dim {dim}",
                "x": layers,
                "y": shares[:, dim].tolist(),
                "line": {"color": colour, "width": 2},
                "hovertemplate": f"layer %{{x}}: %{{y:.1%}} of tokens (dim {dim})<extra></extra>",
            }
            for dim, colour in zip(dims, COLOURS, strict=False)
        ],
        layout={
            "xaxis": axis("layer"),
            "yaxis": axis("share of tokens", range=[0, 1.03], tickformat=".0%"),
        },
        table=Table(
            f"{which}-{stack}",
            f"Share of tokens whose {word} value is at a dim",
            ("layer", *(f"dim {dim}" for dim in dims)),
            [(layer, *shares[index, dims].tolist()) for index, layer in enumerate(layers)],
        ),
    )


def _events(scan: Scan, stack: str) -> list[Events]:
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


def _delimiter_share(scan: Scan, stack: str, events: list[Events]) -> list[str]:
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


def _histograms(scan: Scan, stack: str, events: list[Events]) -> list[Figure]:
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


def _contexts(scan: Scan) -> Table | None:
    """The first few findings of each rule that have a context."""
    taken: Counter[str] = Counter()
    rows: list[tuple[Any, ...]] = []
    if scan.findings.column("context").null_count < scan.findings.num_rows:
        for row in table_rows(scan.findings):
            if row["context"] and taken[row["criterion"]] < MOST_CONTEXTS:
                taken[row["criterion"]] += 1
                known = row["token_id"] is not None
                token = quoted(row["token"], row["token_id"]) if known else positions_of(row["token_class"])
                rows.append((row["criterion"], row["layer"], row["dim"], token, row["value"], row["context"]))
    columns = ("criterion", "layer", "dim", "token", "value", "context")
    return Table("contexts", "Where the strongest stand, in their text", columns, rows) if rows else None
