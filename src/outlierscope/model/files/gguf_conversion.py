"""GGUF conversion: the model in a .gguf file, dequantized by transformers once and kept in Hugging Face format."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from outlierscope.errors import UserError, first_line
from outlierscope.model.device import GIBIBYTE, check_memory
from outlierscope.model.files.cache import cache_folder, cannot_write, kept_folder
from outlierscope.model.files.gguf import GgufHeader, read_gguf_header
from outlierscope.model.loading_report import judge_report, quiet
from outlierscope.model.packages import need_package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from outlierscope.listener import Listener

BYTES_AT_ONCE = 1 << 24

BYTES_PER_VALUE = 4
"""Weights are kept in float32, which holds every dequantized value exactly."""


def convert_gguf(path: Path, listener: Listener) -> tuple[Path, dict[str, Any]]:
    """The model in a .gguf file as a folder in Hugging Face format, in float32.

    Converted once per content and version of transformers: the folder is in the user's cache, under the SHA-256 of
    the file's bytes.

    Args:
        path: the file.
        listener: told how far it has come.

    Returns:
        The folder; and where its weights come from, as plain values.

    Raises:
        UserError: when the file is broken, transformers does not know its architecture, a package is missing, or
            there is no room in memory or in the cache.
    """
    header = read_gguf_header(path)
    digest = _sha256(path, listener)
    folder = cache_folder() / "gguf" / f"{digest}-transformers-{version('transformers')}"
    made = kept_folder(folder, lambda unfinished: _convert(header, unfinished, listener))
    return folder, {"file": str(path), "sha256": digest, "converted": str(folder)} | made


def _sha256(path: Path, listener: Listener) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BYTES_AT_ONCE):
            digest.update(block)
            done += len(block)
            listener(f"reading {path.name}", done, size)
    return digest.hexdigest()


def _convert(header: GgufHeader, folder: Path, listener: Listener) -> dict[str, Any]:
    path = header.path
    needed = header.elements * BYTES_PER_VALUE
    check_memory(str(path), needed, advice="a larger machine converts it, once for all scans with this cache")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise cannot_write(
            f"{path.name} takes about {needed / GIBIBYTE:.1f} GiB there, {free / GIBIBYTE:.1f} GiB are free"
        )
    need_package("accelerate", f"{path}: dequantizing .gguf files", "gguf")
    stage = f"dequantizing {path.name} ({header.quantization}), once"
    listener(stage, 0, None)
    with quiet():
        with _read_once(), _tensors_told(listener, stage):
            model, notes = _load(header)
            listener("making its tokenizer", 0, None)
            tokenizer, problem = _tokenizer(path)
        listener("keeping the dequantized model", 0, None)
        try:
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise cannot_write(first_line(error)) from error
    return header.describe() | {"notes": notes, "processor_problem": problem}


def _load(header: GgufHeader) -> tuple[Any, dict[str, list[str]]]:
    """The model in float32, and what its file lacked."""
    import torch
    import transformers

    path = header.path
    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        module, report = _class_for(config).from_pretrained(
            path.parent,
            config=config,
            gguf_file=path.name,
            # Where kernels for packed weights are installed they would stay packed.
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    # transformers raises whatever it likes for a file that it cannot read; the cause stays attached.
    except Exception as error:
        raise UserError(
            f"{path}: transformers {transformers.__version__} cannot dequantize this file of architecture "
            f"{header.architecture!r} ({first_line(error)}); a newer one may, else give the model in Hugging Face format"
        ) from error
    base = module.base_model
    prefix = next((f"{name}." for name, child in module.named_modules() if child is base and name), "")
    notes = judge_report(str(path), prefix, report)
    # The weights are plain by now: nothing that is saved may say otherwise.
    module.hf_quantizer = None
    module.is_quantized = False
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    return module, notes


def _class_for(config: Any) -> Any:
    """The class that the file's config names, else the one with a head for writing text where there is one."""
    import transformers

    for name in config.architectures or []:
        found = getattr(transformers, str(name), None)
        if found is not None:
            return found
    for automatic in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in automatic._model_mapping:
            return automatic
    return transformers.AutoModel


def _tokenizer(path: Path) -> tuple[Any, str]:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), ""
    # A model without its tokenizer can still be scanned on token ids; the problem is told when it matters.
    except Exception as error:
        return None, f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _read_once() -> Iterator[None]:
    """Within, transformers' three readings of one file share the first one: 25 s each for 262,144 tokens."""
    import functools

    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


@contextmanager
def _tensors_told(listener: Listener, stage: str) -> Iterator[None]:
    """Within, the listener is told of each dequantized tensor, instead of a bar of transformers' own."""
    from transformers import modeling_gguf_pytorch_utils as reading

    bar = reading.tqdm  # type: ignore[attr-defined]

    def told(tensors: list[Any], **_: Any) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            listener(stage, number, len(tensors))
            yield tensor

    reading.tqdm = told  # type: ignore[attr-defined]
    try:
        yield
    finally:
        reading.tqdm = bar  # type: ignore[attr-defined]
