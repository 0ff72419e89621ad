"""Which attention function a model's modules use, and how to change that for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from outlierscope.model.anatomy import Anatomy
    from outlierscope.model.attention.masks import MaskFormat


def attention_configs(module: nn.Module, anatomy: Anatomy) -> list[tuple[Any, MaskFormat]]:
    """The configurations by which the observed modules attend, and the format of the masks made by each of them."""
    attentions = {
        module.get_submodule(place.module): place.mask
        for stack in anatomy.stacks.values()
        for layer in stack.layers
        for place in layer.attentions().values()
    }
    found: dict[int, tuple[Any, MaskFormat]] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        masks = {attentions[inner] for inner in part.modules() if inner in attentions}
        if hasattr(config, "_attn_implementation_internal") and masks:
            found[id(config)] = config, "added" if "added" in masks else "boolean"
    return list(found.values())


@contextmanager
def eager_attention(module: nn.Module, anatomy: Anatomy) -> Iterator[None]:
    """The model's own eager attention within the block, whatever it came with.

    Where its eager attention does not compute what the model computes as it comes, it stays as it came.
    """
    saved = [
        (config, config._attn_implementation_internal)
        for config, mask in attention_configs(module, anatomy)
        if mask == "added"
    ]
    try:
        for config, _ in saved:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, implementation in saved:
            config._attn_implementation_internal = implementation
