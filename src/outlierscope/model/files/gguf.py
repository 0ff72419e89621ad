"""GGUF: the header of a .gguf file, read and checked before anything else.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian: ``GGUF``, a version, the
numbers of tensors and of metadata entries, the entries (key, type, value), the tensors (name, dimensions, type,
place), padding, the tensors' bytes. Read here rather than with ``gguf.GGUFReader``, which makes arrays of every
token of the vocabulary and so takes 25 s where this takes half a second (Gemma 3).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError
from outlierscope.model.packages import need_package

if TYPE_CHECKING:
    from pathlib import Path

SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""Metadata types of one number, by the format's number of the type."""

STRING, ARRAY = 8, 9

UNQUANTIZED = ("F64", "F32", "F16", "BF16")
"""Tensor types that hold plain numbers."""


@dataclass(frozen=True)
class GgufHeader:
    """What a .gguf file says of itself.

    Attributes:
        path: the file.
        metadata: its entries; of an array only the length.
        types: tensor -> the format's name of its type, such as ``Q4_K``.
        elements: how many numbers all tensors hold.
    """

    path: Path
    metadata: dict[str, Any]
    types: dict[str, str]
    elements: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    @property
    def quantized(self) -> bool:
        """Whether any tensor is stored in a quantized type."""
        return any(name not in UNQUANTIZED for name in self.types.values())

    @property
    def quantization(self) -> str:
        """The file's type as llama.cpp calls it, such as ``Q4_K_M``, else that of most tensors that are no norms."""
        from gguf import LlamaFileType

        try:
            return LlamaFileType(self.metadata["general.file_type"]).name.split("_", 1)[1]
        except (KeyError, ValueError, IndexError):
            names = Counter(name for name in self.types.values() if name != "F32")
            return names.most_common(1)[0][0] if names else "F32"

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        return {
            "architecture": self.architecture,
            "quantized": self.quantized,
            "quantization": self.quantization,
            "tensor_types": dict(Counter(self.types.values()).most_common()),
        }


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a .gguf file; of its tensors only where they end.

    Raises:
        UserError: when the package ``gguf`` is not installed, or the file is no whole .gguf file with a model in it.
    """
    need_package("gguf", f"{path}: reading .gguf files", "gguf")
    import gguf

    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is no .gguf file: it does not begin with GGUF; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                metadata, tensors, end = _read(content)
            except (struct.error, IndexError):
                raise UserError(
                    f"{path} is truncated: its header goes beyond its {size:,} bytes; download it again"
                ) from None
            except (ValueError, OverflowError, RecursionError) as error:
                raise UserError(f"{path} is no sound .gguf file: {error}; download it again") from None
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise UserError(f"{path} is no sound .gguf file: its alignment is {alignment!r}; download it again")
    start = -(-end // alignment) * alignment
    types, elements = {}, 0
    for name, shape, number, offset in tensors:
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise UserError(
                f"{path}: tensor {name} has type {number}, which gguf does not know; a newer one may "
                "(pip install -U gguf)"
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        last = start + offset + math.prod(shape) // block * block_bytes
        if last > size:
            raise UserError(
                f"{path} is truncated: tensor {name} ends at byte {last:,}, the file at {size:,}; download it again"
            )
        types[name] = kind.name
        elements += math.prod(shape)
    return _checked(GgufHeader(path, metadata, types, elements))


def _checked(header: GgufHeader) -> GgufHeader:
    """Refuse what is a .gguf file but no whole model."""
    path, metadata = header.path, header.metadata
    if "general.architecture" not in metadata or not header.types:
        raise UserError(f"{path} holds no model: it has no general.architecture or no tensors")
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(
            f"{path} holds no model but the {kind} of one; give the .gguf file of the model itself"
        )
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; join them with `llama-gguf-split --merge` and give the result"
        )
    return header


def _read(content: mmap.mmap) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
    """Metadata, tensors (name, shape, type, offset) and the place where the header ends."""
    version, tensor_count, entry_count = struct.unpack_from("<IQQ", content, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format, not 2 or 3")
    place = 24
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key, place = _string(content, place)
        (kind,) = struct.unpack_from("<I", content, place)
        metadata[key], place = _value(content, place + 4, kind)
    tensors = []
    for _ in range(tensor_count):
        name, place = _string(content, place)
        (dimensions,) = struct.unpack_from("<I", content, place)
        shape = struct.unpack_from(f"<{dimensions}Q", content, place + 4)
        place += 4 + 8 * dimensions
        number, offset = struct.unpack_from("<IQ", content, place)
        tensors.append((name, shape, number, offset))
        place += 12
    return metadata, tensors, place


def _value(content: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """One metadata value (of an array its length) and the place after it."""
    if kind in SCALARS:
        (value,) = struct.unpack_from(SCALARS[kind], content, place)
        return value, place + struct.calcsize(SCALARS[kind])
    if kind == STRING:
        return _string(content, place)
    if kind != ARRAY:
        raise ValueError(f"a metadata entry of unknown type {kind}")
    inner, count = struct.unpack_from("<IQ", content, place)
    place += 12
    if inner in SCALARS:
        place += count * struct.calcsize(SCALARS[inner])
    else:
        for _ in range(count):
            if inner == STRING:
                (length,) = struct.unpack_from("<Q", content, place)
                place += 8 + length
            else:
                _, place = _value(content, place, inner)
    return count, place


def _string(content: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", content, place)
    end = place + 8 + length
    if end > len(content):
        raise IndexError(end)
    return content[place + 8 : end].decode("utf-8"), end
