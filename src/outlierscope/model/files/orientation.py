"""Orientation: whether a parameter holds a matrix as [out, in] (PyTorch) or [in, out] (GPT-2's Conv1D)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outlierscope.model.files.tensor_names import TensorRole

READS_RESIDUAL = ("q", "k", "v", "qkv", "gate", "up", "gate_up")
WRITES_RESIDUAL = ("o", "down")


@dataclass(frozen=True)
class Oriented:
    """How a matrix is held.

    Attributes:
        transposed: true for [in, out].
        assumed: whether that could not be told and PyTorch's [out, in] was taken.
    """

    transposed: bool
    assumed: bool = False


def orient(
    roles: Sequence[tuple[str, tuple[int, ...], TensorRole]],
    hidden_size: int | None,
    known: Mapping[str, bool],
) -> dict[str, Oriented]:
    """How every matrix with a role is held, by name.

    Where the kind of its module does not tell, the width d of the residual stream (of the norms in the same block,
    else ``hidden_size``) tells which side of a matrix faces it: q, k, v, gate and up read it, o and down write it. A
    matrix with both sides d, or none, is taken to be as all the others of its kind (2-D, or 3-D for fused experts)
    are; where those differ or there are none, as [out, in], and marked as assumed.

    Args:
        roles: name, shape and role of every parameter.
        hidden_size: as config.json tells it.
        known: name -> whether it is [in, out], for those of which that is known.
    """
    widths = _widths(roles)
    told: dict[str, bool] = {}
    open_cases: list[tuple[str, int]] = []
    by_kind: dict[int, set[bool]] = defaultdict(set)
    for name, shape, role in roles:
        if role.role not in READS_RESIDUAL + WRITES_RESIDUAL or len(shape) < 2:
            continue
        width = widths.get(block_of(name, role), hidden_size)
        rows_match, columns_match = (size == width for size in shape[-2:])
        if name in known:
            told[name] = known[name]
        elif rows_match == columns_match:
            open_cases.append((name, len(shape)))
            continue
        else:
            told[name] = rows_match if role.role in READS_RESIDUAL else columns_match
        by_kind[len(shape)].add(told[name])
    oriented = {name: Oriented(transposed) for name, transposed in told.items()}
    for name, dimensions in open_cases:
        kind = by_kind[dimensions]
        oriented[name] = Oriented(kind == {True}, assumed=len(kind) != 1)
    return oriented


def _widths(roles: Sequence[tuple[str, tuple[int, ...], TensorRole]]) -> dict[str, int]:
    """Block -> width of most of its norms, the larger one of two equally frequent (qk-norms are narrow)."""
    sizes: dict[str, Counter[int]] = defaultdict(Counter)
    for name, shape, role in roles:
        if role.role == "norm" and role.layer is not None:
            sizes[block_of(name, role)][shape[0]] += 1
    return {block: max(counts, key=lambda size: (counts[size], size)) for block, counts in sizes.items()}


def block_of(name: str, role: TensorRole) -> str:
    """The part of a name that all tensors of its block share.

    >>> from outlierscope.model.files.tensor_names import read_tensor_name
    >>> name = "model.layers.3.mlp.down_proj.weight"
    >>> block_of(name, read_tensor_name(name, 2))
    'model.layers.3.'
    """
    before, number, _ = name.partition(f".{role.layer}.")
    return before + number
