"""How a model writes: the decoder that is fed along with the encoder, and what it begins with."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.writer import IGNORED, Writer
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from outlierscope.model.anatomy import StackAnatomy
    from outlierscope.model.observed import ObservedModel


def writer_of(model: ObservedModel, encoder: StackAnatomy) -> Writer | None:
    """The decoder that a pass feeds along with the encoder; ``None`` where there is none.

    Raises:
        UserError: when nothing says which token the decoder begins with.
    """
    if "decoder_input_ids" not in inspect.signature(model.module.forward).parameters:
        return None
    decoders = [
        stack.name
        for stack in model.anatomy.stacks.values()
        if stack is not encoder and stack.entry == encoder.entry
    ]
    if len(decoders) != 1:
        return None
    family, start = family_shift(model), _start(model)
    if family is None and start is None:
        raise UserError(
            f"{model.name}: nothing says which token its decoder begins with; "
            "set decoder_start_token_id in its config.json"
        )
    return Writer(decoders[0], -1 if start is None else start, family)


def family_shift(model: ObservedModel) -> Callable[[Tensor], Tensor] | None:
    """The family's own way from labels to the decoder's input ids; ``None`` where it has none that works."""
    full: Any = model.full
    candidates: list[Callable[[Tensor], Tensor]] = []
    method = getattr(full, "prepare_decoder_input_ids_from_labels", None)
    if method is not None:
        candidates.append(method)
    function = getattr(sys.modules[type(full).__module__], "shift_tokens_right", None)
    if function is not None:
        known = {"pad_token_id": _padding(model), "decoder_start_token_id": _start(model)}
        taken = inspect.signature(function).parameters
        candidates.append(partial(function, **{name: known[name] for name in known if name in taken}))
    return next((candidate for candidate in candidates if _works(candidate)), None)


def _works(shift: Callable[[Tensor], Tensor]) -> bool:
    """Whether a shift of labels answers: it may miss the config's padding or start token."""
    import torch

    labels = torch.tensor([[5, 6, 7], [5, IGNORED, IGNORED]])
    try:
        shifted = shift(labels)
    except (AttributeError, ValueError, TypeError, RuntimeError, IndexError):
        return False
    return isinstance(shifted, torch.Tensor) and shifted.shape == labels.shape and bool((shifted >= 0).all())


def _start(model: ObservedModel) -> int | None:
    """Id of the token that the decoder begins with, as generation looks for it."""
    places = (getattr(model.full, "generation_config", None), model.config)
    for name in ("decoder_start_token_id", "bos_token_id"):
        for place in places:
            value = getattr(place, name, None)
            if isinstance(value, int):
                return value
    return None


def _padding(model: ObservedModel) -> int | None:
    value = getattr(model.config, "pad_token_id", None)
    return value if isinstance(value, int) else None
