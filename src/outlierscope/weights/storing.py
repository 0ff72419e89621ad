"""Storing: summaries of weights as the tensors and the metadata of one safetensors file, and back."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.weights.summary import MatrixSummary, RatioFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

OF_COLUMNS = ("column_ratio", "column_index", "column_argmax", "column_extreme")
OF_ROWS = ("row_ratio", "row_index")
TENSORS = (*OF_COLUMNS, *OF_ROWS, "values")
INTEGERS = ("column_index", "column_argmax", "row_index")

EXPERTS = "experts"
"""Whose tensors those are that hold what is kept of all experts, one after the other."""


def summaries_to_tensors(
    summaries: Sequence[MatrixSummary],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """As named tensors for a safetensors file, and the rest as plain values for its metadata.

    Tensors of experts are joined: a mixture may have tens of thousands of them, each with few kept columns and rows.

    Raises:
        ValueError: when two summaries are of the same part of the same parameter.
    """
    tensors: dict[str, Tensor] = {}
    joined: dict[str, list[Tensor]] = defaultdict(list)
    described: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for summary in summaries:
        identity = (summary.parameter, summary.expert, summary.rows, summary.columns)
        if identity in seen:
            raise ValueError(f"two summaries of {summary.parameter}")
        seen.add(identity)
        plain: dict[str, Any] = {
            item.name: getattr(summary, item.name) for item in fields(summary) if item.name not in TENSORS
        }
        for figures in ("column_figures", "row_figures"):
            plain[figures] = None if plain[figures] is None else asdict(plain[figures])
        if summary.expert is None:
            plain["key"] = _key(summary)
            tensors |= {
                f"{plain['key']}/{name}": getattr(summary, name)
                for name in TENSORS
                if len(getattr(summary, name))
            }
        else:
            for name in TENSORS:
                joined[name].append(getattr(summary, name))
            plain["kept"] = [len(summary.column_ratio), len(summary.row_ratio), len(summary.values)]
        described.append(plain)
    return tensors | {f"{EXPERTS}/{name}": torch.cat(parts) for name, parts in joined.items()}, described


def _key(summary: MatrixSummary) -> str:
    lines = [
        f"{noun} {span[0]}:{span[1]}"
        for noun, span in (("rows", summary.rows), ("columns", summary.columns))
        if span is not None
    ]
    return summary.parameter + (f"[{', '.join(lines)}]" if lines else "")


def summaries_from_tensors(
    tensors: Mapping[str, Tensor], described: Sequence[Mapping[str, Any]]
) -> list[MatrixSummary]:
    """Restore what ``summaries_to_tensors`` returned, bit for bit."""
    summaries = []
    taken = dict.fromkeys(TENSORS, 0)
    for item in described:
        plain = {name: value for name, value in item.items() if name not in ("key", "kept")}
        named: dict[str, Any] = {}
        for name in TENSORS:
            if plain["expert"] is None:
                empty = torch.empty(0, dtype=torch.int64 if name in INTEGERS else torch.float32)
                named[name] = tensors.get(f"{item['key']}/{name}", empty)
                continue
            columns, rows, values = item["kept"]
            count = columns if name in OF_COLUMNS else rows if name in OF_ROWS else values
            named[name] = tensors[f"{EXPERTS}/{name}"][taken[name] : taken[name] + count]
            taken[name] += count
        for figures in ("column_figures", "row_figures"):
            plain[figures] = None if plain[figures] is None else RatioFigures(**plain[figures])
        for span in ("rows", "columns"):
            plain[span] = None if plain[span] is None else tuple(plain[span])
        summaries.append(MatrixSummary(**plain, **named))
    return summaries
