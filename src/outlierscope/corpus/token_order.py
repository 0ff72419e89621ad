"""Token order: the real tokens of a batch, sorted so that each sequence's token classes are contiguous."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassRun:
    """Neighbouring entries of ``TokenOrder.rows`` with one sequence and one token class.

    Attributes:
        token_class: index into the batch's ``class_names``.
        start: first place in ``TokenOrder.rows``.
        stop: one past the last.
    """

    token_class: int
    start: int
    stop: int


@dataclass(eq=False)
class TokenOrder:
    """Where the real tokens of a batch stand, so that statistics read each once and no padding.

    Attributes:
        shape: (B, T).
        rows: [N] int64, indices into the flattened [B * T] places, sorted by sequence, class, place.
        bounds: [B + 1] places in ``rows`` at which each sequence begins.
        runs: the pieces of ``rows`` with one sequence and one class, in order.
        positions: [B, T] int64, positions counted without padding (meaningless in the padding).
    """

    shape: tuple[int, int]
    rows: Tensor
    bounds: list[int]
    runs: list[ClassRun]
    positions: Tensor
    _spaced: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    _moved: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, used: Tensor, classes: Tensor, positions: Tensor | None = None) -> TokenOrder:
        """From ``used`` [B, T] bool and ``classes`` [B, T] uint8; positions count from the first used token.

        >>> real = torch.tensor([[False, True, True]])
        >>> order = TokenOrder.of(real, torch.tensor([[0, 4, 0]], dtype=torch.uint8))
        >>> order.rows.tolist(), order.bounds, [run.token_class for run in order.runs]
        ([2, 1], [0, 2], [0, 4])
        """
        used, classes = used.cpu(), classes.cpu().long()
        batch, length = used.shape
        places = used.flatten().nonzero().flatten()  # [N]
        keys = (places // max(length, 1) << 8) | classes.flatten()[places]
        keys, permutation = torch.sort(keys, stable=True)
        bounds = torch.searchsorted(keys, torch.arange(batch + 1) << 8).tolist()
        unique, counts = torch.unique_consecutive(keys, return_counts=True)
        ends = counts.cumsum(0).tolist()
        runs = [
            ClassRun(key & 255, stop - count, stop)
            for key, count, stop in zip(unique.tolist(), counts.tolist(), ends, strict=True)
        ]
        if positions is None:
            first = used.to(torch.uint8).argmax(1, keepdim=True) if length else 0  # [B, 1]
            positions = torch.arange(length) - first
        return cls((batch, length), places[permutation], bounds, runs, positions)

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of each sequence."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @cached_property
    def sequence_of(self) -> Tensor:
        """[N] int64 row of the batch of each entry of ``rows``."""
        return self.rows // max(self.shape[1], 1)

    @cached_property
    def row_array(self) -> NDArray[np.int64]:
        """``rows`` as a NumPy array."""
        array: NDArray[np.int64] = self.rows.numpy()
        return array

    @cached_property
    def bound_array(self) -> NDArray[np.int64]:
        """``bounds`` as a NumPy array."""
        return np.array(self.bounds, dtype=np.int64)

    @cached_property
    def count_array(self) -> NDArray[np.float64]:
        """[B] ``counts`` as a NumPy array, for arithmetic."""
        return np.array(self.counts, dtype=np.float64)

    def spaced(self, number: int) -> NDArray[np.int64]:
        """At most ``number`` evenly spaced entries of ``rows``, from the middles of equal parts."""
        count = len(self.rows)
        if count <= number:
            return self.row_array
        if number not in self._spaced:
            self._spaced[number] = self.row_array[(2 * np.arange(number) + 1) * count // (2 * number)]
        return self._spaced[number]

    def on(self, device: torch.device) -> Tensor:
        """``rows`` on a device, moved there once."""
        if device.type == "cpu":
            return self.rows
        if device not in self._moved:
            self._moved[device] = self.rows.to(device)
        return self._moved[device]
