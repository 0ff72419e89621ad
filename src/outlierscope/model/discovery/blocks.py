"""Blocks: finding the stacks of like blocks in a model's module tree, from one tiny forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outlierscope.model.discovery.recording import Recording, record, returned_patterns

if TYPE_CHECKING:
    from outlierscope.model.anatomy import Tap


@dataclass(frozen=True)
class Block:
    """A module whose hidden states enter and leave in the same shape.

    Attributes:
        module: full name.
        entrance: where hidden states enter.
        exit: where they leave.
    """

    module: str
    entrance: Tap
    exit: Tap


@dataclass(frozen=True)
class BlockList:
    """The blocks of one stack, in order.

    Attributes:
        container: full name of the list that holds them.
        blocks: in order.
        attention: names of the modules in them that attend.
        route: ``registry`` or ``returned``, as in ``AttentionPlace``.
        trouble: why the list cannot be followed, or empty.
    """

    container: str
    blocks: tuple[Block, ...]
    attention: tuple[str, ...]
    route: str
    trouble: str = ""


def record_whole(root: nn.Module, inputs: dict[str, Any]) -> tuple[Recording, str]:
    """One tiny pass through the whole model: what passes the blocks and what lies outside of them.

    Returns:
        The recording (with the call arguments of every element of a list), and the route: ``registry`` where
        attention went through transformers' ``AttentionInterface``, else ``returned`` (the pass was then made
        with ``output_attentions``).
    """
    elements = frozenset(name for names in _lists(root).values() for name in names)
    inside = {name for name in dict(root.named_modules()) if _within(name, elements)}
    everything = [name for name, _ in root.named_modules()]

    def keep(name: str, tensor: Tensor) -> bool:
        # Inside of blocks only what may be attention's weights: the rest is looked at block by block.
        return 3 <= tensor.ndim <= 4 and (name not in inside or name in elements or tensor.ndim == 4)

    def run(**more: bool) -> Recording:
        with torch.no_grad():
            return record(
                root, lambda: root(**inputs, **more), modules=everything, keep=keep, arguments_of=elements
            )

    recording = run()
    if recording.attention:
        return recording, "registry"
    return run(output_attentions=True), "returned"


def find_block_lists(root: nn.Module, recording: Recording, route: str) -> list[BlockList]:
    """The stacks of a model: lists of modules that keep the shape of hidden states, some of which attend."""
    attending = {call.module for call in recording.attention}
    if route == "returned":
        attending = returning_modules(recording)
    found = {}
    for container, names in _lists(root).items():
        inside = tuple(sorted(name for name in attending if any(_is_in(name, element) for element in names)))
        if not inside:
            continue
        blocks = [_as_block(name, recording) for name in names]
        if all(recording.calls[name] == 0 for name in names):
            continue
        trouble = ""
        called = [name for name in names if recording.calls[name] > 0]
        repeated = [name for name in called if recording.calls[name] > 1]
        if repeated:
            trouble = f"{repeated[0]} is called {recording.calls[repeated[0]]} times in one pass"
        elif any(block is None for block in blocks):
            name = names[blocks.index(None)]
            trouble = f"hidden states do not enter and leave {name} in one shape"
        found[container] = BlockList(
            container, tuple(block for block in blocks if block is not None), inside, route, trouble
        )
    return [found[container] for container in found if not _superseded(container, found, root)]


def returning_modules(recording: Recording) -> set[str]:
    """Innermost modules that return attention weights [B, H, T, T]."""
    names = {passage.module for passage in returned_patterns(recording)}
    return {name for name in names if not any(other != name and _is_in(other, name) for other in names)}


def _lists(root: nn.Module) -> dict[str, list[str]]:
    return {
        container: [f"{container}.{child}" if container else child for child, _ in module.named_children()]
        for container, module in root.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    }


def _as_block(name: str, recording: Recording) -> Block | None:
    passages = recording.of(name)
    for entrance in passages:
        if entrance.side == "input" and entrance.value.ndim == 3:
            for leaving in passages:
                if leaving.side == "output" and leaving.value.shape == entrance.value.shape:
                    return Block(name, entrance.tap, leaving.tap)
    return None


def _superseded(container: str, found: dict[str, BlockList], root: nn.Module) -> bool:
    """Whether another list tells more: an inner list of like blocks, or an outer list of wholes."""
    for other, rival in found.items():
        if other == container:
            continue
        if _is_in(other, container) and _like_blocks(rival, root):
            return True
        if _is_in(container, other) and not _like_blocks(found[container], root):
            return True
    return False


def _like_blocks(blocks: BlockList, root: nn.Module) -> bool:
    kinds = [
        type(root.get_submodule(block.module))
        for block in blocks.blocks
        if any(_is_in(name, block.module) for name in blocks.attention)
    ]
    return len(kinds) > 1 and len(set(kinds)) < len(kinds)


def _is_in(name: str, container: str) -> bool:
    return container == "" or name == container or name.startswith(container + ".")


def _within(name: str, elements: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in elements for length in range(1, len(parts) + 1))
