"""Versions of what computes, for ``scan.json``."""

from __future__ import annotations

import platform
from importlib.metadata import version

from outlierscope.version import __version__


def versions() -> dict[str, str]:
    """Name -> version, without importing anything heavy."""
    return {
        "outlierscope": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
    }
