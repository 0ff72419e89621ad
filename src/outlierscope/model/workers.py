"""Workers: many small computations on tensors side by side, each on one core."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

AHEAD = 8
"""Computations for each thread that are begun before the first result of them is taken."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the order of the items, computed by as many threads as PyTorch uses, with one core each.

    PyTorch's own way, all cores on each operation, makes every small operation wait for the slowest core,
    which takes ten times as long as soon as another process is at work. Results do not depend on the number
    of cores.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    # Not more at once than keeps the threads busy: there may be tens of thousands, each with a result to hold.
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The number that a worker sets is its own, but also what threads to come will start with.
        torch.set_num_threads(threads)
