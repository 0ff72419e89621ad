"""Batching: how many sequences make a batch, and on which batches the dear statistics are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from outlierscope.corpus.windows import Window

BATCH_TOKENS = 4096
"""Tokens of a batch, padding included, when its number of sequences is not given."""

BATCH_SEQUENCES = 64
"""Most sequences of a batch when their number is not given."""


def gathered(windows: Iterable[Window], batch_size: int | None) -> Iterator[list[Window]]:
    """Consecutive windows in groups of ``batch_size``, or of at most ``BATCH_TOKENS`` tokens.

    >>> from outlierscope.corpus.windows import Window
    >>> lengths = [2000, 40, 2000, 10]
    >>> [len(group) for group in gathered([Window("a", [1] * n, 0) for n in lengths], None)]
    [2, 2]
    """
    group: list[Window] = []
    longest = 0
    for window in windows:
        longest = max(longest, len(window.token_ids))
        full = (
            len(group) == batch_size
            if batch_size is not None
            else len(group) == BATCH_SEQUENCES or (len(group) + 1) * longest > BATCH_TOKENS
        )
        if group and full:
            yield group
            group, longest = [], len(window.token_ids)
        group.append(window)
    if group:
        yield group


@dataclass(frozen=True)
class Sampling:
    """The first sequences and then every k-th batch; whole batches only.

    Attributes:
        every: k; 1 means all batches.
        first_sequences: as long as sequences with smaller numbers come, every batch counts.
    """

    every: int = 32
    first_sequences: int = 64

    def dear(self, batch: int, first_sequence: int) -> bool:
        """Whether the batch with this number, whose first sequence has that number, is sampled.

        >>> [batch for batch in range(70) if Sampling().dear(batch, batch * 8)]
        [0, 1, 2, 3, 4, 5, 6, 7, 32, 64]
        """
        return first_sequence < self.first_sequences or batch % self.every == 0
