"""Checkpoint: weights summarised straight from safetensors files, without building the model.

One block of one tensor is in memory at a time, so that a checkpoint of any size needs little of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError
from outlierscope.model.files.orientation import Oriented, orient
from outlierscope.model.files.shards import TensorEntry, read_header, read_shards, some
from outlierscope.model.files.source import find_source
from outlierscope.model.files.tensor_names import TensorRole, read_tensor_name
from outlierscope.model.workers import side_by_side
from outlierscope.version import versions
from outlierscope.weights.summary import (
    MatrixScan,
    MatrixSummary,
    WeightPlace,
    add_stored_rows,
    rows_per_block,
    summarize_norm,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from torch import Tensor

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""dtypes that hold weights as numbers; the others hold packed weights, masks or scales."""

SAMPLED_BYTES = 256
"""Bytes at either end of each tensor that enter the fingerprint."""


@dataclass(frozen=True)
class _Job:
    """One matrix or norm to summarise; ``index`` is its place in a tensor of several matrices."""

    entry: TensorEntry
    place: WeightPlace
    oriented: Oriented
    index: int


@dataclass(eq=False)
class Checkpoint:
    """The tensors of a checkpoint with the roles that their names tell.

    Attributes:
        name: as the user gave it.
        folder: where the files are.
        config: content of config.json; empty for a single file without one.
        revision: commit of a hub model.
        entries: every tensor, from the headers.
        weights: the tensors that are summarised, with their places and how they are stored.
        left_out: tensor -> why it is not summarised.
        largest_block: bytes of the largest piece of a tensor that was in memory so far.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    revision: str | None
    entries: list[TensorEntry]
    weights: list[tuple[TensorEntry, WeightPlace, Oriented]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    largest_block: int = 0

    def __post_init__(self) -> None:
        roles = [(entry, read_tensor_name(entry.name, len(entry.shape))) for entry in self.entries]
        stored = orient(roles, self.config.get("hidden_size"))
        for entry, role in roles:
            reason = _reason_to_leave_out(entry, role)
            if reason:
                self.left_out[entry.name] = reason
                continue
            stack = role.stack or _default_stack(self.config)
            place = WeightPlace(stack, role.layer, role.role or "", role.module, entry.name, role.expert)
            self.weights.append((entry, place, stored.get(entry.name, Oriented(transposed=False))))

    def summaries(self) -> Iterator[MatrixSummary]:
        """Summaries one after the other, in the order of the files; experts in one tensor give one each.

        Raises:
            UserError: when a file ends early (it changed since its header was read).
        """
        jobs: list[_Job] = []
        for entry, place, oriented in self.weights:
            if len(entry.shape) == 3:
                jobs += [
                    _Job(entry, replace(place, expert=expert), oriented, expert)
                    for expert in range(entry.shape[0])
                ]
            else:
                jobs.append(_Job(entry, place, oriented, 0))
        return side_by_side(self._summarize, jobs)

    def _summarize(self, job: _Job) -> MatrixSummary:
        entry, transposed = job.entry, job.oriented.transposed
        with entry.path.open("rb", buffering=0) as file:
            if job.place.role == "norm":
                return summarize_norm(self._read(file, entry, 0, bytearray(entry.length)), job.place)
            stored_rows, stored_columns = entry.shape[-2:]
            rows_and_columns = (stored_columns, stored_rows) if transposed else (stored_rows, stored_columns)
            scan = MatrixScan(*rows_and_columns)
            step = rows_per_block(stored_columns)
            row_bytes = stored_columns * FLOATING[entry.dtype].itemsize
            buffer = bytearray(min(step, stored_rows) * row_bytes)
            for start in range(0, stored_rows, step):
                rows = min(step, stored_rows - start)
                first = (job.index * stored_rows + start) * row_bytes
                block = self._read(file, entry, first, memoryview(buffer)[: rows * row_bytes])
                add_stored_rows(scan, block.view(rows, stored_columns), start, transposed=transposed)
            return scan.summary(job.place)

    def _read(self, file: FileIO, entry: TensorEntry, first: int, buffer: bytearray | memoryview) -> Tensor:
        """Fill the buffer with a tensor's bytes from the ``first`` on; a flat tensor that shares its memory.

        Read rather than mapped: mapped pages would count as this process's memory.
        """
        dtype = FLOATING[entry.dtype]
        if not len(buffer):
            return torch.empty(0, dtype=dtype)
        self.largest_block = max(self.largest_block, len(buffer))
        file.seek(entry.begin + first)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            got = file.readinto(view[filled:])
            if not got:
                raise UserError(f"{entry.path} ends within tensor {entry.name}; was it changed meanwhile?")
            filled += got
        return torch.frombuffer(buffer, dtype=dtype)

    def fingerprint(self) -> str:
        """SHA-256 over the config, every tensor's name, dtype and shape, and the bytes at its ends.

        It is comparable among checkpoints, not with the fingerprint of a loaded model.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for entry in sorted(self.entries, key=lambda entry: entry.name):
            digest.update(f"{entry.name} {entry.dtype} {entry.shape}".encode())
            with entry.path.open("rb") as file:
                for place in (entry.begin, entry.begin + max(0, entry.length - SAMPLED_BYTES)):
                    file.seek(place)
                    digest.update(file.read(min(SAMPLED_BYTES, entry.length)))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        reasons = Counter(self.left_out.values())
        return {
            "name": self.name,
            "source": str(self.folder),
            "revision": self.revision,
            "class": next(iter(self.config.get("architectures") or []), None),
            "run": None,
            "model_type": self.config.get("model_type"),
            "parameters": sum(entry.elements for entry in self.entries),
            "dtype": ", ".join(sorted({entry.dtype for entry in self.entries})),
            "device": "cpu",
            "files": len({entry.path for entry in self.entries}),
            "bytes": sum(entry.length for entry in self.entries),
            "fingerprint": self.fingerprint(),
            "notes": {
                "roles": "from tensor names, not proved",
                "left_out": {
                    reason: {
                        "count": count,
                        "some": some([n for n, r in self.left_out.items() if r == reason]),
                    }
                    for reason, count in reasons.items()
                },
                "orientation_assumed": [
                    entry.name for entry, _, oriented in self.weights if oriented.assumed
                ],
            },
            "versions": versions(),
        }


