"""The table of findings: the columns of ``findings.parquet``."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from outlierscope.criteria.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCHEMA = pa.schema(
    [
        ("criterion", pa.string()),
        ("kind", pa.string()),
        ("stack", pa.string()),
        ("layer", pa.int64()),
        ("site", pa.string()),
        ("module", pa.string()),
        ("parameter", pa.string()),
        ("dim", pa.int64()),
        ("row", pa.int64()),
        ("head", pa.int64()),
        ("expert", pa.int64()),
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("token_class", pa.string()),
        ("sequence", pa.int64()),
        ("context", pa.string()),
        ("value", pa.float64()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("count", pa.int64()),
        ("share_tokens", pa.float64()),
        ("share_sequences", pa.float64()),
        ("rule", pa.string()),
        ("extra", pa.string()),
    ]
)

ROWS_AT_ONCE = 512
"""Findings that are put into the table together."""


def to_table(findings: Iterable[Finding]) -> pa.Table:
    """Findings as a table, one row each, in the given order."""
    waiting = iter(findings)
    batches = []
    # A row as a dictionary takes ten times its room in the table, so few of them are there at once.
    while rows := [finding.row_values() for finding in islice(waiting, ROWS_AT_ONCE)]:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return pa.Table.from_batches(batches, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Finding]:
    """The inverse of ``to_table``."""
    return [
        Finding(**row | {"rule": json.loads(row["rule"]), "extra": json.loads(row["extra"])})
        for row in table.to_pylist()
    ]


LONG_TEXT = ("context", "rule", "extra")
"""Columns of which a row's text is only read when it is asked for."""


class TableRow(Mapping[str, Any]):
    """One row of a table of findings, without a copy of it: columns are read when they are first asked for."""

    __slots__ = ("_columns", "_index", "_table")

    def __init__(self, table: pa.Table, columns: dict[str, list[Any]], index: int) -> None:
        self._table, self._columns, self._index = table, columns, index

    def __getitem__(self, column: str) -> Any:
        if column in LONG_TEXT:
            return self._table.column(column)[self._index].as_py()
        if column not in self._columns:
            # Few names and numbers come again and again: each is held once.
            once: dict[Any, Any] = {}
            chunks = (chunk.to_pylist() for chunk in self._table.column(column).chunks)
            self._columns[column] = [once.setdefault(value, value) for chunk in chunks for value in chunk]
        return self._columns[column][self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


def table_rows(table: pa.Table) -> list[TableRow]:
    """The rows of a table of findings, of which there may be hundreds of thousands.

    >>> from outlierscope.criteria.finding import Finding
    >>> (row,) = table_rows(to_table([Finding("weight_row", "weight", row=3)]))
    >>> row["criterion"], row["row"], row["dim"], row["extra"]
    ('weight_row', 3, None, '{}')
    """
    columns: dict[str, list[Any]] = {}
    return [TableRow(table, columns, index) for index in range(table.num_rows)]


def to_parquet(table: pa.Table) -> bytes:
    """The content of ``findings.parquet``."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read_findings(content: bytes) -> pa.Table:
    """Read what ``to_parquet`` wrote."""
    return pq.read_table(io.BytesIO(content))
