"""Orientation: whether a checkpoint stores a matrix as [out, in] (PyTorch) or [in, out] (GPT-2's Conv1D)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlierscope.model.files.shards import TensorEntry
    from outlierscope.model.files.tensor_names import TensorRole

READS_RESIDUAL = ("q", "k", "v", "qkv", "gate", "up", "gate_up")
WRITES_RESIDUAL = ("o", "down")


@dataclass(frozen=True)
class Oriented:
    """How a matrix is stored.

    Attributes:
        transposed: true for [in, out].
        assumed: whether that could not be told and PyTorch's [out, in] was taken.
    """

    transposed: bool
    assumed: bool = False


def orient(roles: list[tuple[TensorEntry, TensorRole]], hidden_size: int | None) -> dict[str, Oriented]:
    """How every matrix with a role is stored, by name.

    The width d of the residual stream (of the norms in the same block, else ``hidden_size``) tells which side
    of a matrix faces it: q, k, v, gate and up read it, o and down write it. A matrix with both sides d, or
    none, is taken to be as all the others of its kind (2-D, or 3-D for fused experts) are; where those differ
    or there are none, as [out, in], and marked as assumed.
    """
    widths = _widths(roles)
    told: dict[str, bool] = {}
    open_cases: list[TensorEntry] = []
    by_kind: dict[int, set[bool]] = defaultdict(set)
    for entry, role in roles:
        if role.role not in READS_RESIDUAL + WRITES_RESIDUAL or len(entry.shape) < 2:
            continue
        width = widths.get(_block_of(entry.name, role), hidden_size)
        rows_match, columns_match = (size == width for size in entry.shape[-2:])
        if rows_match == columns_match:
            open_cases.append(entry)
            continue
        told[entry.name] = rows_match if role.role in READS_RESIDUAL else columns_match
        by_kind[len(entry.shape)].add(told[entry.name])
    oriented = {name: Oriented(transposed) for name, transposed in told.items()}
    for entry in open_cases:
        known = by_kind[len(entry.shape)]
        oriented[entry.name] = Oriented(known == {True}, assumed=len(known) != 1)
    return oriented


def _widths(roles: list[tuple[TensorEntry, TensorRole]]) -> dict[str, int]:
    """Block -> width of most of its norms, the larger one of two equally frequent (qk-norms are narrow)."""
    sizes: dict[str, Counter[int]] = defaultdict(Counter)
    for entry, role in roles:
        if role.role == "norm" and role.layer is not None:
            sizes[_block_of(entry.name, role)][entry.shape[0]] += 1
    return {block: max(counts, key=lambda size: (counts[size], size)) for block, counts in sizes.items()}


def _block_of(name: str, role: TensorRole) -> str:
    before, number, _ = name.partition(f".{role.layer}.")
    return before + number
