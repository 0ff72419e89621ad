"""Checkpoint: weights summarised straight from safetensors files, without building the model.

One block of one tensor is in memory at a time, so that a checkpoint of any size needs little of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError
from outlierscope.listener import silent
from outlierscope.model.files.shards import TensorEntry, read_header, read_shards, some
from outlierscope.model.files.source import Source, find_source
from outlierscope.model.workers import side_by_side
from outlierscope.version import versions
from outlierscope.weights.loaded_names import LoadedNames, loaded_names
from outlierscope.weights.numbers import FLOATING, PACKED, SCALED
from outlierscope.weights.parts import NO_MATRIX, OUTSIDE, SCALES, Part, Parts, find_parts
from outlierscope.weights.summary import (
    MatrixScan,
    MatrixSummary,
    add_stored_rows,
    rows_per_block,
    summarize_norm,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from torch import Tensor

    from outlierscope.listener import Listener

EXPECTED = (NO_MATRIX, OUTSIDE, SCALES)
"""Why tensors are left out that hold no weights of blocks anyway."""

SAMPLED_BYTES = 256
"""Bytes at either end of each tensor that enter the fingerprint."""


@dataclass(eq=False)
class Checkpoint:
    """The tensors of a checkpoint, with what the loaded model makes of them and the roles that their names tell.

    Attributes:
        source: what the user named, its folder and its config; the config is empty for a file without one.
        entries: every tensor, from the headers.
        names: what becomes of them when transformers loads them.
        parts: the matrices and norms that are summarised, and the tensors that are not.
        largest_block: bytes of the largest piece of a tensor that was in memory so far.
    """

    source: Source
    entries: list[TensorEntry]
    names: LoadedNames
    parts: Parts
    largest_block: int = 0

    def summaries(self, kept_sigma: float) -> Iterator[tuple[Part, MatrixSummary]]:
        """Summaries one after the other, in the order of the files; every expert has its own.

        Args:
            kept_sigma: as for ``MatrixScan.summary``.

        Raises:
            UserError: when a file ends early (it changed since its header was read).
        """
        parts = self.parts.found
        return zip(parts, side_by_side(lambda part: self._summarize(part, kept_sigma), parts), strict=True)

    def _summarize(self, part: Part, kept_sigma: float) -> MatrixSummary:
        rows, columns = (stop - start for start, stop in (part.rows, part.columns))
        if part.place.role == "norm":
            ((_, values),) = self._blocks(part, rows)
            return summarize_norm(values[:, 0], part.place)
        out_and_in = (columns, rows) if part.transposed else (rows, columns)
        scan = MatrixScan(*out_and_in)
        for start, block in self._blocks(
            part, rows_per_block(part.row_bytes // SCALED[part.entry.dtype].itemsize)
        ):
            add_stored_rows(scan, block, start, transposed=part.transposed)
        return scan.summary(part.place, kept_sigma)

    def _blocks(self, part: Part, step: int) -> Iterator[tuple[int, Tensor]]:
        """Consecutive rows [r, columns] of a part, and the row of it that each begins with; memory is used again."""
        entry, dtype = part.entry, SCALED[part.entry.dtype]
        first, last = part.rows
        matrix_rows = entry.shape[-2] if len(entry.shape) > 1 else entry.shape[0]
        scales = self._scales(part)
        buffer = bytearray(min(step, last - first) * part.row_bytes)
        with entry.path.open("rb", buffering=0) as file:
            for row in range(first, last, step):
                rows = min(step, last - row)
                room = memoryview(buffer)[: rows * part.row_bytes]
                self._read(file, entry, (part.index * matrix_rows + row) * part.row_bytes, room)
                block = torch.frombuffer(room, dtype=dtype).view(rows, -1)  # [r, stored columns]
                if scales is not None and part.scale is not None:
                    block = part.scale.applied(block, scales, row)
                yield row - first, block[:, slice(*part.columns)]

    def _scales(self, part: Part) -> Tensor | None:
        """The scales [grid] of a part's matrix."""
        if part.scale is None:
            return None
        scale = part.scale
        dtype = FLOATING[scale.entry.dtype]
        rows, columns = scale.grid
        buffer = bytearray(rows * columns * dtype.itemsize)
        with scale.entry.path.open("rb", buffering=0) as file:
            self._read(file, scale.entry, part.index * len(buffer) if scale.each else 0, buffer)
        return torch.frombuffer(buffer, dtype=dtype).view(rows, columns)

    def _read(self, file: FileIO, entry: TensorEntry, first: int, buffer: bytearray | memoryview) -> None:
        """Fill the buffer with a tensor's bytes from the ``first`` on.

        Read rather than mapped: mapped pages would count as this process's memory.
        """
        self.largest_block = max(self.largest_block, len(buffer))
        file.seek(entry.begin + first)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            got = file.readinto(view[filled:])
            if not got:
                raise UserError(f"{entry.path} ends within tensor {entry.name}; was it changed meanwhile?")
            filled += got

    def fingerprint(self) -> str:
        """SHA-256 over the config, every tensor's name, dtype and shape, and the bytes at its ends.

        It is comparable among checkpoints, not with the fingerprint of a loaded model.
        """
        digest = hashlib.sha256(json.dumps(self.source.config, sort_keys=True).encode())
        for entry in sorted(self.entries, key=lambda entry: entry.name):
            digest.update(f"{entry.name} {entry.dtype} {entry.shape}".encode())
            with entry.path.open("rb") as file:
                for place in (entry.begin, entry.begin + max(0, entry.length - SAMPLED_BYTES)):
                    file.seek(place)
                    digest.update(file.read(min(SAMPLED_BYTES, entry.length)))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        source, files = self.source, {entry.path for entry in self.entries}
        kept = {part.entry.name for part in self.parts.found}
        unmapped = {name: why for name, why in self.names.as_stored.items() if name in kept}
        return {
            "name": source.name,
            "source": source.location,
            "revision": source.revision,
            "class": next(iter(source.config.get("architectures") or []), None),
            "run": None,
            "model_type": source.config.get("model_type"),
            "parameters": sum(entry.elements for entry in self.entries),
            "dtype": ", ".join(sorted({entry.dtype for entry in self.entries})),
            "device": "cpu",
            "files": len(files),
            "bytes": sum(entry.length for entry in self.entries),
            "fingerprint": self.fingerprint(),
            "notes": {
                "roles": "from tensor names, not proved",
                "names": f"as stored: {self.names.reason}" if self.names.reason else "of the loaded model",
                "named_as_stored": _by_reason(unmapped),
                "left_out": _by_reason(self.parts.left_out),
                "orientation_assumed": self.parts.orientation_assumed,
            },
            "origin": source.origin,
            "versions": versions(),
        }

    def not_told(self) -> list[dict[str, str]]:
        """What a reader must not take for absent: matrices of blocks that were left out, names that are unknown."""
        rows = [
            {"what": f"{group['count']} tensor{'s'[: group['count'] > 1]} ({group['some']})", "why": reason}
            for reason, group in _by_reason(self.parts.left_out).items()
            if reason not in EXPECTED
        ]
        if self.names.reason:
            rows.append({"what": "names of the loaded model", "why": self.names.reason})
        return rows


