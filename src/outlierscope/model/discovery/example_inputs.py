"""Example inputs: the smallest inputs that a model's config allows, made without tokenizer or processor."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from outlierscope.errors import UserError

SEQUENCES, TOKENS = 2, 12


def example_inputs(module: nn.Module, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments for a tiny forward pass.

    Args:
        module: a Hugging Face model, with ``config`` and ``main_input_name``.
        seed: of the random values.

    Returns:
        For text ``input_ids`` [2, 12] int64 and an ``attention_mask`` of ones; for images ``pixel_values``
        [2, channels, height, width]; for audio ``input_features`` or ``input_values`` (a spectrogram or
        2 x 8000 samples); for encoder-decoders
        also ``decoder_input_ids``. Flags (no cache) only where ``forward`` takes them.

    Raises:
        UserError: where the model has no config, or an input of a kind that is not known here.
    """
    config = getattr(module, "config", None)
    if config is None:
        raise UserError(f"{type(module).__name__} has no config; give a Hugging Face transformers model")
    generator = torch.Generator().manual_seed(seed)
    taken = inspect.signature(module.forward).parameters
    name = getattr(module, "main_input_name", "input_ids")
    inputs: dict[str, Any] = {}
    if name == "input_ids":
        inputs["input_ids"] = _token_ids(config, generator)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    elif name == "pixel_values":
        inputs["pixel_values"] = _pixels(config, generator)
    elif name == "input_features":
        inputs["input_features"] = _spectrogram(config, generator)
    elif name == "input_values" and _first(config, "num_mel_bins") and _first(config, "max_length"):
        steps, bins = _first(config, "max_length"), _first(config, "num_mel_bins")
        inputs["input_values"] = torch.randn(SEQUENCES, steps, bins, generator=generator)
    elif name == "input_values":
        inputs["input_values"] = torch.randn(SEQUENCES, 8000, generator=generator)
    else:
        raise UserError(f"no example can be made of the input {name!r} of {type(module).__name__}")
    if "decoder_input_ids" in taken and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _token_ids(config, generator)
    if "use_cache" in taken:
        inputs["use_cache"] = False
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    return {
        key: _placed(value, parameter)
        for key, value in inputs.items()
        if key in taken or (accepts_any and key != "attention_mask")
    }


def _first(config: object, *names: str) -> Any:
    configs = [
        config,
        *(getattr(config, part, None) for part in ("text_config", "vision_config", "audio_config")),
    ]
    for part in configs:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return None


def _token_ids(config: object, generator: torch.Generator) -> Tensor:
    vocabulary = int(_first(config, "vocab_size") or 100)
    special = {
        value
        for key in (
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "cls_token_id",
            "sep_token_id",
            "mask_token_id",
        )
        for value in _as_list(_first(config, key))
    }
    limit = min(vocabulary, 4096)
    # Padding and separators change masks and positions in some families; plain tokens do so in none.
    plain = torch.tensor([token for token in range(limit) if token not in special] or [0])
    return plain[torch.randint(len(plain), (SEQUENCES, TOKENS), generator=generator)]  # [B, T]


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _pixels(config: object, generator: torch.Generator) -> Tensor:
    size = _first(config, "image_size") or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = int(_first(config, "num_channels", "in_channels") or 3)
    return torch.randn(SEQUENCES, channels, height, width, generator=generator)  # [B, C, H, W]


def _spectrogram(config: object, generator: torch.Generator) -> Tensor:
    """[B, bins, steps] of a fixed number of steps, or [B, steps, bins] of any."""
    by_step = _first(config, "input_feat_per_channel", "feature_projection_input_dim")
    if by_step:
        return torch.randn(SEQUENCES, 64, by_step, generator=generator)
    bins = _first(config, "num_mel_bins", "feature_size") or 80
    steps = 2 * (_first(config, "max_source_positions") or 64)
    return torch.randn(SEQUENCES, bins, steps, generator=generator)


def _placed(value: object, like: Tensor | None) -> object:
    if not isinstance(value, Tensor) or like is None:
        return value
    return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)
