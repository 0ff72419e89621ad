"""Blocks: finding the stacks of like blocks in a model's module tree, from one tiny forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from outlierscope.model.discovery.module_names import is_in, outermost
from outlierscope.model.discovery.recording import (
    Recording,
    returned_patterns,
)

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
        trouble: why the list cannot be followed, where it has no blocks; else empty.
        inner: lists within its elements whose blocks may be the blocks, where these are none.
        reshaping: modules of the list that stand before the first block and give hidden states of another shape
            than they take, in order.
    """

    container: str
    blocks: tuple[Block, ...]
    attention: tuple[str, ...]
    route: str
    trouble: str = ""
    inner: tuple[BlockList, ...] = ()
    reshaping: tuple[str, ...] = ()


def attends_by_registry(names: list[str], recording: Recording) -> bool:
    """Whether some part of these modules attended through transformers' ``AttentionInterface``."""
    return any(is_in(call.module, name) for call in recording.attention for name in names)


def find_lists_without_attention(root: nn.Module, recording: Recording) -> list[BlockList]:
    """Lists of like modules that keep the shape of hidden states by token, none of which is seen to attend.

    Whether they are blocks of a stack is for the proof to say.
    """
    attending = {call.module for call in recording.attention} | returning_modules(recording)
    found = {}
    for container, names in block_lists(root).items():
        if any(is_in(name, container) or is_in(container, name) for name in attending):
            continue
        called = sorted(_calls_of(names, recording))
        blocks = [
            block for _, name, call in called if (block := _as_block(name, call, recording)) is not None
        ]
        kinds = [type(root.get_submodule(block.module)) for block in blocks]
        by_token = all(recording.find(block.entrance).value.ndim == 3 for block in blocks)
        if len(blocks) == len(called) and by_token and len(set(kinds)) < len(kinds):
            found[container] = BlockList(container, _first_chain(blocks, recording), (), "returned")
    return [found[name] for name in outermost(found)]


def find_block_lists(root: nn.Module, recording: Recording) -> list[BlockList]:
    """The stacks of a model: stretches of lists of modules that keep the shape of hidden states, some of which attend."""
    registered = {call.module for call in recording.attention}
    returning = returning_modules(recording)
    found: dict[str, BlockList] = {}
    elements: dict[str, list[tuple[str, Block | None]]] = {}
    for container, names in block_lists(root).items():
        called = sorted(_calls_of(names, recording))
        through_registry = tuple(name for name in registered if any(is_in(name, n) for n in names))
        inside = through_registry or tuple(name for name in returning if any(is_in(name, n) for n in names))
        if not called or not inside:
            continue
        elements[container] = [(name, _as_block(name, call, recording)) for _, name, call in called]
        blocks = [block for _, block in elements[container] if block is not None]
        found[container] = BlockList(
            container,
            _first_chain(blocks, recording),
            inside,
            "registry" if through_registry else "returned",
            "" if blocks else not_in_one_shape(called[0][1]),
        )
    kept = [container for container in found if not _superseded(container, found, root, recording)]
    return [
        replace(run, inner=_within_elements(container, found, root))
        for container in kept
        for run in _runs(found[container], elements[container])
    ]


def not_in_one_shape(module: str) -> str:
    """Why a module is no block."""
    return f"hidden states do not enter and leave {module} in one shape"


def _runs(whole: BlockList, elements: list[tuple[str, Block | None]]) -> list[BlockList]:
    """A list taken apart where a module gives its hidden states another shape: there a residual stream begins anew."""
    runs: list[BlockList] = []
    reshaping: list[str] = []
    blocks: list[Block] = []
    for name, block in elements:
        if block is not None and block not in whole.blocks:  # a later pass through shared blocks
            reshaping = reshaping if blocks else []
            break
        if block is not None:
            blocks.append(block)
            continue
        if blocks:
            runs.append(replace(whole, blocks=tuple(blocks), reshaping=tuple(reshaping)))
            reshaping, blocks = [], []
        reshaping.append(name)
    if blocks:
        runs.append(replace(whole, blocks=tuple(blocks), reshaping=tuple(reshaping)))
    elif reshaping and not whole.trouble:
        runs.append(replace(whole, blocks=(), trouble=not_in_one_shape(reshaping[-1])))
    return runs or [whole]


