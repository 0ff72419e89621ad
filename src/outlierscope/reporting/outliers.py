"""Outliers in words: one line per rule that found any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlierscope.reporting.wording import counted, layers, number, positions_of, quoted, share, some

if TYPE_CHECKING:
    from collections.abc import Callable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class OutlierLine:
    """What one rule found.

    Attributes:
        kind: ``activation``, ``weight`` or ``attention``.
        rule: name of the criterion.
        text: dims, tokens, layers, and how far they stand out.
        findings: rows that the rule found.
        dims: their dims, the one that stands out most first.
        layers: their layers, ascending.
        strongest: the row with the largest score, of ``FIGURES`` only.
    """

    kind: str
    rule: str
    text: str
    findings: int
    dims: list[int]
    layers: list[int]
    strongest: dict[str, Any]


FIGURES = (
    "layer",
    "site",
    "module",
    "parameter",
    "dim",
    "row",
    "head",
    "expert",
    "token_id",
    "token",
    "token_class",
    "value",
    "score",
    "threshold",
)
"""Columns of a finding that a program wants beside the words."""


def outlier_lines(rows: Sequence[Row]) -> list[OutlierLine]:
    """One line for each criterion that found something and has words here, in the order of the findings."""
    by_rule: dict[str, list[Row]] = {}
    for row in rows:
        by_rule.setdefault(row["criterion"], []).append(row)
    return [
        OutlierLine(
            found[0]["kind"],
            rule,
            WORDS[rule](found),
            findings=len(found),
            dims=_dims(found),
            layers=sorted({row["layer"] for row in found if row["layer"] is not None}),
            strongest=figures(max(found, key=lambda row: row["score"] or 0.0)),
        )
        for rule, found in by_rule.items()
        if rule in WORDS
    ]


def figures(row: Row) -> dict[str, Any]:
    """What a finding says in numbers and names, without what does not apply."""
    return {column: row[column] for column in FIGURES if row[column] is not None}


def _massive(rows: list[Row]) -> str:
    lines = []
    for dim in _dims(rows)[:2]:
        of_dim = [row for row in rows if row["dim"] == dim]
        peak = max(of_dim, key=lambda row: abs(row["value"]))
        first = max(of_dim, key=lambda row: row["score"])
        lines.append(
            f"dim {dim} at {_tokens(of_dim)}, {layers(row['layer'] for row in of_dim)}: up to {number(peak['value'])} "
            f"(layer {peak['layer']}), {number(first['score'])} x the median"
        )
    more = len(_dims(rows)) - 2
    return "; ".join(lines) + (f"; {counted(more, 'more dim')}" if more > 0 else "")


def _six_sigma(rows: list[Row]) -> str:
    peak = max(rows, key=lambda row: row["score"])
    counts: Counter[int] = Counter()
    for row in rows:
        counts[row["dim"]] += row["count"]
    often = [
        f"{dim} ({_tokens([row for row in rows if row['dim'] == dim], 1)})"
        for dim, _ in counts.most_common(3)
    ]
    return (
        f"{layers(row['layer'] for row in rows)}: furthest dim {peak['dim']} at {_tokens([peak], 1)}, "
        f"{number(peak['score'])} std (layer {peak['layer']} {peak['site']}); most often "
        f"{'dim' if len(often) == 1 else 'dims'} {', '.join(often)}; {counted(len(counts), 'dim')} in all"
    )


def _systematic(rows: list[Row]) -> str:
    peak = max(rows, key=lambda row: row["score"])
    return (
        f"{_listed('dim', _dims(rows))} on {_tokens(rows)}, {layers(row['layer'] for row in rows)}: up to "
        f"{number(peak['score'])} x the mean magnitude ({_place(peak)})"
    )


def _extreme_neuron(rows: list[Row]) -> str:
    ends = {"argmax": "largest", "argmin": "smallest"}
    parts = [
        f"dim {row['dim']} is the {ends[json.loads(row['extra'])['end']]} entry of {share(row['score'])}"
        for row in rows[:2]
    ]
    return " and ".join(parts) + " of all token vectors"


def _int8_feature(rows: list[Row]) -> str:
    peak = max(rows, key=lambda row: abs(row["value"] or 0))
    where = layers(layer for row in rows for layer in json.loads(row["extra"])["layers"])
    magnitude = json.loads(peak["rule"])["magnitude"]
    return (
        f"{_listed('dim', _dims(rows))} of linear inputs at or above {number(magnitude)} on many tokens, {where}: "
        f"up to {number(peak['value'])} ({_place(peak)})"
    )


def _norm_weight(rows: list[Row]) -> str:
    peak = max(rows, key=lambda row: row["score"] or 0)
    return f"{_listed('dim', _dims(rows))} of norm weights, up to {number(peak['score'])} std ({peak['parameter']})"


def _weight_lines(noun: str, index: str) -> Callable[[list[Row]], str]:
    def words(rows: list[Row]) -> str:
        peak = max(rows, key=lambda row: row["score"] or 0)
        ratio = json.loads(peak["extra"])["ratio"]
        matrices = len({(row["parameter"], row["expert"]) for row in rows})
        expert = "" if peak["expert"] is None else f", expert {peak['expert']}"
        return (
            f"{counted(len(rows), noun)} in {counted(matrices, 'matrix', 'matrices')}, strongest: {noun} {peak[index]} of "
            f"{peak['parameter']}{expert}, largest over mean {number(ratio)}"
        )

    return words


def _super_weight(rows: list[Row]) -> str:
    places = [f"{row['parameter']}[{row['row']}, {row['dim']}]" for row in rows]
    return f"candidates, not tested: {some(places, 2)}"


def _systematic_attention(rows: list[Row]) -> str:
    verb = "receives" if len({(row["token_id"], row["token_class"]) for row in rows}) == 1 else "receive"
    return f"{_tokens(rows)} {verb} at least a tenth of all attention, {layers(row['layer'] for row in rows)}"


def _value_drain(rows: list[Row]) -> str:
    least = min(rows, key=lambda row: row["score"])
    return (
        f"values of the sink keys of {counted(len(rows), 'head')} are short: down to {number(least['score'])} of the "
        f"median (layer {least['layer']} head {least['head']})"
    )


WORDS: dict[str, Callable[[list[Row]], str]] = {
    "massive": _massive,
    "six_sigma": _six_sigma,
    "systematic_activation": _systematic,
    "extreme_neuron": _extreme_neuron,
    "int8_feature": _int8_feature,
    "norm_weight": _norm_weight,
    "weight_column": _weight_lines("column", "dim"),
    "weight_row": _weight_lines("row", "row"),
    "super_weight_candidate": _super_weight,
    "systematic_attention": _systematic_attention,
    "value_drain": _value_drain,
}


def _dims(rows: list[Row]) -> list[int]:
    """Dims, the one that stands out most first."""
    best: dict[int, float] = {}
    for row in rows:
        if row["dim"] is not None:
            best[row["dim"]] = max(best.get(row["dim"], 0.0), abs(row["score"] or 0.0))
    return sorted(best, key=lambda dim: -best[dim])


def _listed(noun: str, items: list[int]) -> str:
    return f"{noun if len(items) == 1 else noun + 's'} {some(items)}"


def _tokens(rows: list[Row], most: int = 3) -> str:
    """The tokens on which the events fall, most frequent first; for images, the classes of the positions."""
    counts: Counter[str] = Counter()
    for row in rows:
        extra = json.loads(row["extra"])
        if row["token_id"] is None:
            for name, count in extra.get("classes_of_dim", {row["token_class"]: 1}).items():
                counts[positions_of(name)] += count
        elif extra.get("top_tokens"):
            for token in extra["top_tokens"]:
                counts[quoted(token["token"], token["token_id"])] += token["count"]
        else:
            counts[quoted(row["token"], row["token_id"])] += row["count"] or 1
    names = [token for token, _ in counts.most_common()]
    return names[0] if most == 1 else some(names, most)


def _place(row: Row) -> str:
    layer = "" if row["layer"] is None else f"layer {row['layer']} "
    return f"{layer}{row['site']}, dim {row['dim']}"
