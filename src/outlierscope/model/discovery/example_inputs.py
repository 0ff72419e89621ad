"""Example inputs: the smallest inputs that a model's config allows, made without tokenizer or processor.

What an argument holds is told by its name, which transformers keeps to across families; how it is laid out is not
(one image, a clip of frames, a row of patches). So several inputs are offered, and the first that runs is taken.
"""

from __future__ import annotations

import inspect
import re
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from outlierscope.errors import UserError
from outlierscope.model.discovery.example_tensors import (
    IMAGE_LAYOUTS,
    SOUND_LAYOUTS,
    ExampleTensors,
    codebooks_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

PRIMARY = (
    "input_ids",
    "decoder_input_ids",
    "bbox",
    "pixel_values",
    "pixel_values_videos",
    "flattened_patches",
    "input_features",
    "input_values",
    "visual_feats",
    "visual_pos",
    "future_values",
    "future_time_features",
)
"""What a model may read, at a user's choice; in this order."""

FROM_OTHERS = ("encoder_hidden_states", "grid_thw")
"""What some parts read of other parts, or are told by them of how an image was cut."""

COMPANIONS = {
    "pixel_values": (
        "image_attention_mask",
        "aspect_ratio_ids",
        "aspect_ratio_mask",
        "image_position_ids",
        "target_sizes",
    ),
    "input_ids": ("attention_mask",),
    "input_features": ("input_features_mask", "feature_attention_mask", "feature_lens"),
}
"""What goes along with an input where ``forward`` takes it."""

WITH_GRID = "square patches by sequence"
"""Layout that goes with the grid of an image, where a model takes the grid but need not have it."""


def example_inputs(module: nn.Module, seed: int = 0) -> dict[str, Any]:
    """The simplest of ``input_candidates``.

    Raises:
        UserError: where the model has no config, or an input of a kind that is not known here.
    """
    return next(input_candidates(module, seed))


def input_candidates(module: nn.Module, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a tiny forward pass, the simplest first; not all of them need run.

    First come the main input and what ``forward`` insists on, then all inputs together that it can take: such as
    ``input_ids`` [2, 12] int64 with an ``attention_mask`` of ones, ``pixel_values`` [2, channels, height, width],
    ``input_features`` [2, bins, frames], ``input_values`` [2, samples], ``decoder_input_ids`` [2, 12]; each in
    the layouts that ``example_tensors`` names. Flags (no cache) only where ``forward`` takes them.

    Args:
        module: a Hugging Face model, with ``config`` and ``main_input_name``.
        seed: of the random values.

    Raises:
        UserError: where the model has no config, or an input of a kind that is not known here.
    """
    config = getattr(module, "config", None)
    if config is None:
        raise UserError(f"{type(module).__name__} has no config; give a Hugging Face transformers model")
    parameters = inspect.signature(module.forward).parameters
    kinds = inspect.Parameter
    named = [
        name for name, p in parameters.items() if p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    ]
    accepts_any = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    needed = [name for name in named if parameters[name].default is kinds.empty]
    main = getattr(module, "main_input_name", "input_ids")
    for name in [main] if isinstance(main, str) else main:
        if name not in needed and (name in named or (accepts_any and not needed)):
            needed.insert(0, name)
    if "decoder_input_ids" in named and getattr(config, "is_encoder_decoder", False):
        needed.append("decoder_input_ids")
    offered = [name for name in PRIMARY if name in named]
    given = [name for name in FROM_OTHERS if name in named]
    wider: tuple[list[str], ...] = ([], offered, given, [*offered, *given])
    choices = dict.fromkeys(tuple(dict.fromkeys([*needed, *more])) for more in wider)
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    may_be_none = {name for name in needed if name in named and _allows_none(parameters[name])}
    unknown = ""
    for names in choices:
        layouts = product(
            _image_layouts(names, named), _sound_layouts(config, names), _with_codebooks(config, names)
        )
        for image, sound, codebooks in layouts:
            tensors = ExampleTensors(config, image, sound, seed, codebooks=codebooks)
            inputs: dict[str, Any] = {name: tensors.of(name) for name in names}
            unknown = next(
                (name for name, value in inputs.items() if value is None and name not in may_be_none), ""
            )
            if unknown:
                continue
            companions = [more for key in inputs for more in COMPANIONS.get(key, ()) if more in named]
            if image == WITH_GRID and "grid_thw" in named:
                companions.append("grid_thw")
            for name in companions:
                if (value := tensors.of(name)) is not None:
                    inputs.setdefault(name, value)
            if "use_cache" in named:
                inputs["use_cache"] = False
            yield {name: _placed(value, parameter) for name, value in inputs.items()}
    if len(needed) == 1 and not unknown and main == "pixel_values" and main not in named:
        # The one argument may hold the pixels that the model says that it reads, under a name of its own.
        for image in _image_layouts((main,), named):
            yield {needed[0]: _placed(ExampleTensors(config, image, "bins first", seed).of(main), parameter)}
    if unknown:
        raise UserError(f"no example can be made of the input {unknown!r} of {type(module).__name__}")


def _allows_none(parameter: inspect.Parameter) -> bool:
    """Whether an argument without a default may be left ``None``, by its annotation.

    >>> def forward(states: "Tensor", mask: "Tensor | None"): ...
    >>> [_allows_none(parameter) for parameter in inspect.signature(forward).parameters.values()]
    [False, True]
    """
    return bool(re.search(r"\bNone\b|\bOptional\b", str(parameter.annotation)))


def _with_codebooks(config: PreTrainedConfig, names: tuple[str, ...]) -> list[bool]:
    """Plain token ids, and where a config with a vocabulary counts codebooks, those of all of them side by side."""
    tokens = any(name.endswith("input_ids") for name in names)
    return [False, True] if tokens and codebooks_of(config) else [False]


def _image_layouts(names: tuple[str, ...], named: list[str]) -> list[str]:
    if not any("pixel" in name or "image" in name or name == "grid_thw" for name in names):
        return ["image"]
    packed = any(name.endswith(("grid_thw", "spatial_shapes", "position_ids")) for name in names)
    if packed:
        return [layout for layout in IMAGE_LAYOUTS if "patches" in layout and layout != "all patches"]
    layouts = [layout for layout in IMAGE_LAYOUTS if "patches" not in layout or layout == "all patches"]
    return [*layouts, WITH_GRID] if "grid_thw" in named else layouts


def _sound_layouts(config: PreTrainedConfig, names: tuple[str, ...]) -> list[str]:
    waves = "input_values" in names
    if not waves and not any(name.startswith(("input_features", "audio_mel")) for name in names):
        return ["bins first"]
    by_frame = any(
        getattr(config, name, None) for name in ("input_feat_per_channel", "feature_projection_input_dim")
    )
    spectrogram = getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None)
    likely = "frames first" if by_frame or (waves and spectrogram) else "samples" if waves else "bins first"
    return [likely, *(layout for layout in SOUND_LAYOUTS if layout != likely)]


def _placed(value: object, like: Tensor | None) -> object:
    if not isinstance(value, Tensor) or like is None:
        return value
    return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)
