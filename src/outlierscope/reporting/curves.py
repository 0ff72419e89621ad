"""Figures without a threshold, as plain rows: curves over layers, figures of heads and of weight matrices.

A finding says that something passed a rule. These rows say how things stand whether or not anything did, so that
two models can be compared. Values are numbers, names and ``None`` (not measured, or not finite): JSON takes them.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

from outlierscope.criteria.idle_heads import head_figures
from outlierscope.criteria.summaries import model_summary, site_summary
from outlierscope.model.sites import LAYER_SITES, PATTERNS
from outlierscope.scanning.plan import LAYER_CURVES
from outlierscope.stats.heads import Heads
from outlierscope.stats.magnitudes import FIGURES, TopMagnitudes
from outlierscope.stats.sinks import SinkRates

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan
    from outlierscope.weights.summary import RatioFigures

Row = dict[str, Any]

HEAD_FIGURES = ("low_information_mass", "value_norm_ratio", "output_ratio", "initial_alpha", "entropy")
"""Figures of ``head_figures`` that rest on no threshold."""


def model_figures(scan: Scan) -> list[Row]:
    """The figures that stand for a whole model, one row per stack and site.

    Each row: ``stack``, ``site``, ``layers`` (how many were measured), ``max_inf_norm`` (in the units of the
    tensor) and ``mean_kurtosis`` as Bondarenko et al. 2023, section 5, print them: per sequence the largest
    magnitude and mean((x - mean)^4) / std^4 (not excess), averaged over sequences; then the largest over the
    layers of the one and the mean over the layers of the other. They read ``mlp_out`` of BERT and
    ``resid_post`` of OPT. ``max_channel_kurtosis`` is the largest over the layers of the kurtosis over dims of
    each dim's root mean square: 1 when all dims carry alike, d when one carries everything (He et al. 2024,
    section 2; the largest over layers is ours). Sites are those of the scan's settings, in the order of a block.
    """
    asked_for = scan.manifest["settings"]["sites"]
    rows = []
    for stack in scan.evidence.anatomy.stacks:
        for name in LAYER_SITES:
            summary = model_summary(scan.evidence, stack, name) if name in asked_for else None
            if summary is None:
                continue
            rows.append(
                {
                    "stack": stack,
                    "site": name,
                    "layers": len(summary.layers),
                    "max_inf_norm": _finite(summary.max_inf_norm),
                    "mean_kurtosis": _finite(summary.mean_kurtosis),
                    "max_channel_kurtosis": _finite(max(layer.channel_kurtosis for layer in summary.layers)),
                }
            )
    return rows


def layer_rows(scan: Scan) -> list[Row]:
    """Curves over the layers at ``resid_post``, ``mlp_out`` and ``mlp_post``, one row per stack, site and layer.

    Each row: ``stack``, ``layer``, ``site``; means over ``sequences`` sequences of ``inf_norm`` and
    ``kurtosis``, with ``channel_kurtosis``, as in ``model_figures``; means over ``sampled_sequences`` sequences
    of ``top_1``, ``top_2``, ``top_3`` (the largest magnitudes), ``quantile_9999``, ``median`` and ``mean`` of
    abs(x) over all values [T, d] of a sequence, all in the units of the tensor (Sun et al. 2024, table 1; An et
    al. 2025, figure 2). Rows come by stack, then site, then layer, so that each curve is a run of rows.
    """
    evidence = scan.evidence
    rows = []
    for site in evidence.anatomy.sites(*LAYER_CURVES):
        summary = site_summary(evidence, site)
        top: TopMagnitudes | None = evidence.stat(site, TopMagnitudes().name)
        if top is not None and not top.count:
            top = None
        if summary is None and top is None:
            continue
        rows.append(
            {
                "stack": site.stack,
                "layer": site.layer,
                "site": site.name,
                **{figure: _finite(top.mean_of(figure)) if top else None for figure in FIGURES},
                "inf_norm": _finite(summary.inf_norm) if summary else None,
                "kurtosis": _finite(summary.kurtosis) if summary else None,
                "channel_kurtosis": _finite(summary.channel_kurtosis) if summary else None,
                "sequences": summary.sequences if summary else 0,
                "sampled_sequences": top.count if top else 0,
            }
        )
    return sorted(rows, key=lambda row: (row["stack"], LAYER_CURVES.index(row["site"]), row["layer"]))


def head_rows(scan: Scan, more: tuple[str, ...] = ()) -> list[Row]:
    """What every observed head attends to and how much it writes, one row per stack, layer and head.

    Each row: ``stack``, ``layer``, ``head``; the figures of Bondarenko et al. 2023, section 3:
    ``low_information_mass`` (share of the head's attention mass on initial, special and strong delimiter tokens;
    in images on [CLS] and registers), ``value_norm_ratio`` (mean norm of v on those over the mean norm elsewhere)
    and ``output_ratio`` (mean norm of the rows of A @ V over the norm of the mean value vector); ``entropy`` (nats,
    mean over queries); ``initial_alpha`` (alpha of the first position, mean over sequences) and
    ``mean_largest_alpha`` (largest alpha of a judged key of the first 64 tokens, or of the sequence where the
    layer is not causal, mean over sequences; Gu et al. 2024, section 3). All are of the sampled sequences;
    ``None`` where values were not at hand or no sequence was long enough. Further figures of ``head_figures`` come
    as they are where ``more`` names them.
    """
    evidence = scan.evidence
    rows = []
    for site in evidence.anatomy.sites(*PATTERNS):
        # By type: names of these statistics follow the thresholds of the rules, these figures do not.
        stats = evidence.measurements.at(evidence.anatomy.canonical(site))
        heads = next((stat for stat in stats if isinstance(stat, Heads) and stat.queries), None)
        if heads is None:
            continue
        sinks = next((stat for stat in stats if isinstance(stat, SinkRates) and stat.sequences), None)
        for head, figures in enumerate(head_figures(evidence, heads)):
            largest = float(sinks.largest_alpha[head]) / sinks.sequences if sinks else None
            rows.append(
                {
                    "stack": site.stack,
                    "layer": site.layer,
                    "site": site.name,
                    "head": head,
                    **{figure: _finite(figures[figure]) for figure in HEAD_FIGURES},
                    "mean_largest_alpha": _finite(largest),
                    **{name: figures[name] for name in more},
                }
            )
    return rows


def weight_rows(scan: Scan) -> list[Row]:
    """How the ratios of columns and rows are distributed, one row per matrix.

    The ratio of a column is r_j = max_i abs(W[i, j]) / mean_i abs(W[i, j]), without unit; that of a row likewise
    (An et al. 2025, on weight outliers). A column of zeros has ratio 0. The experts that play one role in a layer
    are taken together.

    Each row: ``stack``, ``layer``, ``role``, ``parameter`` (``None`` where experts have one each), ``matrices``
    (how many are taken together) and, of the columns and rows of a matrix, ``column_median``,
    ``column_quantile_99``, ``column_largest``, ``row_median``, ``row_quantile_99`` and ``row_largest``: of experts
    the median over them of their own medians and 99 % quantiles, and the largest of all.
    """
    together: dict[tuple[str, int | None, str, str | None], list[tuple[RatioFigures, RatioFigures]]] = {}
    parameters: dict[tuple[str, int | None, str, str | None], set[str]] = {}
    for summary in scan.evidence.weights:
        if summary.column_figures is not None and summary.row_figures is not None:
            own = summary.parameter if summary.expert is None else None
            key = (summary.stack, summary.layer, summary.role, own)
            together.setdefault(key, []).append((summary.column_figures, summary.row_figures))
            parameters.setdefault(key, set()).add(summary.parameter)
    rows = []
    for key, matrices in together.items():
        stack, layer, role, _ = key
        rows.append(
            {
                "stack": stack,
                "layer": layer,
                "role": role,
                "parameter": next(iter(parameters[key])) if len(parameters[key]) == 1 else None,
                "matrices": len(matrices),
                **_distribution("column", [columns for columns, _ in matrices]),
                **_distribution("row", [rows for _, rows in matrices]),
            }
        )
    return sorted(rows, key=lambda row: (row["stack"], -1 if row["layer"] is None else row["layer"]))


def _distribution(noun: str, matrices: list[RatioFigures]) -> dict[str, float | None]:
    return {
        f"{noun}_median": _finite(median(figures.median for figures in matrices)),
        f"{noun}_quantile_99": _finite(median(figures.quantile_99 for figures in matrices)),
        f"{noun}_largest": _finite(max(figures.largest for figures in matrices)),
    }


def _finite(value: float | None) -> float | None:
    """The value, or ``None`` for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