def open_checkpoint(name: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Read and check the headers of a checkpoint's safetensors files.

    Args:
        name: a folder, a hub id, or one .safetensors file.
        revision: branch, tag or commit of a hub model.

    Raises:
        UserError: when there is no such checkpoint, it holds no safetensors or is broken, or no tensor's name
            tells a role.
    """
    path = Path(name).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        checkpoint = Checkpoint(str(name), path.parent, {}, None, read_header(path))
    else:
        source = find_source(name, revision=revision)
        if not source.safetensors:
            raise UserError(
                f"{name} has its weights in pickles only; weights alone are read from safetensors: "
                "scan the whole model instead, or convert it"
            )
        entries = read_shards(source.folder)
        checkpoint = Checkpoint(source.name, source.folder, source.config, source.revision, entries)
    if not any(place.role != "norm" for _, place, _ in checkpoint.weights):
        raise UserError(
            f"{name}: no name of its {len(checkpoint.entries)} tensors tells a weight matrix of a block; "
            "scan the whole model instead, which finds them by what they do"
        )
    return checkpoint


def _reason_to_leave_out(entry: TensorEntry, role: TensorRole) -> str:
    if not entry.shape or (entry.name.endswith("bias") and role.role is None):
        return "bias or scalar"
    if role.layer is None and role.role != "norm":
        return "outside of the blocks"
    if role.role is None:
        return "its name tells no role"
    if entry.dtype not in FLOATING:
        return f"stored as {entry.dtype}, so packed or quantized"
    return ""


def _default_stack(config: dict[str, Any]) -> str:
    """The stack of tensors whose names do not tell it."""
    if "image_size" in config and "vocab_size" not in config:
        return "vision"
    classes = " ".join(str(item) for item in config.get("architectures") or [])
    return "encoder" if "MaskedLM" in classes or "PreTraining" in classes else "decoder"
