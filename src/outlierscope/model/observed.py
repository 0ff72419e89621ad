"""ObservedModel: a model together with what a scan needs to know about it."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.model.fingerprint import fingerprint
from outlierscope.version import versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedConfig

    from outlierscope.model.anatomy import Anatomy

POSITION_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Where configs say how many positions a model has."""

KINDS = {"input_ids": "text", "pixel_values": "image", "input_values": "audio", "input_features": "audio"}
"""What a model reads, by the name of its main input."""

PARTS = {
    "text": ("tokenizer", "convert_ids_to_tokens"),
    "image": ("image_processor", "image_mean"),
    "audio": ("feature_extractor", "sampling_rate"),
}
"""What of a processor is for which kind of input: its name there, and what tells it by itself."""


def stack_kind(stack: str) -> str:
    """What the stack of a model of several modalities reads, by its name.

    >>> stack_kind("vision_2"), stack_kind("decoder")
    ('image', 'text')
    """
    return {"vision": "image", "audio": "audio"}.get(stack.partition("_")[0], "text")


@dataclass(eq=False)
class ObservedModel:
    """A model under the scope.

    Attributes:
        full: the module as the user knows it.
        name: the user's name for it, for messages and ``scan.json``.
        processor: tokenizer or image processor; ``None`` when there is none.
        processor_problem: why there is none, in one line.
        source: ``live``, or the folder or file the weights were read from.
        revision: commit of a hub model.
        notes: what loading had to report: ``newly_initialized`` and ``unused`` parameter names.
        origin: how the weights came to be what they are, where they were not simply read (``Source.origin``).
    """

    full: nn.Module
    name: str
    processor: Any = None
    processor_problem: str = ""
    source: str = "live"
    revision: str | None = None
    notes: dict[str, list[str]] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def module(self) -> nn.Module:
        """What is run: the model without its head, as logits are not asked for."""
        from transformers import PreTrainedModel

        if not isinstance(self.full, PreTrainedModel):
            return self.full
        # ``base_model`` is the model itself for classes without a head, and for those that keep it elsewhere.
        base: Any = self.full.base_model
        module: nn.Module = base.get_encoder() if _decodes_audio(base) else base
        return module

    @property
    def left_out(self) -> str:
        """What of the model is never run because only its encoder is fed; empty when all is run."""
        return "decoder" if self.module is not self.full and _decodes_audio(self.full.base_model) else ""

    @cached_property
    def prefix(self) -> str:
        """What goes before a name in ``module`` to give the name in ``full``, such as ``model.``."""
        for name, module in self.full.named_modules():
            if module is self.module:
                return f"{name}." if name else ""
        raise AssertionError(f"the base model of {type(self.full).__name__} is not one of its modules")

    @cached_property
    def anatomy(self) -> Anatomy:
        """The proved map from sites to modules; found on first use."""
        from outlierscope.model.discovery.discover import discover

        return discover(self.module)

    @property
    def config(self) -> PreTrainedConfig | None:
        """The model's config; ``None`` for a module that has none."""
        return getattr(self.full, "config", None)

    @cached_property
    def kind(self) -> str:
        """``text``, ``image`` or ``audio``: what the model reads; ``unknown`` when nothing tells."""
        main = getattr(self.module, "main_input_name", None)
        if main in KINDS:
            return KINDS[main]
        if hasattr(self.processor, "convert_ids_to_tokens"):
            return "text"
        if hasattr(self.processor, "image_mean"):
            return "image"
        return "unknown"

    def entry(self, stack: str) -> str:
        """Name, within ``module``, of what is run to feed a stack; empty where that is ``module`` itself.

        Where stacks read different kinds of input, each is fed through the outermost model that holds no blocks of
        another kind.
        """
        place = self.anatomy.stacks[stack]
        own = [layer.module for layer in place.layers]
        others = [
            layer.module
            for other in self.anatomy.stacks.values()
            if stack_kind(other.name) != stack_kind(stack)
            for layer in other.layers
        ]
        if place.entry or not others:
            return place.entry
        for name, module in self.module.named_modules():
            inside = f"{name}."
            whole = all(block.startswith(inside) for block in own)
            if hasattr(module, "main_input_name") and whole and not any(b.startswith(inside) for b in others):
                return str(name)
        return ""

    def runner(self, stack: str) -> nn.Module:
        """The module that is run to feed a stack."""
        return self.module.get_submodule(self.entry(stack))

    def part(self, kind: str) -> Any:
        """The tokenizer (``text``), image processor or feature extractor; ``None`` when there is none."""
        name, sign = PARTS[kind]
        if self.processor is None or hasattr(self.processor, sign):
            return self.processor
        return getattr(self.processor, name, None)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is; the CPU for a module without any."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the first floating-point parameter; float32 for a module without any."""
        floating = (item.dtype for item in self.module.parameters() if item.is_floating_point())
        return next(floating, torch.float32)

    @cached_property
    def max_length(self) -> int | None:
        """How many tokens a sequence can have; ``None`` when the model sets no limit."""
        if self.config is None:
            return None
        get_text_config = getattr(self.config, "get_text_config", None)
        config = get_text_config() if get_text_config else self.config
        limits = [getattr(config, name, None) for name in POSITION_LIMITS]
        limit = next((item for item in limits if isinstance(item, int) and item > 0), None)
        return None if limit is None else limit - self._unusable_positions(limit)

    @property
    def usual_length(self) -> int | None:
        """How many tokens of a text its users' library lets it see; ``None`` where it does not say."""
        limit: int | None = self.origin.get("sentence_transformers", {}).get("max_seq_length")
        return limit

    def _unusable_positions(self, limit: int) -> int:
        # Position tables of RoBERTa's kind count from after the padding index: 512 of 514 rows serve.
        for name, module in self.module.named_modules():
            is_table = isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2]
            if is_table and module.num_embeddings == limit and module.padding_idx is not None:
                return int(module.padding_idx) + 1
        return 0

    def placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device; what is floating-point in its dtype."""

        def place(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

        return {name: place(value) for name, value in inputs.items()}

    def fingerprint(self) -> str:
        """SHA-256 of config, parameter names, shapes, dtypes and sampled values; equal for equal models."""
        return fingerprint(self.full)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout and its like are off within; a live model gets its training modes back afterwards."""
        training = [module for module in self.full.modules() if module.training]
        self.full.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        return {
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "class": type(self.full).__name__,
            "run": type(self.module).__name__,
            "model_type": getattr(self.config, "model_type", None),
            "kind": self.kind,
            "parameters": sum(parameter.numel() for parameter in self.full.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "attention_implementation": getattr(self.config, "_attn_implementation", None),
            "max_length": self.max_length,
            "processor": type(self.processor).__name__ if self.processor is not None else None,
            "processor_problem": self.processor_problem,
            "fingerprint": self.fingerprint(),
            "notes": self.notes,
            "origin": self.origin,
            "versions": versions(),
        }


def _decodes_audio(module: Any) -> bool:
    """Whether a model hears with an encoder and writes with a decoder."""
    hears = KINDS.get(getattr(module, "main_input_name", "")) == "audio"
    return hears and "decoder_input_ids" in inspect.signature(module.forward).parameters
