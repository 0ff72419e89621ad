"""Joining: what stands between the blocks of a stack, and the norm behind the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from outlierscope.model.anatomy import Matrix, StackAnatomy, Tap
from outlierscope.model.discovery.blocks import BlockList, equal_tensors
from outlierscope.model.discovery.proof import NEEDED
from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from outlierscope.model.discovery.recording import Passage, Recording


def join_blocks(stack: StackAnatomy, found: BlockList, whole: Recording) -> list[str]:
    """Alias what enters a block to what left the one before, where it is the same tensor.

    Where it is not, a module outside of the blocks must have given it, or what was added: that is then told.
    """
    reasons = []
    before = Site(stack.name, None, "embed")
    left = whole.find(found.blocks[0].entrance)
    for layer, block in zip(stack.layers[len(found.reshaping) :], found.blocks, strict=True):
        entering = whole.find(block.entrance)
        if equal_tensors(entering.value, left.value):
            layer.aliases["resid_pre"] = before
            layer.taps.pop("resid_pre", None)
            layer.identities[f"resid_pre = {before}"] = 0.0
        elif brought := _brought(found, whole, left, entering):
            layer.identities[brought.format(before=before)] = 0.0
        else:
            reasons.append(f"hidden states change between {before} and block {layer.index}")
        before = Site(stack.name, layer.index, "resid_post")
        left = whole.find(block.exit)
    return reasons


def _brought(found: BlockList, whole: Recording, left: Passage, entering: Passage) -> str:
    """The identity of what enters a block with what a module outside gave once the block before was left; or nothing.

    That module read the hidden states that left (written ``{before}``) and gave, in their shape, what enters; or what
    is added to them, and not too little to tell. Equality is to the bit, in the model's own dtype.
    """
    if left.value.shape != entering.value.shape:
        return ""
    inside = tuple(block.module + "." for block in found.blocks)
    total = entering.value
    given = [
        passage
        for passage in whole.passages[left.order + 1 : entering.order]
        if passage.side == "output"
        and not f"{passage.module}.".startswith(inside)
        and passage.value.shape == total.shape
    ]
    for passage in given:
        if equal_tensors(passage.value, total) and _read(whole, passage, left):
            return f"resid_pre = output of {passage.module}"
    for passage in given:
        parts = (left.value, passage.value)
        matter = all(
            part.shape == total.shape and part.abs().max() >= NEEDED * total.abs().max() for part in parts
        )
        if matter and equal_tensors(parts[0] + parts[1], total):
            return f"resid_pre = {{before}} + output of {passage.module}"
    return ""


def _read(whole: Recording, given: Passage, left: Passage) -> bool:
    """Whether the call of a module that gave one passage took the other's tensor."""
    return any(
        passage.side == "input"
        and (passage.module, passage.call) == (given.module, given.call)
        and equal_tensors(passage.value, left.value)
        for passage in whole.passages[left.order + 1 : given.order]
    )


def find_final_norm(root: nn.Module, stack: StackAnatomy, found: BlockList, whole: Recording) -> None:
    """Note the norm that reads what left the last block, with its parameters; or that there is none."""
    last = whole.find(found.blocks[-1].exit)
    blocks = tuple(block.module + "." for block in found.blocks)
    for passage in whole.passages:
        if passage.side != "input" or passage.module.startswith(blocks) or passage.order < last.order:
            continue
        through = whole.through(passage.module)
        if through is None or passage is not through[0] or not equal_tensors(passage.value, last.value):
            continue
        module = root.get_submodule(passage.module)
        if through[1].value.shape == last.value.shape and _forgets_scale(module, last.value):
            stack.taps["final_norm"] = Tap(passage.module, "output")
            stack.matrices = [
                Matrix("norm", passage.module, f"{passage.module}.{name}")
                for name, _ in module.named_parameters()
            ]
            return
    stack.missing["final_norm"] = "no norm reads the last block's output"


def _forgets_scale(module: nn.Module, like: Tensor) -> bool:
    """Whether a module gives the same for eight times its input, as norms do."""
    if any(parameter.ndim > 1 for parameter in module.parameters()):
        return False
    generator = torch.Generator(like.device).manual_seed(0)
    hidden = torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)
    with torch.no_grad():
        once, scaled = module(hidden).float(), module(hidden * 8).float()
    return not equal_tensors(once, hidden.float()) and bool(
        (once - scaled).abs().max() <= 2e-2 * once.abs().max()
    )
