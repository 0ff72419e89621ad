"""The summary on a terminal: one screen, plain words, most important first."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from outlierscope.scanning.store import finite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.reporting.summary import Summary

STYLES = {"fails": "bold red", "at risk": "bold yellow", "fine": "green", "unknown": "dim"}
WIDTH_WITHOUT_TERMINAL = 120


def print_summary(summary: Summary) -> None:
    """Print to stdout; token texts are printed as they are, never as markup."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    console.print(Text(summary.model, style="bold"), Text(summary.description, style="dim"), sep="  ")
    console.print()
    for line in summary.verdict:
        console.print(Text(line, style="bold"))
    if summary.formats:
        _heading(console, "Number formats", "predicted from this scan, not measured")
        _rows(
            console,
            [
                (Text(line.name), Text(line.word, style=STYLES[line.word]), Text(line.text))
                for line in summary.formats
            ],
        )
    _heading(console, "Outliers")
    _rows(
        console,
        [(Text(line.kind), Text(line.rule), Text(line.text)) for line in summary.outliers]
        or [(Text("none found"),)],
    )
    console.print()
    sections = (
        ("Heads", summary.heads),
        ("Read", summary.read),
        ("Not observed", summary.not_observed),
        ("Files", summary.files),
        ("Next", summary.next),
    )
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, lines in sections:
        if lines:
            table.add_row(Text(title.upper(), style="bold cyan"), Text("\n".join(lines)))
    console.print(table)


def summary_json(summary: Summary) -> str:
    """The same for a program, with the figures that the sentences rest on."""
    return json.dumps(finite(asdict(summary)), indent=1, ensure_ascii=False, allow_nan=False)


def _heading(console: Console, title: str, remark: str = "") -> None:
    console.print()
    console.print(
        Text(title.upper(), style="bold cyan"), Text(remark, style="dim"), sep="  " if remark else ""
    )


def _rows(console: Console, rows: Iterable[tuple[Text, ...]]) -> None:
    rows = list(rows)
    table = Table.grid(padding=(0, 2), expand=False)
    for index in range(len(rows[0])):
        last = index == len(rows[0]) - 1
        table.add_column(no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows:
        table.add_row(*row)
    console.print(_indented(table))


def _indented(table: Table) -> Table:
    outer = Table.grid(padding=(0, 0))
    outer.add_column(width=2)
    outer.add_column()
    outer.add_row("", table)
    return outer
