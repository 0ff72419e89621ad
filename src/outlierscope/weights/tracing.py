"""Tracing: which part of which stored tensor each part of a loaded parameter comes from, without any numbers.

Whatever renames, stacks, joins or cuts tensors while a checkpoint loads is run on tensors without memory (PyTorch's
``meta`` device) that remember where their parts come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A box of a stored tensor, and where it lies in a tensor made from it.

    Attributes:
        source: name of the stored tensor.
        start: first index of the box on each axis of the stored tensor.
        size: extent of the box on each of them.
        axes: for each axis of the tensor made from it, the axis of the stored tensor that runs along it; ``None``
            for an axis of length 1 that stacking added.
        place: first index of the box on each axis of the tensor made from it.
    """

    source: str
    start: tuple[int, ...]
    size: tuple[int, ...]
    axes: tuple[int | None, ...]
    place: tuple[int, ...]

    @classmethod
    def whole(cls, source: str, shape: Sequence[int]) -> Piece:
        """All of a stored tensor, as it is."""
        nothing = (0,) * len(shape)
        return cls(source, nothing, tuple(shape), tuple(range(len(shape))), nothing)

    def extent(self, axis: int) -> int:
        """How many indices it takes up on an axis of the tensor made from it."""
        stored = self.axes[axis]
        return 1 if stored is None else self.size[stored]

    def moved(self, axis: int, distance: int) -> Piece:
        """The same box further along one axis of the tensor made from it."""
        return replace(self, place=_with(self.place, axis, self.place[axis] + distance))

    def within(self, axis: int, begin: int, end: int) -> Piece | None:
        """What of it lies in [begin, end) of one axis, placed as in that part; ``None`` for nothing."""
        low, high = max(begin, self.place[axis]), min(end, self.place[axis] + self.extent(axis))
        if low >= high:
            return None
        cut = replace(self, place=_with(self.place, axis, low - begin))
        stored = self.axes[axis]
        if stored is None:
            return cut
        return replace(
            cut,
            start=_with(self.start, stored, self.start[stored] + low - self.place[axis]),
            size=_with(self.size, stored, high - low),
        )


def _with(numbers: tuple[int, ...], index: int, number: int) -> tuple[int, ...]:
    return (*numbers[:index], number, *numbers[index + 1 :])


class Traced(torch.Tensor):
    """A tensor without memory that knows its pieces; ``None`` after an operation that is not followed.

    Followed are ``cat``, ``stack``, ``chunk``, ``split``, ``transpose`` and ``contiguous``.

    >>> joined = torch.cat([Traced.of("gate", (2, 3)), Traced.of("up", (2, 3))])
    >>> [(piece.source, piece.place) for piece in joined.pieces]
    [('gate', (0, 0)), ('up', (2, 0))]
    >>> joined.flip(0).pieces is None
    True
    """

    pieces: tuple[Piece, ...] | None = None

    @classmethod
    def of(cls, source: str, shape: Sequence[int]) -> Self:
        """The whole of a stored tensor."""
        traced = torch.empty(tuple(shape), device="meta").as_subclass(cls)
        traced.pieces = (Piece.whole(source, shape),)
        return traced

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation for its shapes, and follow the pieces through it."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        follow = FOLLOWED.get(getattr(func, "__name__", ""))
        if follow is not None:
            follow(result, *args, **(kwargs or {}))
        return result


def _pieces(tensor: Tensor) -> tuple[Piece, ...] | None:
    return tensor.pieces if isinstance(tensor, Traced) else None


def _cat(result: Traced, tensors: Sequence[Tensor], dim: int = 0) -> None:
    axis, begin = dim % result.ndim, 0
    joined: list[Piece] = []
    for tensor in tensors:
        pieces = _pieces(tensor)
        if pieces is None:
            return
        joined += [piece.moved(axis, begin) for piece in pieces]
        begin += tensor.shape[axis]
    result.pieces = tuple(joined)


def _stack(result: Traced, tensors: Sequence[Tensor], dim: int = 0) -> None:
    axis = dim % result.ndim
    stacked: list[Piece] = []
    for index, tensor in enumerate(tensors):
        pieces = _pieces(tensor)
        if pieces is None:
            return
        stacked += [
            replace(
                piece,
                axes=(*piece.axes[:axis], None, *piece.axes[axis:]),
                place=(*piece.place[:axis], index, *piece.place[axis:]),
            )
            for piece in pieces
        ]
    result.pieces = tuple(stacked)


def _cut(results: Sequence[Traced], tensor: Tensor, _sizes: object, dim: int = 0) -> None:
    axis, begin = dim % tensor.ndim, 0
    pieces = _pieces(tensor)
    for part in results:
        end = begin + part.shape[axis]
        if pieces is not None:
            within = (piece.within(axis, begin, end) for piece in pieces)
            part.pieces = tuple(piece for piece in within if piece is not None)
        begin = end


def _transpose(result: Traced, tensor: Tensor, dim0: int, dim1: int) -> None:
    order = list(range(tensor.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    pieces = _pieces(tensor)
    if pieces is not None:
        result.pieces = tuple(
            replace(
                piece,
                axes=tuple(piece.axes[axis] for axis in order),
                place=tuple(piece.place[axis] for axis in order),
            )
            for piece in pieces
        )


def _same(result: Traced, tensor: Tensor) -> None:
    result.pieces = _pieces(tensor)


FOLLOWED: dict[str, Callable[..., None]] = {
    "cat": _cat,
    "stack": _stack,
    "chunk": _cut,
    "split": _cut,
    "transpose": _transpose,
    "contiguous": _same,
}
"""Name of an operation of PyTorch -> how the pieces of its result come about."""
