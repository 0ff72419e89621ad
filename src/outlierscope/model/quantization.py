"""Quantization: checkpoints whose config says that their weights are quantized, and how they become plain again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError
from outlierscope.model.files.shards import read_shards
from outlierscope.model.packages import need_package

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outlierscope.model.files.shards import TensorEntry
    from outlierscope.model.files.source import Source

PLAIN = ("F64", "F32", "F16", "BF16")
"""dtypes of weights that are not quantized."""

PACKAGES = {"compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
"""What transformers needs besides ``accelerate`` to read a method."""

NO_DTYPE = torch.bfloat16
"""Where neither the user nor the config gives one: what transformers takes for dequantized fp8 and mxfp4."""


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    Attributes:
        method: ``quant_method`` of the config.
        label: the method with its kind, for people.
        stored: dtype -> how many tensors are stored in it.
        while_loading: whether transformers dequantizes while it loads, else afterwards.
    """

    method: str
    label: str
    stored: dict[str, int]
    while_loading: bool

    def prepare(self, config: Any, dtype: torch.dtype | None) -> torch.dtype:
        """Have transformers dequantize while it loads, where it can; the dtype to load in."""
        if self.while_loading:
            place = config if _of(config) is not None else config.get_text_config(decoder=True)
            place.quantization_config = dict(place.quantization_config) | {"dequantize": True}
        return dtype or config.dtype or NO_DTYPE

    def finish(self, module: Any, dtype: torch.dtype) -> Any:
        """The module with plain weights, all of one dtype: those that had no scales are left as stored by some."""
        plain = module if self.while_loading else module.dequantize(dtype=dtype)
        kept = {*(plain._keep_in_fp32_modules or ()), *(plain._keep_in_fp32_modules_strict or ())}
        for name, parameter in plain.named_parameters():
            wanted = torch.float32 if kept.intersection(name.split(".")) else dtype
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(wanted)
        return plain

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        return {"method": self.method, "quantization": self.label, "stored": self.stored}


def find_quantization(source: Source) -> Quantization | None:
    """How a checkpoint is quantized; ``None`` when its config does not speak of it.

    Raises:
        UserError: when transformers cannot dequantize it, or needs a package that is not installed.
    """
    given = source.config.get("quantization_config") or source.config.get("text_config", {}).get(
        "quantization_config"
    )
    if not given:
        return None
    method = str(given.get("quant_method") or "an unnamed method")
    while_loading = _dequantizes(source.name, method, given)
    need_package("accelerate", f"{source.name}: dequantizing {method} weights", "quantized")
    if method in PACKAGES:
        need_package(PACKAGES[method], f"{source.name}: dequantizing {method} weights", "quantized")
    entries = read_shards(source.folder) if source.safetensors else []
    stored = dict(Counter(entry.dtype for entry in entries).most_common())
    return Quantization(method, _label(method, given), stored, while_loading)


def _of(config: Any) -> Any:
    return getattr(config, "quantization_config", None)


def _dequantizes(name: str, method: str, given: dict[str, Any]) -> bool:
    """Whether transformers dequantizes while loading; if not so then afterwards.

    Asked of its classes, so that it holds for methods of later versions too.
    """
    from transformers import __version__
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.base import HfQuantizer

    key = method
    if method == "bitsandbytes":
        key += "_8bit" if given.get("load_in_8bit") else "_4bit"
    settings: Any = AUTO_QUANTIZATION_CONFIG_MAPPING.get(key)
    quantizer: Any = AUTO_QUANTIZER_MAPPING.get(key)
    if settings is not None and "dequantize" in signature(settings.__init__).parameters:
        return True
    if quantizer is None or quantizer._dequantize is HfQuantizer._dequantize:
        raise UserError(
            f"{name} is quantized with {method}, which transformers {__version__} cannot dequantize; "
            "scan the checkpoint that it was quantized from"
        )
    return False


def _label(method: str, given: dict[str, Any]) -> str:
    if method == "bitsandbytes":
        return (
            f"{method} int8"
            if given.get("load_in_8bit")
            else f"{method} {given.get('bnb_4bit_quant_type', 'fp4')}"
        )
    kind = given.get("format") if method == "compressed-tensors" else None
    return f"{method} ({kind})" if kind else method


def quantized_elements(entry: TensorEntry) -> int:
    """About how many weights a tensor of quantized ones holds: 8-bit floats one a byte, packed ones two."""
    return entry.length * (1 if entry.dtype.startswith("F8") else 2)


def refuse_unexplained_scales(name: str, entries: Sequence[TensorEntry]) -> None:
    """Refuse weights with scales beside them that no config explains: without them they are other weights.

    Raises:
        UserError: naming one of them.
    """
    names = {entry.name for entry in entries}
    for entry in entries:
        scales = [f"{entry.name}{ending}" for ending in ("_scale", "_scale_inv")]
        if entry.dtype not in PLAIN and names.intersection(scales):
            raise UserError(
                f"{name}: {entry.name} is quantized ({entry.dtype}, with scales of its own), but config.json has no "
                "quantization_config that says how; scan the checkpoint that it was quantized from"
            )
