"""Workspace: memory that is used again, since fresh memory costs as much as the arithmetic done in it."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_kept = threading.local()


def workspace(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[elements] uninitialised; the next call of the same thread hands out the same memory.

    The system gives large pieces of memory back when they are freed, and every page that is touched again has
    to be mapped again: for a block of 6 MB that takes longer than ten passes over it.

    >>> first = workspace(10, torch.float32, torch.device("cpu"))
    >>> first.data_ptr() == workspace(5, torch.float32, torch.device("cpu")).data_ptr()
    True
    """
    buffers: dict[tuple[torch.dtype, torch.device], Tensor] = _kept.__dict__.setdefault("buffers", {})
    buffer = buffers.get((dtype, device))
    if buffer is None or len(buffer) < elements:
        with torch.inference_mode(mode=False):  # so that it can be written to in any mode
            buffer = buffers[dtype, device] = torch.empty(elements, dtype=dtype, device=device)
    return buffer[:elements]
