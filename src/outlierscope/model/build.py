"""Build: from a checkpoint's folder to a module with its weights."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.model.adapter import adapted_class, check_adapter, merge_adapter
from outlierscope.model.device import check_memory
from outlierscope.model.files.pickles import read_pickles
from outlierscope.model.files.shards import BITS, read_shards
from outlierscope.model.loading_report import judge_report, quiet
from outlierscope.model.observed import ObservedModel
from outlierscope.model.quantization import PLAIN, quantized_elements, refuse_unexplained_scales

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from outlierscope.model.files.source import Source
    from outlierscope.model.quantization import Quantization


def _checked_weights(
    source: Source, dtype: torch.dtype | None, quantization: Quantization | None, *, allow_pickle: bool
) -> dict[str, Tensor] | None:
    """Check the files before they are loaded; the tensors themselves only where they come from pickles."""
    if not source.safetensors:
        return read_pickles(source, allow_pickle=allow_pickle)
    entries = read_shards(source.folder)
    if quantization is None:
        refuse_unexplained_scales(source.name, entries)
    bits = None if dtype is None else torch.finfo(dtype).bits
    needed = sum(
        quantized_elements(entry) * 16
        if quantization and entry.dtype not in PLAIN
        else entry.elements * (bits or BITS[entry.dtype])
        for entry in entries
    )
    check_memory(source.name, needed // 8)
    return None


def build(
    source: Source,
    dtype: torch.dtype | None,
    quantization: Quantization | None,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[nn.Module, dict[str, list[str]]]:
    """The module with a checkpoint's weights, dequantized where they are quantized, with its adapter merged, on the CPU.

    Args:
        source: the checkpoint.
        dtype: of its weights; ``None`` for the checkpoint's own.
        quantization: what ``find_quantization`` says.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights that only a full unpickling can read.

    Returns:
        The module; and which parameters were newly initialized or not used.

    Raises:
        UserError: in one line, for whatever is wrong with the checkpoint.
    """
    if source.adapter is not None:
        check_adapter(source)
    chosen = model_class(source, trust_remote_code=trust_remote_code)
    state = _checked_weights(source, dtype, quantization, allow_pickle=allow_pickle)
    code = {"trust_remote_code": True} if trust_remote_code else {}
    options: dict[str, Any] = {"use_safetensors": True, **code} if state is None else {"state_dict": state}
    with quiet(), one_line(source.name):
        if state is not None or quantization is not None:
            options["config"], chosen = _resolve_class(source, chosen, code)
        asked: Any = "auto" if dtype is None else dtype
        if quantization is not None:
            asked = quantization.prepare(options["config"], dtype)
        module, report = chosen.from_pretrained(
            source.folder if state is None else None,
            dtype=asked,
            output_loading_info=True,
            # Told below, with names and sizes, instead of by an exception without them.
            ignore_mismatched_sizes=True,
            **options,
        )
        if quantization is not None:
            module = quantization.finish(module, asked)
    notes = judge_report(source.name, ObservedModel(module, source.name).prefix, report)
    if source.adapter is not None:
        with quiet(), warnings.catch_warnings(action="ignore"):
            module = merge_adapter(source, source.adapter, module)
    return module, notes


def _resolve_class(source: Source, model_class: type[Any], code: dict[str, bool]) -> tuple[Any, type[Any]]:
    """Config and concrete class: an automatic class does not load from tensors that are in memory."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.folder, **code)
    if issubclass(model_class, transformers.PreTrainedModel):
        return config, model_class
    with torch.device("meta"):
        return config, type(model_class.from_config(config, **code))


def model_class(source: Source, *, trust_remote_code: bool) -> type[Any]:
    """The class of transformers that a checkpoint's config names, or an automatic class that knows it.

    Raises:
        UserError: when there is none, or it needs Python code of its own that is not trusted.
    """
    import transformers

    adapted = adapted_class(source) if source.adapter is not None else None
    if adapted is not None:
        return adapted
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


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Whatever goes wrong within becomes a ``UserError`` that names the model."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name} does not fit into memory; try --dtype bfloat16, or --only weights") from None
    # transformers, safetensors and a model's own code raise whatever they like; the cause stays attached.
    except Exception as error:
        raise UserError(f"cannot load {name}: {first_line(error)}") from error
