"""Token order: the real tokens of a batch, sorted so that each sequence's token classes are contiguous."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassRun:
    """Neighbouring rows of one sequence and one token class.

    Attributes:
        sequence: row of the batch.
        token_class: index into the batch's ``class_names``.
        start: first of its places in ``TokenOrder.rows``.
        stop: one past the last.
    """

    sequence: int
    token_class: int
    start: int
    stop: int


@dataclass
class TokenOrder:
    """Where the real tokens of a batch stand, so that statistics read no padding and no class twice.

    Attributes:
        rows: [N] int64, indices into the flattened [B * T] positions, sorted by sequence, class, position.
        bounds: [B + 1] places in ``rows`` at which each sequence begins.
        runs: the pieces of ``rows`` with one sequence and one class.
        positions: [B, T] int64, positions counted without padding (negative or too large in the padding).
    """

    rows: Tensor
    bounds: list[int]
    runs: list[ClassRun]
    positions: Tensor
    _blocks: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict, repr=False)
    _spaced: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _moved: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, real: Tensor, classes: Tensor) -> TokenOrder:
        """From ``real`` [B, T] bool and ``classes`` [B, T] uint8.

        >>> order = TokenOrder.of(torch.tensor([[False, True, True]]), torch.tensor([[0, 4, 0]], dtype=torch.uint8))
        >>> order.rows.tolist(), order.bounds, [run.token_class for run in order.runs]
        ([2, 1], [0, 2], [0, 4])
        """
        real, classes = real.cpu(), classes.cpu().long()
        batch, length = real.shape
        where = real.flatten().nonzero().flatten()  # [N]
        sequences = where // max(length, 1)
        keys = sequences * 256 + classes.flatten()[where]  # [N]
        keys, permutation = torch.sort(keys, stable=True)
        bounds = torch.searchsorted(keys, torch.arange(batch + 1) * 256).tolist()
        unique, counts = torch.unique_consecutive(keys, return_counts=True)
        runs, start = [], 0
        for key, count in zip(unique.tolist(), counts.tolist(), strict=True):
            runs.append(ClassRun(key // 256, key % 256, start, start + count))
            start += count
        first = real.to(torch.uint8).argmax(1, keepdim=True) if length else torch.zeros(batch, 1)  # [B, 1]
        return cls(where[permutation], bounds, runs, torch.arange(length) - first)

    @cached_property
    def counts(self) -> list[int]:
        """Real tokens of each sequence."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @cached_property
    def filled(self) -> list[int]:
        """The sequences that have a real token."""
        return [sequence for sequence, count in enumerate(self.counts) if count]

    def blocks(self, size: int) -> list[tuple[int, int, int]]:
        """(sequence, start, stop): ``rows`` cut at sequences and into at most ``size`` tokens; equal parts."""
        if size not in self._blocks:
            self._blocks[size] = blocks = []
            for sequence in self.filled:
                start, count = self.bounds[sequence], self.counts[sequence]
                parts = -(-count // size)
                cuts = [start + count * part // parts for part in range(parts + 1)]
                blocks += [(sequence, first, last) for first, last in pairwise(cuts)]
        return self._blocks[size]

    def spaced(self, number: int) -> Tensor:
        """[filled sequences, number] evenly spaced entries of ``rows`` (repeated in short sequences)."""
        if number not in self._spaced:
            places = [
                [self.bounds[sequence] + self.counts[sequence] * k // number for k in range(number)]
                for sequence in self.filled
            ]
            self._spaced[number] = self.rows[torch.tensor(places, dtype=torch.int64).view(-1, number)]
        return self._spaced[number]

    def rows_on(self, device: torch.device) -> Tensor:
        """``rows`` on a device, moved there once."""
        if device.type == "cpu":
            return self.rows
        if device not in self._moved:
            self._moved[device] = self.rows.to(device)
        return self._moved[device]
