"""Hub: the files of a hub model that are needed, and no others, fetched into the local cache."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outlierscope.errors import UserError, first_line
from outlierscope.model.files.sentence_folder import read_sentence_folder
from outlierscope.model.files.shards import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
HUB_ID = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")


def fetch_folder(name: str, revision: str | None, *, remote_code: bool) -> Path:
    """Folder in the local cache with the small files of a hub model and its weights in one format.

    Those of an adapter as well, and those in the subfolder where sentence-transformers keeps the transformer.

    Raises:
        UserError: when there is no such model, or it cannot be fetched.
    """
    _check_id(name)
    with _as_one_line(name, revision):
        folder = _fetch(name, revision, "", remote_code=remote_code)
        sentence = read_sentence_folder(name, folder)
        if sentence is not None and sentence.subfolder:
            _fetch(name, revision, f"{sentence.subfolder}/", remote_code=remote_code)
    return folder


def _fetch(name: str, revision: str | None, within: str, *, remote_code: bool) -> Path:
    """Fetch the files of one folder (empty, or its name with a slash); the repository's folder in the cache."""

    def download(*patterns: str) -> Path:
        from huggingface_hub import snapshot_download

        # Exports to other formats lie in subfolders.
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[f"{within}{pattern}" for pattern in patterns],
                ignore_patterns=[f"{within}*/*"],
            )
        )

    code = ["*.py"] if remote_code else []
    repository = download(*SMALL_FILES, *code, "model.safetensors", "adapter_model.safetensors")
    folder = repository / within
    if (folder / "model.safetensors").is_file():
        return repository
    if (folder / "model.safetensors.index.json").is_file():
        download(*_shard_names(folder / "model.safetensors.index.json"))
    elif (folder / "pytorch_model.bin.index.json").is_file():
        download(*_shard_names(folder / "pytorch_model.bin.index.json"))
    else:
        download("pytorch_model.bin")
        if (folder / "adapter_config.json").is_file() and not (
            folder / "adapter_model.safetensors"
        ).is_file():
            download("adapter_model.bin")
    return repository


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
