"""What travels in the page: the figures' data and Plotly itself, compressed, and the hashes that allow scripts to run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from outlierscope.reporting.page.parts import Figure, Table, rounded


def compressed(content: bytes) -> str:
    """Gzip, then base64; the same bytes give the same text.

    >>> gzip.decompress(base64.b64decode(compressed(b"abc")))
    b'abc'
    """
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def script_hash(script: str) -> str:
    """The source expression by which a Content-Security-Policy allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@lru_cache(maxsize=1)
def plotly_script() -> tuple[str, str]:
    """Plotly.js from its Python package: compressed, and its hash."""
    script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return compressed(script.encode()), script_hash(script)


def page_data(figures: list[Figure], tables: list[Table], more: dict[str, Any]) -> str:
    """Figures and tables as compressed JSON.

    Args:
        figures: by their names the page finds them.
        tables: likewise.
        more: further entries of the JSON object.
    """
    content = {
        "figures": {
            figure.name: {"data": _rounded(figure.traces), "layout": figure.layout} for figure in figures
        },
        "tables": {table.name: _columns(table) for table in [*tables, *(figure.table for figure in figures)]},
        **more,
    }
    return compressed(
        json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return rounded(value)


def _columns(table: Table) -> dict[str, Any]:
    """Column by column, which compresses well; texts once each, with their number in every row."""
    columns = []
    for index, name in enumerate(table.columns):
        values = [rounded(row[index], 6) for row in table.rows]
        if any(isinstance(value, str) for value in values):
            texts = list(dict.fromkeys(values))
            place = {text: number for number, text in enumerate(texts)}
            columns.append({"name": name, "texts": texts, "codes": [place[value] for value in values]})
        else:
            columns.append({"name": name, "values": values})
    return {"rows": len(table.rows), "columns": columns}
