"""Source: from what the user names as MODEL to a folder with its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlierscope.errors import UserError
from outlierscope.model.files.shards import read_json

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
HUB_ID = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: as the user gave it.
        folder: its files.
        config: content of its config.json.
        revision: commit on the hub; ``None`` for a local folder.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    revision: str | None = None

    @property
    def safetensors(self) -> bool:
        """Whether the weights are there as safetensors."""
        return any((self.folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))

    @property
    def pickle(self) -> bool:
        """Whether the weights are there as PyTorch pickles."""
        return any((self.folder / f"pytorch_model.bin{end}").is_file() for end in ("", ".index.json"))


def find_source(
    name: str | Path, *, revision: str | None = None, remote_code: bool = False, need_weights: bool = True
) -> Source:
    """The folder of a local model, or of a hub model after downloading what is not in the cache.

    Args:
        name: a folder in Hugging Face format, or a hub id.
        revision: branch, tag or commit of a hub model.
        remote_code: fetch Python files too.
        need_weights: whether a folder without weights is an error.

    Raises:
        UserError: when there is no such model, or its folder has no sound config.json or no weights.
    """
    text = str(name)
    path = Path(text).expanduser()
    if path.is_dir():
        folder, commit = path, None
        if revision is not None:
            raise UserError(f"{text} is a local folder; a revision applies to hub models only")
    else:
        if path.exists():
            raise _not_a_folder(path)
        if path.suffix == ".gguf":
            raise UserError(f"no such file: {text}")
        folder = _from_hub(text, revision, remote_code=remote_code)
        commit = folder.name
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{text} has no config.json, so it is not a model folder in Hugging Face format")
    source = Source(text, folder, read_json(config_path), commit)
    if need_weights and not (source.safetensors or source.pickle):
        others = sorted(
            item.name for item in folder.iterdir() if item.suffix in (".gguf", ".h5", ".msgpack", ".onnx")
        )
        seen = f" (it has {', '.join(others[:3])}, which cannot be read)" if others else ""
        raise UserError(f"{text} has no weights: neither model.safetensors nor pytorch_model.bin{seen}")
    return source


def _not_a_folder(path: Path) -> UserError:
    if path.suffix == ".gguf":
        return UserError(
            f"{path}: reading .gguf files is not supported yet; "
            "load it with transformers (gguf_file=...) and pass the live model to outlierscope.wrap"
        )
    if path.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth"):
        return UserError(
            f"{path} is a single file; give the model's folder (with config.json) instead: {path.parent}"
        )
    return UserError(f"{path} has an unknown file type; give a folder in Hugging Face format or a hub id")


def _from_hub(name: str, revision: str | None, *, remote_code: bool) -> Path:
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(os.sep) or not HUB_ID.fullmatch(name)
    if looks_like_path:
        raise UserError(f"no such folder: {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*patterns: str) -> Path:
        # "*/*": exports to other formats lie in subfolders.
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )

    try:
        code = ["*.py"] if remote_code else []
        folder = fetch(*SMALL_FILES, *code, "model.safetensors")
        if (folder / "model.safetensors.index.json").is_file() and not (
            folder / "model.safetensors"
        ).is_file():
            fetch(*_shard_names(folder / "model.safetensors.index.json"))
        elif not (folder / "model.safetensors").is_file():
            if (folder / "pytorch_model.bin.index.json").is_file():
                fetch(*_shard_names(folder / "pytorch_model.bin.index.json"))
            else:
                fetch("pytorch_model.bin")
    except GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms on huggingface.co and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"no such model: {name} is neither a folder here nor a model on the hub that you may see"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r}") from None
    except HFValidationError:
        raise UserError(f"no such model: {name} is neither a folder here nor a valid hub id") from None
    except LocalEntryNotFoundError:
        raise UserError(_unreachable(name, revision)) from None
    except OSError as error:
        raise UserError(f"cannot fetch {name} from the hub: {first_line(error)}") from error
    return folder


def _shard_names(index: Path) -> list[str]:
    names = set(read_json(index).get("weight_map", {}).values())
    return sorted(name for name in names if isinstance(name, str))


def _unreachable(name: str, revision: str | None) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    what = name if revision is None else f"{name} at revision {revision!r}"
    why = (
        "HF_HUB_OFFLINE is set; unset it to download"
        if HF_HUB_OFFLINE
        else "the hub cannot be reached; check the network"
    )
    return f"no such model: {what} is neither a folder here nor in the local Hugging Face cache, and {why}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without what follows it, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
