"""The table of findings: filled in batches, read row by row without copies."""

from __future__ import annotations

import pytest

from outlierscope.criteria.finding import Finding
from outlierscope.scanning.findings import ROWS_AT_ONCE, from_table, table_rows, to_table


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_rows_are_those_of_the_findings_in_their_order(count):
    findings = [
        Finding("weight_row", "weight", row=index, value=index / 7, extra={"top": [[index, 1.5]]})
        for index in range(count)
    ]
    table = to_table(iter(findings))
    assert table.num_rows == count
    assert from_table(table) == findings
    assert [dict(row) for row in table_rows(table)] == table.to_pylist()


def test_a_row_has_the_columns_of_the_table_and_no_others():
    (row,) = table_rows(to_table([Finding("massive", "activation", token="a")]))
    assert (row["token"], row["rule"], row["dim"]) == ("a", "{}", None)
    with pytest.raises(KeyError, match="nothing"):
        row["nothing"]
