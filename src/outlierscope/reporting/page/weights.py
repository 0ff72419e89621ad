"""Weights: matrices whose columns or rows stand out, and the weights of norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.reporting.curves import weight_rows
from outlierscope.reporting.page.parts import (
    COLOURS,
    MOST_DIMS,
    Figure,
    Section,
    Table,
    axis,
    curve,
    label,
    stack_prefix,
)
from outlierscope.reporting.wording import number

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan
    from outlierscope.weights.summary import MatrixSummary


def weights_section(scan: Scan) -> Section | None:
    """Ratios of every matrix and the weights of norms; ``None`` where weights were not looked at."""
    rows = weight_rows(scan)
    parts: list[Figure | Table] = []
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    for stack in stacks:
        of_stack = [row for row in rows if row["stack"] == stack and row["layer"] is not None]
        parts += [_ratios(scan, stack, noun, of_stack) for noun in ("column", "row") if of_stack]
    parts += _norms(scan)
    if not parts:
        return None
    sentences = []
    if rows:
        peak = max(rows, key=lambda row: row["column_largest"] or 0.0)
        where = f"of layer {peak['layer']}" if peak["layer"] is not None else "outside of the blocks"
        sentences.append(
            f"Strongest column: {number(peak['column_largest'])} times the mean magnitude of its column, in the "
            f"{peak['role']} matrix {where}. Columns and rows that the rules name are in the "
            "findings (weight_column, weight_row)."
        )
    return Section("weights", "Weights", sentences, parts)


def _ratios(scan: Scan, stack: str, noun: str, rows: list[dict[str, Any]]) -> Figure:
    roles = list(dict.fromkeys(row["role"] for row in rows))
    traces = [
        curve(
            label(role),
            [row["layer"] for row in rows if row["role"] == role],
            [row[f"{noun}_largest"] for row in rows if row["role"] == role],
            COLOURS[index % len(COLOURS)],
            f"layer %{{x}}: %{{y:.4g}} ({label(role)})",
            "solid" if index < len(COLOURS) else "dot",
        )
        for index, role in enumerate(roles)
    ]
    columns = ("layer", "role", "parameter", f"{noun}_median", f"{noun}_quantile_99", f"{noun}_largest")
    return Figure(
        title=f"{stack_prefix(scan, stack)}strongest {noun} of each matrix",
        explanation=(
            f"Largest magnitude of a {noun} over its mean magnitude, the largest of each matrix (An et al. 2025). "
            "Matrices by role; median and 99 % quantile stand in the numbers."
        ),
        alternative=f"Curves over layers for {len(roles)} roles of matrices.",
        traces=traces,
        layout={"xaxis": axis("layer"), "yaxis": axis("largest over mean", type="log")},
        table=Table.of(
            f"weights-{stack}-{noun}",
            f"Ratios of {noun}s by matrix",
            [{key: row[key] for key in columns} for row in rows],
        ),
    )


def _norms(scan: Scan) -> list[Figure]:
    """Per stack and width of norms: how many std the weights stand out, at the dims where any does most."""
    groups: dict[tuple[str, int], list[MatrixSummary]] = {}
    for summary in scan.evidence.weights:
        if len(summary.values) > 1 and summary.layer is not None:
            groups.setdefault((summary.stack, len(summary.values)), []).append(summary)
    return [_norm(scan, stack, size, summaries) for (stack, size), summaries in groups.items()]


def _norm(scan: Scan, stack: str, size: int, summaries: list[MatrixSummary]) -> Figure:
    import torch

    values = torch.stack([summary.values for summary in summaries]).double()  # [N, d]
    spread = values.std(1, keepdim=True).clamp_min(1e-30)
    distance = ((values - values.mean(1, keepdim=True)) / spread).nan_to_num()  # [N, d]
    dims = sorted(distance.abs().amax(0).topk(min(MOST_DIMS, size)).indices.tolist())
    shown = distance[:, dims]
    names = [summary.parameter for summary in summaries]
    ticks = range(0, len(names), max(1, len(names) // 12))
    return Figure(
        title=f"{stack_prefix(scan, stack)}weights of the norms of width {size:,}",
        explanation=(
            "How many std each weight (or bias) of a norm is from the mean of its parameter, at the "
            f"{len(dims)} dims that "
            "stand out most; a column that keeps its colour is a dim that many layers scale alike (Kovaleva et al. 2021)."
        ),
        alternative=f"Heat map of {len(names)} norm parameters by {len(dims)} dims.",
        traces=[
            {
                "type": "heatmap",
                "z": shown.tolist(),
                "x": list(range(len(dims))),
                "y": list(range(len(names))),
                "customdata": [[f"{label(name)}, dim {dim}" for dim in dims] for name in names],
                "hovertemplate": "%{customdata}: %{z:.3g} std<extra></extra>",
                "colorscale": "RdBu",
                "zmid": 0,
                "colorbar": {"title": {"text": "std"}},
            }
        ],
        layout={
            "xaxis": axis("dim", tickvals=list(range(len(dims))), ticktext=[str(dim) for dim in dims]),
            "yaxis": axis(
                "layer",
                tickvals=list(ticks),
                ticktext=[str(summaries[index].layer) for index in ticks],
                autorange="reversed",
            ),
        },
        table=Table(
            f"norms-{stack}-{size}",
            "Distance from the mean, in std",
            ("parameter", "layer", *(f"dim {dim}" for dim in dims)),
            [
                (summary.parameter, summary.layer, *row)
                for summary, row in zip(summaries, shown.tolist(), strict=True)
            ],
        ),
    )
