"""Heads: what each one attends to, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.reporting.curves import head_rows
from outlierscope.reporting.heads import attention_summaries, head_lines
from outlierscope.reporting.page.parts import (
    COLOURS,
    SCALE,
    Figure,
    Section,
    Table,
    axis,
    label,
    layer_axis,
    map_height,
    stack_prefix,
)
from outlierscope.reporting.wording import positions_of

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan

Row = dict[str, Any]

MAPS = (
    (
        "mean_largest_alpha",
        "sink mass",
        "Alpha of the key that receives most, averaged over sequences: how much of a head's attention rests on one token "
        "(Gu et al. 2024, section 3). Above 0.3 in half of the sequences a head counts as a sink head.",
    ),
    (
        "idle_share",
        "no-op score",
        "Share of queries for which the head attends mostly to tokens of low information and writes next to nothing "
        "(Bondarenko et al. 2023, section 3; thresholds ours). From 0.5 on a head may count as a no-op head.",
    ),
    (
        "normalised_entropy",
        "entropy",
        "Entropy of the attention over that of even attention: 1 looks everywhere alike, 0 at a single token.",
    ),
)
"""Figure, name and explanation of the maps of layers and heads."""


def heads_section(scan: Scan) -> Section | None:
    """Maps of layers and heads, and where their attention goes; ``None`` where no attention was observed."""
    rows = head_rows(scan, more=("idle_share", "normalised_entropy", "mass_by_class"))
    sentences = [line[0].upper() + line[1:] + "." for line in head_lines(scan, attention_summaries(scan))]
    if not rows:
        return Section("heads", "Heads", sentences) if sentences else None
    parts: list[Figure | Table] = []
    for stack, site in dict.fromkeys((row["stack"], row["site"]) for row in rows):
        found = [row for row in rows if (row["stack"], row["site"]) == (stack, site)]
        kind = "cross attention, " if site == "cross_pattern" else ""
        prefix = f"{stack_prefix(scan, stack)}{kind}"
        parts += [
            _map(prefix, f"{stack}-{site}", found, *which)
            for which in MAPS
            if any(row[which[0]] is not None for row in found)
        ]
        parts.append(_classes(prefix, f"{stack}-{site}", found))
    return Section("heads", "Heads: what attention rests on", sentences, parts)


def _map(prefix: str, name: str, rows: list[Row], figure: str, title: str, explanation: str) -> Figure:
    layers = sorted({row["layer"] for row in rows})
    heads = max(row["head"] for row in rows) + 1
    values: list[list[float | None]] = [[None] * heads for _ in layers]
    for row in rows:
        values[layers.index(row["layer"])][row["head"]] = row[figure]
    known = [row for row in rows if row[figure] is not None]
    peak = max(known, key=lambda row: row[figure])
    return Figure(
        title=f"{prefix}{title} of every head",
        explanation=explanation,
        alternative=f"Map of {len(layers)} layers by {heads} heads; largest {peak[figure]:.2f} in "
        f"layer {peak['layer']} head {peak['head']}.",
        traces=[
            {
                "type": "heatmap",
                "z": values,
                "x": list(range(heads)),
                "y": layers,
                "zmin": 0,
                "zmax": 1,
                "colorscale": SCALE,
                "hovertemplate": "layer %{y} head %{x}: %{z:.3f}<extra></extra>",
                "xgap": 1,
                "ygap": 1,
            }
        ],
        layout={
            "xaxis": axis("head", dtick=1 if heads <= 16 else None),
            "yaxis": layer_axis(len(layers)),
            "height": map_height(len(layers)),
        },
        table=Table.of(
            f"heads-{name}-{title.replace(' ', '-')}",
            f"{title[0].upper()}{title[1:]} by head",
            [{"layer": row["layer"], "head": row["head"], figure: row[figure]} for row in rows],
        ),
    )


def _classes(prefix: str, name: str, rows: list[Row]) -> Figure:
    """Attention mass by token class, mean over the heads of a layer."""
    layers = sorted({row["layer"] for row in rows})
    shares: dict[str, list[float]] = {}
    for layer in layers:
        found = [row["mass_by_class"] for row in rows if row["layer"] == layer]
        for kind in found[0]:
            shares.setdefault(kind, []).append(sum(masses[kind] for masses in found) / len(found))
    used = {kind: values for kind, values in shares.items() if max(values) > 0}
    return Figure(
        title=f"{prefix}attention by class of token",
        explanation=(
            "Where a layer's attention goes, averaged over its heads: the first position, special "
            "tokens, delimiters, and the rest "
            "(classes as in docs/rules.md)."
        ),
        alternative=f"Stacked bars over {len(layers)} layers for {len(used)} classes of tokens.",
        traces=[
            {
                "type": "bar",
                "name": label(positions_of(kind).replace("_", " ")),
                "x": layers,
                "y": values,
                "marker": {"color": COLOURS[index % len(COLOURS)]},
                "hovertemplate": "layer %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
            }
            for index, (kind, values) in enumerate(used.items())
        ],
        layout={
            "barmode": "stack",
            "xaxis": axis("layer"),
            "yaxis": axis("share of attention", range=[0, 1]),
        },
        table=Table(
            f"classes-{name}",
            "Share of attention by class of token",
            ("layer", *used),
            [(layer, *(values[index] for values in used.values())) for index, layer in enumerate(layers)],
        ),
    )
