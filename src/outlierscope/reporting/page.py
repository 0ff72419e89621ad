"""The HTML page: the summary and the findings in one self-contained file that needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from outlierscope.reporting.curves import head_rows, layer_rows, model_figures, weight_rows
from outlierscope.reporting.summary import summarize
from outlierscope.reporting.wording import number, quoted
from outlierscope.scanning.findings import TableRow, table_rows
from outlierscope.version import __version__

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan

COLUMNS = (
    "criterion",
    "layer",
    "site",
    "dim",
    "head",
    "token",
    "value",
    "score",
    "threshold",
    "count",
    "share_sequences",
    "module",
    "context",
)
"""Columns of ``findings.parquet`` that the page shows."""

MOST_OF_EACH = 200
"""Rows shown per criterion; the file holds them all."""

MOST_HEADS = 200
"""Heads shown among the figures without a threshold; a large model has thousands."""


def render_page(scan: Scan) -> str:
    """The report as HTML text; texts from data are escaped wherever they are shown."""
    environment = Environment(
        loader=PackageLoader("outlierscope", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["shown"] = _shown
    rows: list[TableRow] = []
    seen: dict[str, int] = {}
    for row in table_rows(scan.findings):
        seen[row["criterion"]] = seen.get(row["criterion"], 0) + 1
        if seen[row["criterion"]] <= MOST_OF_EACH:
            rows.append(row)
    heads = head_rows(scan)
    return environment.get_template("page.html").render(
        summary=summarize(scan),
        columns=[column.replace("_", " ") for column in COLUMNS],
        rows=[[_cell(row, column) for column in COLUMNS] for row in rows],
        shown=len(rows),
        total=scan.findings.num_rows,
        model_figures=model_figures(scan),
        layer_rows=layer_rows(scan),
        head_rows=sorted(heads, key=lambda row: -(row["low_information_mass"] or 0.0))[:MOST_HEADS],
        heads=len(heads),
        weight_rows=weight_rows(scan),
        version=__version__,
    )


def _cell(row: TableRow, column: str) -> Any:
    if column == "token" and row["token_id"] is not None:
        return quoted(row["token"], row["token_id"])
    return row[column]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
