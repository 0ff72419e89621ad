"""Hub: the files of a hub model that are needed, and no others, fetched into the local cache."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outlierscope.errors import UserError, first_line
from outlierscope.model.files.shards import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
HUB_ID = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")


def fetch_folder(name: str, revision: str | None, *, remote_code: bool) -> Path:
    """Folder in the local cache with the small files of a hub model and its weights in one format.

    Raises:
        UserError: when there is no such model, or it cannot be fetched.
    """
    _check_id(name)
    with _as_one_line(name, revision):
        folder = _download(
            name, revision, *SMALL_FILES, *(["*.py"] if remote_code else []), "model.safetensors"
        )
        if (folder / "model.safetensors").is_file():
            return folder
        if (folder / "model.safetensors.index.json").is_file():
            _download(name, revision, *_shard_names(folder / "model.safetensors.index.json"))
        elif (folder / "pytorch_model.bin.index.json").is_file():
            _download(name, revision, *_shard_names(folder / "pytorch_model.bin.index.json"))
        else:
            _download(name, revision, "pytorch_model.bin")
    return folder


def fetch_file(name: str, file: str, revision: str | None) -> Path:
    """One file of a hub model, in the local cache; it may lie in a subfolder.

    Raises:
        UserError: when there is no such model or file, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    _check_id(name)
    with _as_one_line(name, revision):
        path = Path(snapshot_download(name, revision=revision, allow_patterns=[file])) / file
    if not path.is_file():
        raise UserError(f"{name} has no file {file}")
    return path


def files_of(name: str, folder: Path, revision: str | None, ending: str) -> list[str]:
    """Names of a hub model's files with this ending; without a network, of those in its ``folder`` of the cache.

    Raises:
        UserError: when the hub refuses to say.
    """
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _as_one_line(name, revision):
        try:
            files = list_repo_files(name, revision=revision)
        except (OfflineModeIsEnabled, ConnectionError):
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return sorted(file for file in files if file.endswith(ending))


def _check_id(name: str) -> None:
    if name.startswith((".", "/", "~")) or name.endswith(os.sep) or not HUB_ID.fullmatch(name):
        raise UserError(f"no such folder: {name}")


def _download(name: str, revision: str | None, *patterns: str) -> Path:
    from huggingface_hub import snapshot_download

    # "*/*": exports to other formats lie in subfolders.
    return Path(
        snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
    )


def _shard_names(index: Path) -> list[str]:
    names = set(read_json(index).get("weight_map", {}).values())
    return sorted(name for name in names if isinstance(name, str))


@contextmanager
def _as_one_line(name: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
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


def _unreachable(name: str, revision: str | None) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    what = name if revision is None else f"{name} at revision {revision!r}"
    why = (
        "HF_HUB_OFFLINE is set; unset it to download"
        if HF_HUB_OFFLINE
        else "the hub cannot be reached; check the network"
    )
    return f"no such model: {what} is neither a folder here nor in the local Hugging Face cache, and {why}"
