"""Threads for compiled loops, which run without the GIL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def share_out(work: Callable[[range], None], count: int) -> None:
    """Call ``work`` with ranges that make up 0 to ``count`` - 1, on half as many threads as PyTorch uses, this one too.

    PyTorch's own threads go on spinning for a while after each operation: with one thread for each of two cores,
    reading a tensor took longer than with a single one.
    """
    most = max(1, torch.get_num_threads() // 2)
    threads = max(1, min(most, count))
    shares = [range(first, count, threads) for first in range(threads)]
    others = [_pool(most).submit(work, share) for share in shares[1:]]
    work(shares[0])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads besides the one that asks; kept, as starting them costs more than most loops."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="outlierscope")
