"""Parts: every matrix and norm in a checkpoint's files, with where its bytes are and what the loaded model calls it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from outlierscope.model.files.orientation import READS_RESIDUAL, WRITES_RESIDUAL, block_of, orient
from outlierscope.model.files.tensor_names import TensorRole, read_tensor_name
from outlierscope.weights.numbers import SCALED, Scale, find_scale
from outlierscope.weights.summary import WeightPlace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outlierscope.model.files.shards import TensorEntry
    from outlierscope.weights.loaded_names import LoadedNames, LoadedParameter
    from outlierscope.weights.tracing import Piece


NO_MATRIX, OUTSIDE = "bias or scalar", "outside of the blocks"
SCALES = "scales, which the weights are multiplied by"


@dataclass(frozen=True)
class Part:
    """One matrix, or one parameter of a norm.

    Attributes:
        entry: the stored tensor that it is in.
        place: whose it is.
        index: which matrix of a stored tensor of several, else 0.
        rows: its first and last + 1 row in the stored matrix.
        columns: its first and last + 1 column in the stored matrix; a norm has one column.
        transposed: whether it is stored as [in, out].
        scale: the scales of quantized weights.
    """

    entry: TensorEntry
    place: WeightPlace
    index: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    transposed: bool
    scale: Scale | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        columns = self.entry.shape[-1] if len(self.entry.shape) > 1 else 1
        return columns * SCALED[self.entry.dtype].itemsize

    @property
    def bytes(self) -> int:
        """How many bytes of the file are read for it."""
        return (self.rows[1] - self.rows[0]) * self.row_bytes


@dataclass(frozen=True)
class Parts:
    """What is summarised of a checkpoint, and what is not.

    Attributes:
        found: in the order of the files.
        left_out: stored tensor -> why it, or a piece of it, is not summarised.
        orientation_assumed: parameters that may be the other way round.
    """

    found: list[Part]
    left_out: dict[str, str]
    orientation_assumed: list[str]


def find_parts(names: LoadedNames, entries: Sequence[TensorEntry], config: Mapping[str, Any]) -> Parts:
    """Every part of a checkpoint that a name gives a role, and all other linear layers of the loaded model's blocks.

    Args:
        names: what becomes of the tensors.
        entries: all of them.
        config: content of config.json.
    """
    by_name = {entry.name: entry for entry in entries}
    scales = {entry.name: find_scale(entry, by_name, config) for entry in entries}
    scaling = {scale.entry.name for scale, _ in scales.values() if scale is not None}
    told = [(item, read_tensor_name(item.name, len(item.shape))) for item in names.parameters]
    oriented = orient(
        [(item.name, item.shape, _role(item, item.pieces[0], role)) for item, role in told],
        config.get("hidden_size"),
        {item.name: item.transposed for item in names.parameters if item.transposed is not None},
    )
    parts = Parts([], {}, [name for name, how in oriented.items() if how.assumed])
    stack = _default_stack(config)
    blocks = {
        block_of(item.name, role) for item, role in told if role.role in READS_RESIDUAL + WRITES_RESIDUAL
    }
    for parameter, of_parameter in told:
        how = oriented.get(parameter.name)
        transposed = how.transposed if how is not None else bool(parameter.transposed)
        for piece in parameter.pieces:
            entry, (scale, unreadable) = by_name[piece.source], scales[piece.source]
            role = _role(parameter, piece, of_parameter)
            if role.role is None and parameter.transposed is not None:
                role = replace(role, role="other" if block_of(parameter.name, role) in blocks else None)
            reason = _reason_to_leave_out(entry, role, unreadable)
            if entry.name in scaling:
                reason = SCALES
            elif role.role == "norm" and piece.size != parameter.shape:
                reason = "a norm that is cut or joined while loading"
            if reason:
                parts.left_out[entry.name] = reason
                continue
            names_and_role = (role.stack or stack, role.layer, role.role or "", role.module, parameter.name)
            place = WeightPlace(*names_and_role, stored=entry.name)
            whole = Part(entry, place, 0, (0, entry.shape[0]), (0, 1), transposed, scale)
            parts.found.extend(_parts(parameter, piece, role, whole))
    covered = {piece.source for parameter in names.parameters for piece in parameter.pieces}
    parts.left_out.update({name: why for name, why in names.as_stored.items() if name not in covered})
    order = {entry.name: number for number, entry in enumerate(entries)}
    parts.found.sort(key=lambda part: (order[part.entry.name], part.index, part.rows))
    return parts


def _parts(parameter: LoadedParameter, piece: Piece, role: TensorRole, whole: Part) -> list[Part]:
    """The parts of one piece: one, or one for each expert."""
    if len(parameter.shape) == 1:
        return [whole]
    swapped = piece.axes[-2] == len(piece.size) - 1
    lines = [(start, start + size) for start, size in zip(piece.start[-2:], piece.size[-2:], strict=True)]
    # Of the loaded matrix W [out, in], whichever way the parameter holds it.
    within = [
        None
        if piece.extent(axis) == parameter.shape[axis]
        else (piece.place[axis], piece.place[axis] + piece.extent(axis))
        for axis in (-2, -1)
    ]
    if whole.transposed:
        within.reverse()
    part = replace(whole, rows=lines[0], columns=lines[1], transposed=whole.transposed != swapped)
    place = replace(whole.place, rows=within[0], columns=within[1])
    if len(parameter.shape) == 2:
        return [replace(part, place=replace(place, expert=role.expert))]
    first = 0 if piece.axes[0] is None else piece.start[0]
    return [
        replace(part, place=replace(place, expert=piece.place[0] + number), index=first + number)
        for number in range(piece.extent(0))
    ]


def _role(parameter: LoadedParameter, piece: Piece, told: TensorRole) -> TensorRole:
    """What names tell of a piece of a parameter.

    The loaded name decides; that a piece is only the gate of gate and up, or q of a fused projection, is told by the
    name that it is stored under.
    """
    if piece.source == parameter.name:
        return told
    stored = read_tensor_name(piece.source, len(piece.size)).role
    partial = any(
        piece.extent(axis) < parameter.shape[axis] for axis in range(-2, 0)[-len(parameter.shape) :]
    )
    return replace(told, role=(stored or told.role) if partial else (told.role or stored))


def _reason_to_leave_out(entry: TensorEntry, role: TensorRole, unreadable: str) -> str:
    if not entry.elements:
        return "empty"
    if not entry.shape or (entry.name.endswith("bias") and role.role is None):
        return NO_MATRIX
    if role.layer is None and role.role != "norm":
        return OUTSIDE
    if unreadable and len(entry.shape) > 1:
        return unreadable
    if role.role is None:
        return "its name tells no role"
    return unreadable


def _default_stack(config: Mapping[str, Any]) -> str:
    """The stack of tensors whose names do not tell it."""
    if "image_size" in config and "vocab_size" not in config:
        return "vision"
    classes = " ".join(str(item) for item in config.get("architectures") or [])
    return "encoder" if "MaskedLM" in classes or "PreTraining" in classes else "decoder"
