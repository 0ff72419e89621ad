"""Findings: the whole table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.reporting.page.parts import Section, Table
from outlierscope.reporting.wording import counted, quoted
from outlierscope.scanning.findings import table_rows

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan

COLUMNS = (
    "criterion",
    "kind",
    "stack",
    "layer",
    "site",
    "dim",
    "row",
    "head",
    "expert",
    "token",
    "token_class",
    "value",
    "score",
    "threshold",
    "count",
    "share_sequences",
    "module",
    "context",
)
"""Columns of ``findings.parquet`` that the page shows where any row has them."""

MOST = 100_000
"""Rows on the page, in the order of the file, where the most severe of each rule come first."""

FINDINGS = "findings"
"""Name of the table."""


def findings_section(scan: Scan) -> Section:
    """Every finding, up to ``MOST``."""
    total = scan.findings.num_rows
    if not total:
        return Section(FINDINGS, "Findings", ["No rule found any outlier."])
    table = scan.findings
    # Without its text, a token is shown by its id.
    columns = [
        name for name in COLUMNS if table.column("token_id" if name == "token" else name).null_count < total
    ]
    rows = []
    for row in table_rows(table)[:MOST]:
        token = quoted(row["token"], row["token_id"]) if row["token_id"] is not None else None
        rows.append(tuple(token if name == "token" else row[name] for name in columns))
    shown = "all of them" if total <= MOST else f"the first {MOST:,} of them"
    sentence = (
        f"{counted(total, 'finding')}; here {shown}, the most severe of each rule first. "
        "One row stands for all events of one rule at one place; findings.parquet holds every column."
    )
    return Section(FINDINGS, "Findings", [sentence], [Table(FINDINGS, "Findings", tuple(columns), rows)])
