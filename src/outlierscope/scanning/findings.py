"""The table of findings: the columns of ``findings.parquet``."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from outlierscope.criteria.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def to_table(findings: Iterable[Finding]) -> pa.Table:
    """Findings as a table, one row each, in the given order."""
    return pa.Table.from_pylist([finding.row_values() for finding in findings], schema=SCHEMA)


def from_table(table: pa.Table) -> list[Finding]:
    """The inverse of ``to_table``."""
    return [
        Finding(**row | {"rule": json.loads(row["rule"]), "extra": json.loads(row["extra"])})
        for row in table.to_pylist()
    ]


def to_parquet(table: pa.Table) -> bytes:
    """The content of ``findings.parquet``."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read_findings(content: bytes) -> pa.Table:
    """Read what ``to_parquet`` wrote."""
    return pq.read_table(io.BytesIO(content))
