"""Threads for compiled loops, which run without the GIL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def share_out(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with 0 to ``count`` - 1, on as many threads as PyTorch uses; this one does its share."""
    threads = max(1, min(torch.get_num_threads(), count))

    def run(first: int) -> None:
        for index in range(first, count, threads):
            work(index)

    others = [_pool(torch.get_num_threads()).submit(run, first) for first in range(1, threads)]
    run(0)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads besides the one that asks; kept, as starting them costs more than most loops."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="outlierscope")
