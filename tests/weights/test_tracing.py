"""Traced tensors against the same operations on tensors of numbers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.weights.tracing import Traced


def rebuilt(traced, sources):
    """The tensor that the pieces describe, put together from the sources."""
    result = torch.full(traced.shape, -1)
    for piece in traced.pieces:
        box = sources[piece.source][
            tuple(slice(a, a + n) for a, n in zip(piece.start, piece.size, strict=True))
        ]
        box = box.permute([axis for axis in piece.axes if axis is not None])
        extents = [piece.extent(axis) for axis in range(len(piece.axes))]
        place = tuple(slice(begin, begin + n) for begin, n in zip(piece.place, extents, strict=True))
        assert bool((result[place] == -1).all()), "pieces do not overlap"
        result[place] = box.reshape(extents)
    return result


@st.composite
def steps(draw):
    """A chain of operations, each a function of a list of tensors of one shape to such a list."""
    chain = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(["cat", "stack", "chunk", "split", "transpose", "contiguous"]))
        chain.append((name, draw(st.integers(0, 7)), draw(st.integers(0, 7))))
    return chain


def apply(tensors, step):
    name, first, second = step
    dimensions = tensors[0].ndim
    axis, other = first % dimensions, second % dimensions
    if name == "cat":
        return [torch.cat(tensors, dim=axis)]
    if name == "stack":
        return [torch.stack(tensors, dim=axis)] if dimensions < 4 else tensors
    if name == "transpose":
        return [torch.transpose(tensor, axis, other) for tensor in tensors]
    if name == "contiguous":
        return [tensor.contiguous() for tensor in tensors]
    size = tensors[0].shape[axis]
    if size < 2:
        return tensors
    if name == "chunk":
        return list(torch.chunk(tensors[0], 2, dim=axis))[:1]
    return list(torch.split(tensors[0], [1, size - 1], dim=axis))[1:]


@settings(max_examples=200, deadline=None)
@given(steps(), st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_pieces_rebuild_what_the_operations_make(chain, count, shape):
    total = shape[0] * shape[1]
    numbers = {f"t{i}": torch.arange(total).view(shape) + i * total for i in range(count)}
    real, traced = list(numbers.values()), [Traced.of(name, shape) for name in numbers]
    for step in chain:
        real, traced = apply(real, step), apply(traced, step)
    for expected, found in zip(real, traced, strict=True):
        assert torch.equal(rebuilt(found, numbers), expected)


def test_an_operation_that_is_not_followed_is_not_guessed():
    traced = Traced.of("weight", (4, 6))
    assert traced.reshape(2, 2, 6).pieces is None
    assert torch.cat([traced, traced.flip(0)]).pieces is None
    assert torch.stack([traced * 2]).pieces is None
    assert all(part.pieces is None for part in torch.chunk(traced.flip(1), 2))
