"""Shards: the safetensors files of a checkpoint, and their headers read and checked before anything else.

The format: 8 bytes with the header's length N (little endian), N bytes of JSON that give each tensor's dtype,
shape and place, then the tensors' bytes (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element, by the format's name of the dtype."""

LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of one shard.

    Attributes:
        name: its name in the checkpoint.
        path: the shard.
        dtype: the format's name, such as ``BF16``.
        shape: sizes.
        begin: first byte in the file.
        length: bytes.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    length: int

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, in the order of their bytes; nothing else is read.

    Raises:
        UserError: when the file is no complete safetensors file, with the reason.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise UserError(
                f"{path} is a Git LFS pointer instead of the weights; fetch them with `git lfs pull`"
            )
        if len(start) < 8:
            raise UserError(f"{path} is no safetensors file: it has {size} bytes; download it again")
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            raise UserError(
                f"{path} is truncated or no safetensors file: its header claims {length:,} bytes, "
                f"the file has {size:,}; download it again"
            )
        if length > LONGEST_HEADER:
            raise UserError(
                f"{path} is no valid safetensors file: a header of {length:,} bytes; download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError
    except ValueError:  # also of a text that is no UTF-8
        raise UserError(f"{path} is corrupt: its header is no JSON object; download it again") from None
    header.pop("__metadata__", None)
    entries = [_entry(path, name, fields, 8 + length, size) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.name))
    for entry, following in pairwise(entries):
        if entry.begin + entry.length > following.begin:
            raise UserError(
                f"{path} is corrupt: tensors {entry.name} and {following.name} overlap; download it again"
            )
    return entries


def _entry(path: Path, name: str, fields: Mapping[str, Any], start: int, size: int) -> TensorEntry:
    try:
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and dtype in BITS
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"{path} is corrupt: its header has no sound entry for tensor {name!r}; download it again"
        )
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise UserError(
            f"{path} is corrupt: tensor {name} of shape {list(shape)} and dtype {dtype} "
            f"cannot have {end - begin:,} bytes; download it again"
        )
    if start + end > size:
        raise UserError(
            f"{path} is truncated: tensor {name} ends at byte {start + end:,}, the file at {size:,}; "
            "download it again"
        )
    return TensorEntry(name, path, dtype, shape, start + begin, end - begin)


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        UserError: when it is not that, with the line where JSON breaks off.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: line {error.lineno}, {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not valid JSON: it is no UTF-8 text") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def indexed_shards(index: Path) -> dict[str, list[str]]:
    """File name -> tensor names, from an index such as ``model.safetensors.index.json``.

    Raises:
        UserError: when the index is broken, or names a file outside of its folder or one that is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map from tensor names to files")
    shards: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        plain = (
            isinstance(name, str)
            and not PurePosixPath(name).is_absolute()
            and ".." not in PurePosixPath(name).parts
        )
        if not plain:
            raise UserError(f"{index} names a file outside of its folder for tensor {tensor}: {name!r}")
        shards.setdefault(name, []).append(tensor)
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} weight files that {index.name} names: "
            f"{some(missing)}; download them"
        )
    return shards


def read_shards(folder: Path) -> list[TensorEntry]:
    """Every tensor of a folder's ``model.safetensors``, or of the shards of its index; headers only.

    Raises:
        UserError: when there are none, or one is missing, truncated or corrupt.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise UserError(
            f"{folder} has no safetensors weights (model.safetensors or model.safetensors.index.json)"
        )
    entries: list[TensorEntry] = []
    for name, promised in sorted(indexed_shards(index).items()):
        found = read_header(folder / name)
        absent = sorted(set(promised) - {entry.name for entry in found})
        if absent:
            raise UserError(f"{folder / name} lacks tensors that {index.name} places in it: {some(absent)}")
        # A shard may hold tensors that the index places elsewhere; the index decides.
        entries += [entry for entry in found if entry.name in set(promised)]
    return entries


def some(names: list[str]) -> str:
    """The first three of a list of names, for a message.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
