"""Summaries: those of all weights of a model, in little memory, and as the content of one safetensors file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields, replace
from typing import TYPE_CHECKING, Any, overload

import torch

from outlierscope.weights.summary import MatrixSummary, RatioFigures

if TYPE_CHECKING:
    from torch import Tensor

OF_COLUMNS = ("column_ratio", "column_index", "column_argmax", "column_extreme")
OF_ROWS = ("row_ratio", "row_index")
TENSORS = (*OF_COLUMNS, *OF_ROWS, "values")
PLAIN = tuple(item.name for item in fields(MatrixSummary) if item.name not in TENSORS)

EMPTY: dict[str, Any] = {
    name: torch.empty(0, dtype=torch.int64 if name.endswith(("index", "argmax")) else torch.float32)
    for name in TENSORS
}

EXPERTS = "experts"
"""Whose tensors those are that hold what is kept of all experts, one after the other."""


class WeightSummaries(Sequence[MatrixSummary]):
    """Summaries of weights, in the order in which they were added.

    A mixture may have tens of thousands of experts, with a handful of kept columns and rows each. What is kept of them
    stands in a few long arrays, as a tensor takes ten times the room of so few numbers, and is cut out again when a
    summary is asked for.
    """

    def __init__(self, summaries: Iterable[MatrixSummary] = ()) -> None:
        self._summaries: list[MatrixSummary] = []  # those of experts without their tensors
        self._kept = {name: array(_code(name)) for name in (*OF_COLUMNS, *OF_ROWS)}
        self._ends = {"column": array("q", [0]), "row": array("q", [0])}
        self._number: dict[int, int] = {}  # place of an expert's summary -> its place among those
        for summary in summaries:
            self.append(summary)

    def append(self, summary: MatrixSummary) -> None:
        """Add one."""
        if _is_packed(summary):
            self._number[len(self._summaries)] = len(self._number)
            for name, kept in self._kept.items():
                kept.frombytes(getattr(summary, name).numpy().tobytes())
            self._ends["column"].append(len(self._kept["column_ratio"]))
            self._ends["row"].append(len(self._kept["row_ratio"]))
            summary = replace(summary, **EMPTY)
        self._summaries.append(summary)

    def __len__(self) -> int:
        return len(self._summaries)

    @overload
    def __getitem__(self, index: int) -> MatrixSummary: ...

    @overload
    def __getitem__(self, index: slice) -> list[MatrixSummary]: ...

    def __getitem__(self, index: int | slice) -> MatrixSummary | list[MatrixSummary]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        summary = self._summaries[index]
        number = self._number.get(index % len(self))
        if number is None:
            return summary
        cut: dict[str, Any] = {name: self._cut(name, number) for name in self._kept}
        return replace(summary, **cut)

    def _cut(self, name: str, number: int) -> Tensor:
        """What one array holds of one expert."""
        ends = self._ends["column" if name in OF_COLUMNS else "row"]
        cut = self._kept[name][ends[number] : ends[number + 1]]
        found: Tensor = torch.frombuffer(cut, dtype=EMPTY[name].dtype) if len(cut) else EMPTY[name]
        return found

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
        """As named tensors for a safetensors file, and the rest, field by field, for its metadata.

        Raises:
            ValueError: when two summaries are of the same part of the same parameter.
        """
        tensors: dict[str, Tensor] = {}
        seen: set[tuple[Any, ...]] = set()
        for summary in self._summaries:
            identity = (summary.parameter, summary.expert, summary.rows, summary.columns)
            if identity in seen:
                raise ValueError(f"two summaries of {summary.parameter}")
            seen.add(identity)
            if not _is_packed(summary):
                named = {name: getattr(summary, name) for name in TENSORS}
                tensors |= {f"{_key(summary)}/{name}": item for name, item in named.items() if len(item)}
        for name, kept in self._kept.items():
            if len(kept):
                tensors[f"{EXPERTS}/{name}"] = torch.frombuffer(kept[:], dtype=EMPTY[name].dtype)
        described = {name: [_plain(getattr(item, name)) for item in self._summaries] for name in PLAIN}
        described["kept"] = [
            [ends[number + 1] - ends[number] for ends in self._ends.values()]
            for number in range(len(self._number))
        ]
        return tensors, described

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], described: Mapping[str, Sequence[Any]]
    ) -> WeightSummaries:
        """Restore what ``to_tensors`` returned, bit for bit."""
        restored = cls()
        for values in zip(*(described[name] for name in PLAIN), strict=True):
            plain: dict[str, Any] = {
                name: _restored(name, value) for name, value in zip(PLAIN, values, strict=True)
            }
            summary = MatrixSummary(**plain, **EMPTY)
            if _is_packed(summary):
                restored._number[len(restored)] = len(restored._number)
            else:
                named: dict[str, Any] = {
                    name: tensors.get(f"{_key(summary)}/{name}", EMPTY[name]) for name in TENSORS
                }
                summary = replace(summary, **named)
            restored._summaries.append(summary)
        for name, kept in restored._kept.items():
            if f"{EXPERTS}/{name}" in tensors:
                kept.frombytes(tensors[f"{EXPERTS}/{name}"].numpy().tobytes())
        for counts in described["kept"]:
            for ends, count in zip(restored._ends.values(), counts, strict=True):
                ends.append(ends[-1] + count)
        return restored


def _code(name: str) -> str:
    return "q" if EMPTY[name].dtype == torch.int64 else "f"


def _is_packed(summary: MatrixSummary) -> bool:
    return summary.expert is not None and summary.column_figures is not None


def _key(summary: MatrixSummary) -> str:
    """Name of the tensors of one that stands alone."""
    told = [
        f"{noun} {span[0]}:{span[1]}"
        for noun, span in (("rows", summary.rows), ("columns", summary.columns))
        if span is not None
    ]
    told += [f"expert {summary.expert}"] if summary.expert is not None else []
    return summary.parameter + (f"[{', '.join(told)}]" if told else "")


def _plain(value: Any) -> Any:
    return list(astuple(value)) if isinstance(value, RatioFigures) else value


def _restored(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in ("column_figures", "row_figures"):
        return RatioFigures(*value)
    return tuple(value) if name in ("rows", "columns") else value
