"""Which attention function a model's modules use, and how to change that for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from outlierscope.model.anatomy import Anatomy


def attention_configs(module: nn.Module, anatomy: Anatomy) -> list[Any]:
    """The configurations by which the observed modules attend, and by which their masks are made."""
    attentions = {
        module.get_submodule(place.module)
        for stack in anatomy.stacks.values()
        for layer in stack.layers
        for place in layer.attentions().values()
    }
    found: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation_internal") and not attentions.isdisjoint(part.modules()):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def eager_attention(module: nn.Module, anatomy: Anatomy) -> Iterator[None]:
    """The model's own eager attention within the block, whatever it came with."""
    saved = [(config, config._attn_implementation_internal) for config in attention_configs(module, anatomy)]
    try:
        for config, _ in saved:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, implementation in saved:
            config._attn_implementation_internal = implementation
