"""The progress bar, on stderr, so that results on stdout stay clean."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outlierscope.listener import Listener


@contextmanager
def progress_bar() -> Iterator[Listener]:
    """A listener that draws how far a scan has come; silent when stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None, amount="")

        def listen(stage: str, done: int, total: int | None) -> None:
            progress.update(
                task, description=stage, completed=done, total=total, amount=_amount(stage, done, total)
            )

        yield listen


def _amount(stage: str, done: int, total: int | None) -> str:
    """How far a stage is, in its own unit.

    >>> _amount("reading the weights", 1_500_000, 13_500_000_000)
    '1.5 MB of 13.5 GB'
    >>> _amount("scan", 512, 20_000)
    '512/20000 tokens'
    """
    if stage == "reading the weights":
        return f"{decimal(done)} of {decimal(total or 0)}"
    counted = f"{done}/{'?' if total is None else total}"
    return f"{counted} tokens" if stage == "scan" else counted if total is not None else ""
