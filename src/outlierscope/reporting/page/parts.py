"""What a section of the page is made of: sentences, tables, and figures with their numbers beside them."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outlierscope.scanning.scan import Scan

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe & Ito 2008: told apart by colour-blind readers, on light and on dark ground."""

SCALE = "Cividis"
"""Colours of heat maps: even steps in brightness, for colour-blind readers and for print as well."""

MOST_DIMS = 24
"""Dims that a heat map shows each by itself: those that stand out most in any layer."""


@dataclass(frozen=True)
class Table:
    """Numbers that can be sorted, copied and saved as CSV.

    Attributes:
        name: of the CSV file, unique on the page; letters, digits, dashes and underscores.
        caption: what the rows are.
        columns: their names.
        rows: one value per column; numbers, texts or ``None``.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @classmethod
    def of(cls, name: str, caption: str, rows: Sequence[Mapping[str, Any]]) -> Table:
        """A table of rows that all have the same columns.

        >>> Table.of("heads", "Heads", [{"layer": 0, "head": 1}]).rows
        [(0, 1)]
        """
        columns = tuple(rows[0]) if rows else ()
        return cls(name, caption, columns, [tuple(row[column] for column in columns) for row in rows])


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with the numbers that it shows.

    Attributes:
        title: one line above it.
        explanation: what is drawn, after whom, and how to read it.
        alternative: what it shows, for who cannot see it.
        traces: Plotly's ``data``; texts in them are escaped by ``label``.
        layout: Plotly's ``layout``, without colours, which follow the reader's light or dark page.
        table: its numbers; its name is the figure's too.
    """

    title: str
    explanation: str
    alternative: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table

    @property
    def name(self) -> str:
        """The name of its table."""
        return self.table.name


@dataclass(frozen=True)
class Section:
    """One chapter of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        sentences: what it says first.
        parts: figures and tables, in order.
    """

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    parts: list[Figure | Table] = field(default_factory=list)


def label(text: object) -> str:
    """A text for a Plotly figure, which would take markup in it for formatting.

    >>> label("<b>")
    '&lt;b&gt;'
    """
    return html.escape(str(text), quote=False)


def rounded(value: Any, digits: int = 4) -> Any:
    """A number with as many digits as a page needs; ``None`` for what JSON has no number for.

    >>> rounded(3.14159265), rounded(float("nan")), rounded("a"), rounded(7)
    (3.142, None, 'a', 7)
    """
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A Plotly axis with a title."""
    return {"title": {"text": title}, **more}


def layer_axis(layers: int) -> dict[str, Any]:
    """An axis of layers: each has its tick while they are few."""
    return axis("layer", dtick=1 if layers <= 16 else None)


def map_height(layers: int) -> int:
    """Height in pixels of a heat map with one row per layer."""
    return min(260 + 12 * layers, 700)


def curve(
    name: str, x: list[Any], y: list[Any], colour: str, hover: str, dash: str | None = None
) -> dict[str, Any]:
    """A Plotly trace of a line with its points.

    Args:
        name: in the legend.
        x: layers.
        y: one value each.
        colour: of ``COLOURS``.
        hover: Plotly's template for a point.
        dash: Plotly's word for the kind of line; none: solid.
    """
    line = {"color": colour, "width": 2} | ({"dash": dash} if dash else {})
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": line,
        "hovertemplate": f"{hover}<extra></extra>",
    }


def stack_prefix(scan: Scan, stack: str) -> str:
    """Before titles of figures: the stack, where there are several."""
    return f"{stack}: " if len(scan.evidence.anatomy.stacks) > 1 else ""
