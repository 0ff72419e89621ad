"""The progress bar, on stderr, so that results on stdout stay clean."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None, unit="")

        def listen(stage: str, done: int, total: int | None) -> None:
            unit = "tokens" if stage == "scan" else ""
            progress.update(task, description=stage, completed=done, total=total, unit=unit)

        yield listen