def _within_elements(container: str, found: dict[str, BlockList], root: nn.Module) -> tuple[BlockList, ...]:
    """The lists within the elements of a list, if they hold one kind of module each: parts of one block do not."""
    inside = outermost([name for name in found if name != container and is_in(name, container)])
    one_kind = all(len({type(part) for part in root.get_submodule(name).children()}) == 1 for name in inside)
    return tuple(found[name] for name in inside) if one_kind else ()


def _calls_of(names: list[str], recording: Recording) -> list[tuple[int, str, int]]:
    """(When, name, which call) of every call of these modules."""
    first: dict[tuple[str, int], int] = {}
    for passage in recording.passages:
        if passage.module in names:
            first.setdefault((passage.module, passage.call), passage.order)
    return [(order, name, call) for (name, call), order in first.items()]


def _first_chain(blocks: list[Block], recording: Recording) -> tuple[Block, ...]:
    """The blocks up to where the list starts anew on other hidden states: its first pass through shared blocks."""
    for index, (before, block) in enumerate(pairwise(blocks), 1):
        left, entered = recording.find(before.exit).value, recording.find(block.entrance).value
        if block.entrance.call > 0 and not equal_tensors(left, entered):
            return tuple(blocks[:index])
    return tuple(blocks)


def returning_modules(recording: Recording) -> set[str]:
    """Innermost modules that return attention weights [B, H, T, T]."""
    names = {passage.module for passage in returned_patterns(recording)}
    return {name for name in names if not any(other != name and is_in(other, name) for other in names)}


def block_lists(root: nn.Module) -> dict[str, list[str]]:
    """Name of every list of modules -> the names of its elements."""
    return {
        container: [f"{container}.{child}" if container else child for child, _ in module.named_children()]
        for container, module in root.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    }


def _as_block(name: str, call: int, recording: Recording) -> Block | None:
    passages = [passage for passage in recording.of(name) if passage.call == call]
    for dims in (3, 2, 4):  # [B, T, d] before [N, d] and [B, H, W, d]: masks have two or four dims as well
        for entrance in passages:
            if entrance.side != "input" or entrance.value.ndim != dims:
                continue
            for leaving in passages:
                if leaving.side == "output" and leaving.value.shape == entrance.value.shape:
                    return Block(name, entrance.tap, leaving.tap)
    return None


def _superseded(container: str, found: dict[str, BlockList], root: nn.Module, recording: Recording) -> bool:
    """Whether another list tells more: an inner list of like blocks, or an outer list of wholes."""
    for other, rival in found.items():
        if other == container:
            continue
        inner, outer = (rival, found[container]) if is_in(other, container) else (found[container], rival)
        if not is_in(inner.container, outer.container):
            continue
        tells_more = _like_blocks(inner, root) and _hand_on(inner, recording)
        if (tells_more or _lays_out_tokens(outer, inner, recording)) is (inner is rival):
            return True
    return False


def _lays_out_tokens(outer: BlockList, inner: BlockList, recording: Recording) -> bool:
    """Whether an outer list takes maps [B, d, H, W], and an inner one their tokens [B, H * W, d]."""
    if not outer.blocks or not inner.blocks:
        return False
    maps = recording.find(outer.blocks[0].entrance).value.shape
    tokens = recording.find(inner.blocks[0].entrance).value.shape
    return len(maps) == 4 and tokens == (maps[0], maps[2] * maps[3], maps[1])


def _hand_on(blocks: BlockList, recording: Recording) -> bool:
    """Whether some block is given just what the one before it gave: two attentions of one block are not."""
    return any(
        equal_tensors(recording.find(before.exit).value, recording.find(block.entrance).value)
        for before, block in pairwise(blocks.blocks)
    )


def equal_tensors(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same shape and the same values."""
    return first.shape == second.shape and torch.equal(first, second)


def _like_blocks(blocks: BlockList, root: nn.Module) -> bool:
    kinds = [
        type(root.get_submodule(block.module))
        for block in blocks.blocks
        if any(is_in(name, block.module) for name in blocks.attention)
    ]
    return len(kinds) > 1 and len(set(kinds)) < len(kinds)
