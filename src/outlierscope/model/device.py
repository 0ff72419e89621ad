"""Devices and dtypes by name, and whether there is memory for a model."""

from __future__ import annotations

from pathlib import Path

import torch

from outlierscope.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MEMINFO = Path("/proc/meminfo")
GIBIBYTE = 1024**3


def pick_device(name: str) -> torch.device:
    """The device called ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: for any other name, or a CUDA device that is not there.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not number.isdecimal()) or (kind == "cpu" and number):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"no device {name} here: PyTorch sees no CUDA device; use --device cpu")
        if number and int(number) >= torch.cuda.device_count():
            raise UserError(
                f"no device {name} here; the CUDA devices end at cuda:{torch.cuda.device_count() - 1}"
            )
    return torch.device(name)


def pick_dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; ``None`` for ``auto``, which is the checkpoint's own.

    Raises:
        UserError: for any other name.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def available_memory() -> int | None:
    """Bytes of main memory that can be had without swapping; ``None`` where the system does not tell."""
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


SMALLER = "try --dtype bfloat16, a larger machine, or --only weights, which does not load the model"


def check_memory(name: str, needed: int, advice: str = SMALLER) -> None:
    """Refuse a model before it is loaded when its weights alone do not fit into main memory.

    Args:
        name: the model.
        needed: bytes of its weights.
        advice: what to do when they do not fit.

    Raises:
        UserError: naming both figures.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{name} needs about {needed / GIBIBYTE:.1f} GiB of memory for its weights, "
            f"{available / GIBIBYTE:.1f} GiB are available; {advice}"
        )
