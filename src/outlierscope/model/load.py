"""Loading: a checkpoint or a live module becomes an ObservedModel; whatever is wrong becomes one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.listener import silent
from outlierscope.model.device import GIBIBYTE, check_memory, pick_device, pick_dtype
from outlierscope.model.files.pickles import read_pickles
from outlierscope.model.files.shards import BITS, read_shards
from outlierscope.model.files.source import Source, find_source
from outlierscope.model.loading_report import judge_report, quiet
from outlierscope.model.observed import ObservedModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

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
    """Load a model with its tokenizer or image processor, ready to be observed.

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
    chosen = model_class(source, trust_remote_code=trust_remote_code)
    state = _checked_weights(source, wanted, allow_pickle=allow_pickle)
    module, notes = _build(source, chosen, wanted, state, trust_remote_code=trust_remote_code)
    observed = ObservedModel(
        module.eval(),
        source.name,
        source=source.location,
        revision=source.revision,
        notes=notes,
        origin=source.origin,
    )
    observed.processor, observed.processor_problem = _processor(source, observed.kind, trust_remote_code)
    _recall_conversion(observed)
    _move(observed, target)
    return observed


def wrap(module: nn.Module, processor: object = None, *, name: str = "live model") -> ObservedModel:
    """Observe a live model; it is changed in no way.

    Args:
        module: a model of transformers, or any module; on whatever device, in whatever dtype.
        processor: its tokenizer or image processor.
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


def model_class(source: Source, *, trust_remote_code: bool) -> type[Any]:
    """The class of transformers that a checkpoint's config names, or an automatic class that knows it.

    Raises:
        UserError: when there is none, or it needs Python code of its own that is not trusted.
    """
    import transformers

    model_type = source.config.get("model_type")
    if model_type is None or model_type in transformers.CONFIG_MAPPING:
        for name in source.config.get("architectures") or []:
            found = getattr(transformers, str(name), None)
            if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
                return found
        if model_type is not None:
            return transformers.AutoModel
    auto_map = source.config.get("auto_map")
    if auto_map:
        if not trust_remote_code:
            raise UserError(
                f"{source.name} needs Python code of its own to run; "
                "if you trust it, allow that with --trust-remote-code (trust_remote_code=True)"
            )
        entry = next((key for key in auto_map if key.startswith("AutoModel")), "AutoModel")
        return getattr(transformers, entry, transformers.AutoModel)
    if model_type is None:
        raise UserError(f"{source.name}: config.json names no model_type, so it is no model of transformers")
    raise UserError(
        f"{source.name} has the unknown model_type {model_type!r}; "
        f"transformers {transformers.__version__} does not have it, a newer one may"
    )


def _checked_weights(
    source: Source, dtype: torch.dtype | None, *, allow_pickle: bool
) -> dict[str, Tensor] | None:
    """Check the files before they are loaded; the tensors themselves only where they come from pickles."""
    if not source.safetensors:
        return read_pickles(source, allow_pickle=allow_pickle)
    entries = read_shards(source.folder)
    bits = None if dtype is None else torch.finfo(dtype).bits
    check_memory(source.name, sum(entry.elements * (bits or BITS[entry.dtype]) // 8 for entry in entries))
    return None


def _build(
    source: Source,
    model_class: type[Any],
    dtype: torch.dtype | None,
    state: dict[str, Tensor] | None,
    *,
    trust_remote_code: bool,
) -> tuple[nn.Module, dict[str, list[str]]]:
    code = {"trust_remote_code": True} if trust_remote_code else {}
    options: dict[str, Any] = {"use_safetensors": True, **code} if state is None else {"state_dict": state}
    with quiet(), _as_one_line(source.name):
        if state is not None:
            options["config"], model_class = _resolve_class(source, model_class, code)
        module, report = model_class.from_pretrained(
            source.folder if state is None else None,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            # Told below, with names and sizes, instead of by an exception without them.
            ignore_mismatched_sizes=True,
            **options,
        )
    return module, judge_report(source.name, ObservedModel(module, source.name).prefix, report)


def _resolve_class(source: Source, model_class: type[Any], code: dict[str, bool]) -> tuple[Any, type[Any]]:
    """Config and concrete class: an automatic class does not load from tensors that are in memory."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.folder, **code)
    if issubclass(model_class, transformers.PreTrainedModel):
        return config, model_class
    with torch.device("meta"):
        return config, type(model_class.from_config(config, **code))


def _processor(source: Source, kind: str, trust_remote_code: bool) -> tuple[Any, str]:
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    auto_class: Any = {"text": AutoTokenizer, "image": AutoImageProcessor}.get(kind, AutoProcessor)
    with quiet():
        try:
            return auto_class.from_pretrained(source.folder, trust_remote_code=trust_remote_code), ""
        # Any trouble with it is told when it is needed: token ids can be scanned without a tokenizer.
        except Exception as error:
            return None, f"{type(error).__name__}: {first_line(error)}"


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


@contextmanager
def _as_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name} does not fit into memory; try --dtype bfloat16, or --only weights") from None
    # transformers, safetensors and a model's own code raise whatever they like; the cause stays attached.
    except Exception as error:
        raise UserError(f"cannot load {name}: {first_line(error)}") from error
