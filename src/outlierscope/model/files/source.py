"""Source: from what the user names as MODEL to a folder with its files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError
from outlierscope.listener import silent
from outlierscope.model.files.hub import fetch_file, fetch_folder, files_of
from outlierscope.model.files.sentence_folder import MODULES, read_sentence_folder
from outlierscope.model.files.shards import read_json, some

if TYPE_CHECKING:
    from outlierscope.listener import Listener

GGUF, ADAPTER = ".gguf", "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: as the user gave it.
        folder: its files in Hugging Face format.
        config: content of its config.json.
        revision: commit on the hub; ``None`` for a local folder.
        origin: how it came into that folder, where it was not simply there, and what else belongs to it: ``gguf``,
            ``sentence_transformers``, ``adapter``.
        adapter: folder of the adapter that is to be merged into it.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    revision: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None

    @property
    def safetensors(self) -> bool:
        """Whether the weights are there as safetensors."""
        return _has(self.folder, "model.safetensors")

    @property
    def location(self) -> str:
        """The file or folder that the user named."""
        if self.adapter is not None:
            return str(self.adapter)
        return str(self.origin["gguf"]["file"] if "gguf" in self.origin else self.folder)


def find_source(
    name: str | Path,
    *,
    revision: str | None = None,
    remote_code: bool = False,
    listener: Listener = silent,
) -> Source:
    """The folder of a local model, or of a hub model after downloading what is not in the cache.

    Args:
        name: a folder in Hugging Face format, of sentence-transformers, with an adapter or with one .gguf file; a
            .gguf file; a hub id; or a hub id with the name of a .gguf file behind a colon.
        revision: branch, tag or commit of a hub model.
        remote_code: fetch Python files too.
        listener: told how far a conversion has come.

    Raises:
        UserError: when there is no such model, or its folder has no sound config.json or no weights.
    """
    text = str(name)
    path = Path(text).expanduser()
    if path.exists() and revision is not None:
        raise UserError(f"{text} is local; a revision applies to hub models only")
    if path.is_dir():
        return _in_folder(text, path, None, listener)
    if path.exists():
        if path.suffix == GGUF:
            return _from_gguf(text, path, None, listener)
        raise _not_a_folder(path)
    repository, _, file = text.partition(":")
    if file.endswith(GGUF):
        return _from_hub_file(text, repository, file, revision, listener)
    if path.suffix == GGUF:
        raise UserError(f"no such file: {text}")
    folder = fetch_folder(text, revision, remote_code=remote_code)
    if not any((folder / file).is_file() for file in ("config.json", MODULES, ADAPTER)):
        files = files_of(text, folder, revision, GGUF)
        if len(files) > 1:
            raise _which_one(text, files, f"{text}:{files[0]}")
        if files:
            return _from_hub_file(text, text, files[0], revision, listener)
    return _in_folder(text, folder, folder.name, listener)


def _in_folder(name: str, folder: Path, commit: str | None, listener: Listener) -> Source:
    sentence = read_sentence_folder(name, folder)
    if sentence is None:
        return _model_folder(name, folder, commit, listener)
    source = _model_folder(name, folder / sentence.subfolder, commit, listener)
    own = sentence.describe(folder / sentence.subfolder)
    return replace(source, origin=source.origin | {"sentence_transformers": own})


def _model_folder(name: str, folder: Path, commit: str | None, listener: Listener) -> Source:
    if not folder.is_dir():
        raise UserError(f"{name} lacks the folder {folder.name} that its {MODULES} names")
    has_weights = any(_has(folder, weights) for weights in ("model.safetensors", "pytorch_model.bin"))
    if (folder / ADAPTER).is_file():
        if has_weights:
            raise UserError(
                f"{name} holds a whole model and an adapter beside it, so it may or may not be merged already; "
                f"give a copy without {ADAPTER} to scan the model, or one without the model to scan the adapter"
            )
        return _with_adapter(name, folder, commit, listener)
    if not has_weights:
        files = sorted(path.name for path in folder.iterdir() if path.suffix == GGUF)
        if len(files) > 1:
            raise _which_one(name, files, str(folder / files[0]))
        if files:
            return _from_gguf(name, folder / files[0], commit, listener)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} has no config.json, so it is not a model folder in Hugging Face format")
    config = read_json(folder / "config.json")
    if not has_weights:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".h5", ".msgpack", ".onnx"))
        seen = f" (it has {', '.join(others[:3])}, which cannot be read)" if others else ""
        raise UserError(f"{name} has no weights: neither model.safetensors nor pytorch_model.bin{seen}")
    return Source(name, folder, config, commit)


def _with_adapter(name: str, folder: Path, commit: str | None, listener: Listener) -> Source:
    """The base model that an adapter names, and the adapter with it."""
    config = read_json(folder / ADAPTER)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise UserError(f"{folder / ADAPTER} names no base model (base_model_name_or_path)")
    if (folder / base_name).is_dir():
        base_name = str(folder / base_name)
    revision = None if Path(base_name).exists() else config.get("revision")
    try:
        base = find_source(base_name, revision=revision, listener=listener)
    except UserError as error:
        raise UserError(
            f"{name} is an adapter, and its base model cannot be had: {error}; "
            f"base_model_name_or_path in {folder / ADAPTER} says where it is"
        ) from error
    if base.adapter is not None:
        raise UserError(f"{name} is an adapter of {base.name}, which is an adapter too; merge that one first")
    own = {
        "type": config.get("peft_type"),
        "task": config.get("task_type"),
        "auto_mapping": config.get("auto_mapping"),
        "base": base.name,
        "base_source": base.location,
        "base_revision": base.revision,
    }
    return Source(name, base.folder, base.config, commit, base.origin | {"adapter": own}, folder)


def _has(folder: Path, weights: str) -> bool:
    """Whether a folder has weights of this name, in one file or in shards."""
    return any((folder / f"{weights}{end}").is_file() for end in ("", ".index.json"))


def _from_gguf(name: str, path: Path, commit: str | None, listener: Listener) -> Source:
    # Only a .gguf file needs what is imported here.
    from outlierscope.model.files.gguf_conversion import convert_gguf

    folder, origin = convert_gguf(path, listener)
    return Source(name, folder, read_json(folder / "config.json"), commit, {"gguf": origin})


def _from_hub_file(name: str, repository: str, file: str, revision: str | None, listener: Listener) -> Source:
    listener(f"fetching {file}", 0, None)
    path = fetch_file(repository, file, revision)
    commit = path.parents[len(Path(file).parts) - 1].name
    return _from_gguf(name, path, commit, listener)


def _which_one(name: str, files: list[str], example: str) -> UserError:
    return UserError(f"{name} has {len(files)} .gguf files ({some(files)}); say which one, such as {example}")


def _not_a_folder(path: Path) -> UserError:
    if path.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth"):
        return UserError(
            f"{path} is a single file; give the model's folder (with config.json) instead: {path.parent}"
        )
    return UserError(
        f"{path} has an unknown file type; give a folder in Hugging Face format, a .gguf file or a hub id"
    )
