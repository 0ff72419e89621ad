"""Numbers: what the bytes of a stored weight stand for, with the scales of quantized ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from outlierscope.model.files.shards import TensorEntry

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""dtypes of the format that are numbers as they stand; the last one is for powers of two as scales."""

SCALED = FLOATING | {"I8": torch.int8}
"""dtypes that are numbers once a scale is known."""

PACKED = "so packed or quantized"

USUAL_BLOCK = 128
"""Rows and columns that share a scale where config.json does not tell (DeepSeek-V3's technical report, section 3.3)."""


@dataclass(frozen=True)
class Scale:
    """The scales of a quantized tensor: what is stored times its scale is the weight.

    Attributes:
        entry: where the scales are.
        grid: how many scales there are along the rows and the columns of one stored matrix.
        block: rows and columns that share one.
        each: whether every matrix of a tensor of several has its own.
    """

    entry: TensorEntry
    grid: tuple[int, int]
    block: tuple[int, int]
    each: bool

    def applied(self, block: Tensor, scales: Tensor, row: int) -> Tensor:
        """The weights of consecutive stored rows, as float32.

        Args:
            block: [r, columns] as stored.
            scales: [grid] of this matrix.
            row: which stored row the first one is.

        >>> entry = None
        >>> scale = Scale(entry, (1, 2), (2, 2), False)
        >>> scale.applied(torch.ones(1, 3), torch.tensor([[2.0, 5.0]]), 1)
        tensor([[2., 2., 5.]])
        """
        rows = torch.arange(row, row + block.shape[0]) // self.block[0]  # [r]
        factors = scales.float()[rows]  # [r, grid columns]
        if self.grid[1] > 1:
            factors = factors.repeat_interleave(self.block[1], dim=1)[:, : block.shape[1]]  # [r, columns]
        return block.float() * factors


def find_scale(
    entry: TensorEntry, by_name: Mapping[str, TensorEntry], config: Mapping[str, Any]
) -> tuple[Scale | None, str]:
    """The scales of a stored tensor, and why its bytes are no numbers that can be read; empty where they are.

    Scales lie beside the weight under its name with ``_scale`` or ``_scale_inv`` (both are multiplied: compressed-tensors
    and DeepSeek-V3 agree in all but the name), one per tensor, per row or column, or per block.

    Args:
        entry: the tensor.
        by_name: all tensors of the checkpoint.
        config: content of config.json, which may tell the blocks' size.
    """
    if not entry.dtype.startswith(("F8_", "I8")):
        known = entry.dtype in FLOATING
        return None, "" if known else f"stored as {entry.dtype}, {PACKED}"
    scales = next((by_name[name] for name in _names_of_scales(entry.name) if name in by_name), None)
    if entry.dtype not in SCALED or (scales is None and entry.dtype not in FLOATING):
        return None, f"stored as {entry.dtype}, {PACKED}"
    if scales is None or len(entry.shape) < 2:
        return None, ""
    if f"{entry.name}_zero_point" in by_name:
        return None, "quantized with zero points, which are not read"
    scale = _fit(entry, scales, _told_block(config)) if scales.dtype in FLOATING else None
    if scale is None:
        shape = " x ".join(str(size) for size in scales.shape)
        return None, f"quantized, with scales that are not understood ({scales.dtype}, {shape or 'one'})"
    return scale, ""


def _names_of_scales(name: str) -> tuple[str, str]:
    return f"{name}_scale_inv", f"{name}_scale"


def _fit(entry: TensorEntry, scales: TensorEntry, told: tuple[int, int] | None) -> Scale | None:
    """How scales of this shape cover the matrices of a tensor; ``None`` where they do not."""
    shape, matrices = scales.shape, entry.shape[:-2]
    each = bool(matrices) and len(shape) >= 1 and shape[0] == matrices[0] and scales.elements > 1
    inner = shape[1:] if each else shape
    rows, columns = entry.shape[-2:]
    if math.prod(inner) == 1:
        grid = (1, 1)
    elif len(inner) == 1 and inner[0] == rows:
        grid = (rows, 1)
    elif len(inner) == 2:
        grid = (inner[0], inner[1])
    else:
        return None
    block = tuple(
        _length(size, number, told[axis] if told else None)
        for axis, (size, number) in enumerate(zip((rows, columns), grid, strict=True))
    )
    if 0 in block:
        return None
    return Scale(scales, grid, (block[0], block[1]), each)


def _length(size: int, number: int, told: int | None) -> int:
    """How many of ``size`` rows or columns share each of ``number`` scales; 0 where that cannot be told."""
    if number == 1:
        return size
    for length in (told, USUAL_BLOCK):
        if length and -(-size // length) == number:
            return length
    return size // number if number and size % number == 0 else 0


def _told_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of the blocks that share a scale, as config.json tells it."""
    quantization = config.get("quantization_config") or {}
    groups = quantization.get("config_groups") or {}
    told = [quantization.get("weight_block_size")]
    told += [(group.get("weights") or {}).get("block_structure") for group in groups.values()]
    for sizes in told:
        if (
            isinstance(sizes, list)
            and len(sizes) == 2
            and all(type(size) is int and size > 0 for size in sizes)
        ):
            return sizes[0], sizes[1]
    return None
