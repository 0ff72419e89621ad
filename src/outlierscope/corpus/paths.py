"""Paths that a user gave."""

from __future__ import annotations

import os
from pathlib import Path

from outlierscope.errors import UserError


def existing(data: str | Path) -> Path:
    """The path, which exists and may be read.

    Raises:
        UserError: when it does not, or may not.
    """
    path = Path(data).expanduser()
    try:
        path.stat()
    except (OSError, ValueError):
        raise UserError(f"no such file or folder: {path}") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read; change its permissions")
    return path
