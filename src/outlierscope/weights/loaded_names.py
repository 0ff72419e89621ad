"""Loaded names: what transformers calls a checkpoint's tensors once they are loaded, and what it makes of them.

While loading, transformers renames tensors, adds or drops a prefix, stacks the experts of a mixture, joins gate and up,
cuts fused projections. Its own rules for the class that the config names are run here on names and shapes alone.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.model.build import model_class
from outlierscope.model.loading_report import quiet
from outlierscope.weights.tracing import Piece, Traced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outlierscope.model.files.shards import TensorEntry
    from outlierscope.model.files.source import Source


@dataclass(frozen=True)
class LoadedParameter:
    """A parameter of the loaded model, or a stored tensor that keeps its name.

    Attributes:
        name: full name.
        shape: sizes.
        pieces: the boxes of stored tensors that fill it.
        transposed: whether it holds a matrix as [in, out]; ``None`` where the kind of its module does not tell.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    transposed: bool | None = None


@dataclass(frozen=True)
class LoadedNames:
    """What becomes of a checkpoint's tensors.

    Attributes:
        parameters: every stored tensor is part of one of them, but for those in whose place another one is loaded.
        as_stored: stored tensor -> why it keeps its name; empty where transformers could not be asked at all.
        reason: why it could not; empty where it could.
    """

    parameters: list[LoadedParameter]
    as_stored: dict[str, str]
    reason: str = ""


def loaded_names(source: Source, entries: Sequence[TensorEntry]) -> LoadedNames:
    """Follow a checkpoint's tensors into the model that transformers would load; no weight is read.

    Args:
        source: the checkpoint, for its config.
        entries: its tensors.
    """
    if not source.config:
        return LoadedNames(
            [_unchanged(entry) for entry in entries], {}, "a single file does not tell the model"
        )
    try:
        with quiet():
            return _follow(skeleton(source, len(entries)), entries)
    except UserError as error:
        reason = str(error)
    # A model's class raises whatever it likes: a package is missing, a size of the config does not fit, ...
    except Exception as error:
        reason = f"transformers cannot build the model: {first_line(error)}"
    return LoadedNames([_unchanged(entry) for entry in entries], {}, reason)


def skeleton(source: Source, tensors: int) -> Any:
    """The model that the config describes; its parameters have shapes, and no memory.

    Args:
        source: the checkpoint, for its config.
        tensors: how many tensors the checkpoint has; no model with more layers than that is built.

    Raises:
        UserError: when transformers does not know the model, or it needs code of its own, or the config is absurd.
    """
    import transformers

    chosen = model_class(source, trust_remote_code=False)
    # Left unquantized: a skip list names weights, not what a quantizer keeps in their place.
    settings = {key: value for key, value in source.config.items() if key != "quantization_config"}
    concrete = issubclass(chosen, transformers.PreTrainedModel)
    config_class = chosen.config_class if concrete else transformers.CONFIG_MAPPING[settings["model_type"]]
    config = config_class.from_dict(settings)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > tensors:
        raise UserError(f"config.json tells of {layers:,} layers, and the files have {tensors:,} tensors")
    with torch.device("meta"):
        return chosen(config) if concrete else chosen.from_config(config)


def _follow(model: Any, entries: Sequence[TensorEntry]) -> LoadedNames:
    """What ``convert_and_load_state_dict_in_model`` does (transformers/core_model_loading.py), without the tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    expected = model.state_dict()
    prefix = model.base_model_prefix
    conversions: dict[str, Any] = {}
    as_stored: dict[str, str] = {}
    # Experts are stacked in this order.
    for entry in sorted(entries, key=lambda entry: dot_natural_key(entry.name)):
        name, pattern = rename_source_key(entry.name, renamings, converters, prefix, expected)
        if name not in expected and entry.name in expected:
            name, pattern = rename_source_key(entry.name, [], [], prefix, expected)
        if name not in expected:
            as_stored[entry.name] = "the loaded model has no such parameter"
            continue
        if pattern is None and name in conversions:
            as_stored[entry.name] = "another tensor is loaded in its place"
            continue
        if name not in conversions:
            rule = WeightRenaming(entry.name, name) if pattern is None else deepcopy(by_pattern[pattern])
            conversions[name] = rule
        conversions[name].add_tensor(
            name, entry.name, pattern or entry.name, Traced.of(entry.name, entry.shape)
        )
    transposed = _orientations(model)
    parameters: list[LoadedParameter] = []
    for name, conversion in conversions.items():
        stored = conversion.layer_targets[name]
        try:
            made = conversion.convert(name, model=model, config=model.config)
            followed = [_parameter(target, made[target], expected, transposed) for target in made]
        # Whatever an operation raises on shapes that it does not expect; transformers would not load them either.
        except Exception as error:
            as_stored |= dict.fromkeys(stored, f"cannot be followed through loading: {first_line(error)}")
            continue
        if any(parameter is None for parameter in followed):
            as_stored |= dict.fromkeys(stored, "rearranged while loading, which is not followed")
            continue
        parameters += [parameter for parameter in followed if parameter is not None]
    taken = {parameter.name for parameter in parameters}
    parameters += [
        _unchanged(entry) for entry in entries if entry.name in as_stored and entry.name not in taken
    ]
    return LoadedNames(parameters, as_stored)


def _parameter(
    name: str, made: Any, expected: dict[str, Any], transposed: dict[str, bool]
) -> LoadedParameter | None:
    tensor = made[0] if isinstance(made, list) else made
    if tensor.pieces is None or not all(_keeps_matrices(piece) for piece in tensor.pieces):
        return None
    if name not in expected or tensor.shape != expected[name].shape:
        found, wanted = list(tensor.shape), list(expected[name].shape) if name in expected else None
        raise ValueError(f"{name} would be {found} and is {wanted} in the model")
    return LoadedParameter(name, tuple(tensor.shape), tensor.pieces, transposed.get(name))


def _keeps_matrices(piece: Piece) -> bool:
    """Whether rows and columns of what the piece becomes are rows and columns, or columns and rows, of what is stored."""
    last = len(piece.size) - 1
    if len(piece.axes) == 1:
        return piece.axes == (0,)
    return piece.axes[-2:] in ((last - 1, last), (last, last - 1))


def _unchanged(entry: TensorEntry) -> LoadedParameter:
    return LoadedParameter(entry.name, entry.shape, (Piece.whole(entry.name, entry.shape),))


def _orientations(model: Any) -> dict[str, bool]:
    """Parameter -> whether it is [in, out], where the kind of its module tells."""
    from transformers.pytorch_utils import Conv1D

    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
