"""Workers: many small computations on tensors side by side, each on one core."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in the order of the items, computed by as many threads as PyTorch uses, with one core each.

    PyTorch's own way, all cores on each operation, makes every small operation wait for the slowest core,
    which takes ten times as long as soon as another process is at work. Results do not depend on the number
    of cores.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        # The number that a worker sets is its own, but also what threads to come will start with.
        torch.set_num_threads(threads)
