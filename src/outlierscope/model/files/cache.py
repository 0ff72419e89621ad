"""Cache: folders that are dear to make, made once per machine and never used half-made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = "outlierscope.json"
"""File in a kept folder that says how it was made, and the sizes of its other files."""


def cache_folder() -> Path:
    """Where this user's cache is: ``OUTLIERSCOPE_CACHE``, else ``outlierscope`` within the user's cache folder.

    That is ``XDG_CACHE_HOME`` (https://specifications.freedesktop.org/basedir-spec), by default ``~/.cache``.
    """
    own = os.environ.get("OUTLIERSCOPE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The specification has relative paths ignored.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "outlierscope"


def kept_folder(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a folder of the cache unless it is there, whole.

    It is made beside its place and moved there in one step; a lock makes a second process wait for the first and
    then use what that made. What a kill leaves behind is removed by the next one.

    Args:
        folder: where it is kept.
        make: fills the empty folder that it is given; returns what is to be recorded.

    Returns:
        What ``make`` returned when the folder was made.

    Raises:
        UserError: when the cache cannot be written to.
    """
    record = _record(folder)
    if record is not None:
        return record
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            record = _record(folder)
            if record is not None:
                return record
            for remains in (unfinished, folder):
                if remains.exists():
                    shutil.rmtree(remains)
            unfinished.mkdir()
            try:
                record = make(unfinished)
                _finish(unfinished, record)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            unfinished.rename(folder)
    except OSError as error:
        raise cannot_write(error.strerror or str(error)) from error
    return record


def cannot_write(why: str) -> UserError:
    """What to say when the cache cannot be written to."""
    return UserError(
        f"cannot write to the cache folder {cache_folder()}: {why}; "
        "free some space, or name another folder with the environment variable OUTLIERSCOPE_CACHE"
    )


def _finish(folder: Path, record: dict[str, Any]) -> None:
    """Add the record, and have everything on the disk before the folder moves to its place."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / RECORD).write_text(json.dumps({"made": record, "sizes": sizes}, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _record(folder: Path) -> dict[str, Any] | None:
    """What a kept folder records; ``None`` when it is not there or lacks any of its files."""
    if not (folder / RECORD).is_file():
        return None
    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in content["sizes"].items()
    )
    made: dict[str, Any] = content["made"]
    return made if whole else None
