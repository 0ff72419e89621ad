"""Dims: which of them stand out in the residual stream, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from outlierscope.reporting.page.parts import (
    COLOURS,
    MOST_DIMS,
    SCALE,
    Figure,
    Table,
    axis,
    curve,
    layer_axis,
    map_height,
    stack_prefix,
)
from outlierscope.stats.extreme_dims import ExtremeDims

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.sites import Site
    from outlierscope.scanning.scan import Scan

STRIP = 256
"""Cells of the strip of all dims; of wider streams several dims share a cell, which shows their largest."""


def dim_figures(scan: Scan, stack: str, found: list[tuple[Site, Any]]) -> list[Figure]:
    """Maps of magnitudes and means, and how often dims are extreme, of one stack's sites with their moments."""
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
            "yaxis": layer_axis(len(layers)),
            "height": map_height(len(layers)),
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
            curve(
                f"dim {dim}",
                layers,
                shares[:, dim].tolist(),
                colour,
                f"layer %{{x}}: %{{y:.1%}} of tokens (dim {dim})",
            )
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
