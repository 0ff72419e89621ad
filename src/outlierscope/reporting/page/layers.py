"""Layers: how magnitudes grow and fade from block to block."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from outlierscope.reporting.curves import layer_rows
from outlierscope.reporting.page.parts import (
    COLOURS,
    Figure,
    Section,
    Table,
    axis,
    curve,
    layer_axis,
    stack_prefix,
)
from outlierscope.reporting.wording import counted, number

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan

Row = dict[str, Any]

MAGNITUDES = {
    "top_1": "largest",
    "top_2": "second",
    "top_3": "third",
    "quantile_9999": "99.99 % quantile",
    "median": "median",
}
"""Columns of ``layer_rows`` that are drawn, and what the legend calls them."""

PLACES = {
    "resid_post": "residual stream after each block (resid_post)",
    "mlp_out": "what each MLP adds (mlp_out)",
    "mlp_post": "neurons of each MLP (mlp_post)",
}


def layers_section(scan: Scan) -> Section | None:
    """Curves over the layers; ``None`` where no site was observed."""
    rows = layer_rows(scan)
    if not rows:
        return None
    parts: list[Figure | Table] = []
    for (stack, site), group in groupby(rows, key=lambda row: (row["stack"], row["site"])):
        found = list(group)
        if any(row["top_1"] is not None for row in found):
            parts.append(_magnitudes(scan, stack, site, found))
    for stack, group in groupby(rows, key=lambda row: row["stack"]):
        parts.append(_shape(scan, stack, list(group)))
    return Section("layers", "Layers: where values grow", _sentences(rows), parts)


def _sentences(rows: list[Row]) -> list[str]:
    stream = [row for row in rows if row["site"] == "resid_post" and row["top_1"] is not None]
    if not stream:
        return []
    peak = max(stream, key=lambda row: row["top_1"])
    median = f", {number(peak['top_1'] / peak['median'])} times its median" if peak["median"] else ""
    return [
        f"The residual stream is largest after layer {peak['layer']}: {number(peak['top_1'])} on average{median}. "
        "A gap between the largest values and the median that opens in one layer and stays is how "
        "massive activations show."
    ]


def _magnitudes(scan: Scan, stack: str, site: str, rows: list[Row]) -> Figure:
    x = [row["layer"] for row in rows]
    traces = [
        curve(name, x, [row[figure] for row in rows], colour, f"layer %{{x}}: {name} %{{y:.4g}}", dash)
        for (figure, name), colour, dash in zip(
            MAGNITUDES.items(),
            COLOURS,
            ("solid", "solid", "solid", "dash", "dot"),
            strict=False,
        )
    ]
    peak = max(rows, key=lambda row: row["top_1"] or 0.0)
    return Figure(
        title=f"{stack_prefix(scan, stack)}magnitudes, {PLACES[site]}",
        explanation=(
            f"Largest three, 99.99 % quantile and median of the magnitudes of one sequence, averaged over "
            f"{counted(rows[0]['sampled_sequences'], 'sampled sequence')}; logarithmic scale. "
            "After Sun et al. 2024, figure 4, and An et al. 2025, figure 2."
        ),
        alternative=f"Curves over {len(rows)} layers; the largest value peaks at "
        f"{number(peak['top_1'])} in layer {peak['layer']}.",
        traces=traces,
        layout={
            "xaxis": layer_axis(len(x)),
            "yaxis": axis("magnitude", type="log", exponentformat="power"),
        },
        table=Table.of(
            f"layers-{stack}-{site}",
            f"Magnitudes by layer, {site}",
            [{key: row[key] for key in ("layer", *MAGNITUDES, "mean", "sampled_sequences")} for row in rows],
        ),
    )


def _shape(scan: Scan, stack: str, rows: list[Row]) -> Figure:
    traces: list[dict[str, Any]] = []
    for place, (site, group) in enumerate(groupby(rows, key=lambda row: row["site"])):
        found = list(group)
        for figure, name, dash in (("inf_norm", "inf norm", "solid"), ("kurtosis", "kurtosis", "dot")):
            x, y = [row["layer"] for row in found], [row[figure] for row in found]
            hover = f"layer %{{x}}: {name} of {site} %{{y:.4g}}"
            traces.append(curve(f"{name}, {site}", x, y, COLOURS[place], hover, dash))
    return Figure(
        title=f"{stack_prefix(scan, stack)}inf norm and kurtosis",
        explanation=(
            "Largest magnitude of a sequence (inf norm, solid) and kurtosis (dotted; 3 for a normal distribution, not "
            "excess), averaged over all sequences (Bondarenko et al. 2023, section 5)."
        ),
        alternative="Curves over layers of inf norm and kurtosis at each site.",
        traces=traces,
        layout={
            "xaxis": axis("layer"),
            "yaxis": axis("inf norm, kurtosis", type="log", exponentformat="power"),
        },
        table=Table.of(
            f"shape-{stack}",
            "Inf norm and kurtosis by layer and site",
            [
                {
                    key: row[key]
                    for key in ("site", "layer", "inf_norm", "kurtosis", "channel_kurtosis", "sequences")
                }
                for row in rows
            ],
        ),
    )
