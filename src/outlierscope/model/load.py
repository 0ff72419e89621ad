"""Loading: a checkpoint or a live module becomes an ObservedModel; whatever is wrong becomes one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.listener import silent
from outlierscope.model.build import build
from outlierscope.model.device import GIBIBYTE, pick_device, pick_dtype
from outlierscope.model.files.source import Source, find_source
from outlierscope.model.loading_report import quiet
from outlierscope.model.observed import ObservedModel
from outlierscope.model.quantization import find_quantization

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from outlierscope.listener import Listener


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    revision: str | None = None,
    listener: Listener = silent,
) -> ObservedModel:
    """Load a model with its tokenizer, image processor or feature extractor, ready to be observed.

    The class is the one that the checkpoint's config names, so that module names are those of the checkpoint;
    the attention implementation is left at its default; the model is in eval mode.

    Args:
        name: a folder in Hugging Face format, a .gguf file, or a hub id (``docs/models.md``).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read a ``pytorch_model.bin`` that holds more than tensors; loading it can run any code.
            Without it such a file is read with PyTorch's restricted unpickler (``weights_only``).
        revision: branch, tag or commit of a hub model.
        listener: told how far it has come.

    Raises:
        UserError: in one line, for whatever is wrong with the model or the arguments.
    """
    target = pick_device(device)
    wanted = pick_dtype(dtype)
    source = find_source(name, revision=revision, remote_code=trust_remote_code, listener=listener)
    listener("loading the model", 0, None)
    quantization = find_quantization(source)
    module, notes = build(
        source, wanted, quantization, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    origin = (
        source.origin if quantization is None else source.origin | {"quantization": quantization.describe()}
    )
    observed = ObservedModel(
        module.eval(),
        source.name,
        source=source.location,
        revision=source.revision,
        notes=notes,
        origin=origin,
    )
    observed.processor, observed.processor_problem = _processor(source, observed.kind, trust_remote_code)
    _recall_conversion(observed)
    _move(observed, target)
    return observed


def wrap(module: nn.Module, processor: object = None, *, name: str = "live model") -> ObservedModel:
    """Observe a live model; it is changed in no way.

    Args:
        module: a model of transformers, or any module; on whatever device, in whatever dtype.
        processor: its tokenizer, image processor or feature extractor.
        name: what to call it in messages and files.

    Raises:
        UserError: when ``module`` is no ``torch.nn.Module``.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(
            f"wrap wants a torch.nn.Module, not {type(module).__name__}; for a name or folder use load"
        )
    problem = "" if processor is not None else "none was given with the live model"
    return ObservedModel(module, name, processor=processor, processor_problem=problem)


def _processor(source: Source, kind: str, trust_remote_code: bool) -> tuple[Any, str]:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

    classes = {"text": AutoTokenizer, "image": AutoImageProcessor, "audio": AutoFeatureExtractor}
    candidates: list[Any] = [classes.get(kind, AutoProcessor)]
    folder = source.folder
    if kind == "text" and (folder / "preprocessor_config.json").is_file():  # it sees or hears as well
        candidates.insert(0, AutoProcessor)
    if source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file():
        folder = source.adapter
    with quiet():
        problem = ""
        for found in candidates:
            try:
                processor = found.from_pretrained(folder, trust_remote_code=trust_remote_code)
                if kind != "text" or _has_words(processor):
                    return processor, problem
                problem = "its files hold no vocabulary"
            # Any trouble with it is told when it is needed: token ids can be scanned without a tokenizer.
            except Exception as error:
                problem = f"{type(error).__name__}: {first_line(error)}"
        return None, problem


def _has_words(processor: Any) -> bool:
    """Whether a tokenizer is more than the empty one that transformers makes of a folder without its files."""
    if not hasattr(processor, "convert_ids_to_tokens"):
        return True
    return bool(processor("the", add_special_tokens=False)["input_ids"])


def _recall_conversion(observed: ObservedModel) -> None:
    """Add what was wrong with a converted file to what is wrong with the result: it was told only then."""
    conversion = observed.origin.get("gguf")
    if conversion is None:
        return
    for kind, names in conversion["notes"].items():
        observed.notes[kind] = sorted({*observed.notes[kind], *names})
    if observed.processor is None:
        observed.processor_problem = conversion["processor_problem"]


def _move(observed: ObservedModel, device: torch.device) -> None:
    try:
        observed.full.to(device)
    except torch.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        size = sum(item.numel() * item.element_size() for item in observed.full.parameters())
        raise UserError(
            f"{observed.name} needs about {size / GIBIBYTE:.1f} GiB on {device}, "
            f"{free / GIBIBYTE:.1f} GiB are free; try --dtype bfloat16 or --device cpu"
        ) from None
