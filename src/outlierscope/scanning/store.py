"""Files of a scan folder: each written beside its place, flushed, and moved there in one step."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file atomically.

    Returns:
        The SHA-256 of the content, as hexadecimal digits.

    Raises:
        UserError: when the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --out"
        ) from error
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> str:
    """Write a JSON file atomically; not-a-number and infinity become null, which JSON can hold."""
    text = json.dumps(finite(content), indent=1, sort_keys=False, ensure_ascii=False, default=str)
    return write_bytes(path, text.encode() + b"\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, tensors_to_bytes(contiguous, metadata))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: when there is no such file or it is broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is broken: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken: not a JSON object")
    return content


def read_tensors(path: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    """Names of the tensors of a safetensors file and a function that reads one.

    Raises:
        UserError: when there is no such file or it is broken.
    """
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
    return names, file.get_tensor


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """A value of JSON, with ``None`` for every number in it that JSON does not have."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