def _by_reason(reasons: dict[str, str]) -> dict[str, dict[str, Any]]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return {reason: {"count": len(found), "some": some(found)} for reason, found in names.items()}


def open_checkpoint(
    name: str | Path, *, revision: str | None = None, listener: Listener = silent
) -> Checkpoint:
    """Read and check the headers of a checkpoint's safetensors files.

    Args:
        name: a folder, a hub id, one .safetensors file, or a .gguf file (then of its dequantized copy).
        revision: branch, tag or commit of a hub model.
        listener: told how far a conversion has come.

    Raises:
        UserError: when there is no such checkpoint, it holds no safetensors or is broken, or no tensor's name
            tells a role.
    """
    path = Path(name).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        source, entries = Source(str(name), path.parent, {}), read_header(path)
    else:
        source = find_source(name, revision=revision, listener=listener)
        if source.adapter is not None:
            raise UserError(
                f"{name} is an adapter, and merging it needs the model: scan the whole model instead, "
                f"or the weights of its base {source.origin['adapter']['base']} alone"
            )
        if not source.safetensors:
            raise UserError(
                f"{name} has its weights in pickles only; weights alone are read from safetensors: "
                "scan the whole model instead, or convert it"
            )
        entries = read_shards(source.folder)
    names = loaded_names(source, entries)
    parts = find_parts(names, entries, source.config)
    if not any(part.place.role != "norm" for part in parts.found):
        packed = sorted({reason for reason in parts.left_out.values() if reason.endswith(PACKED)})
        if packed:
            raise UserError(
                f"{name}: its weight matrices are {' and '.join(packed)}, which are no numbers to look at; "
                "scan the checkpoint that it was quantized from"
            )
        raise UserError(
            f"{name}: no name of its {len(entries)} tensors tells a weight matrix of a block; "
            "scan the whole model instead, which finds them by what they do"
        )
    return Checkpoint(source, entries, names, parts)
