"""Discovery: the anatomy of any transformer, found in a tiny forward pass and proved block by block."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import nn

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Anatomy, LayerAnatomy, StackAnatomy
from outlierscope.model.discovery.blocks import (
    Block,
    BlockList,
    find_block_lists,
    find_lists_without_attention,
    not_in_one_shape,
)
from outlierscope.model.discovery.dataflow import sees_later_tokens
from outlierscope.model.discovery.feeding import Fed, feed
from outlierscope.model.discovery.joining import find_final_norm, join_blocks
from outlierscope.model.discovery.layers import GROUPED_OTHERWISE, INNER_SITES, block_anatomy, is_causal
from outlierscope.model.discovery.recording import returned_patterns
from outlierscope.model.discovery.trial import RandomParameters, run_trial

if TYPE_CHECKING:
    from outlierscope.model.discovery.recording import Recording
    from outlierscope.model.discovery.trial import Trial


FEW_PARAMETERS = 2**30
"""Below this, threads cost more than they give on a few tokens (twenty times the time on a busy machine)."""


def discover(module: nn.Module) -> Anatomy:
    """Find and prove the anatomy of a model.

    Args:
        module: a Hugging Face model; names in the anatomy are relative to it. It is left as it was.

    Returns:
        The anatomy; ``proved`` is ``None`` where there is no stack of blocks that attend, and ``False`` (with
        a reason) where some block's residual identities could not be proved; its sites are then in
        ``missing``.

    Raises:
        UserError: where no input can be made for the model.
    """
    was_training = [part for part in module.modules() if part.training]
    threads = torch.get_num_threads()
    module.eval()
    if sum(parameter.numel() for parameter in module.parameters()) < FEW_PARAMETERS:
        torch.set_num_threads(1)
    try:
        return _discover(module)
    finally:
        torch.set_num_threads(threads)
        for part in was_training:
            part.training = True


def _discover(module: nn.Module) -> Anatomy:
    fed, reasons = feed(module)
    stacks: dict[str, StackAnatomy] = {}
    for passed in fed:
        for blocks in find_block_lists(module, passed.recording):
            for stack, reason in _discover_list(module, blocks, passed, taken=frozenset(stacks)):
                stacks[stack.name] = stack
                reasons += [f"{stack.name}: {reason}"] if reason else []
    attends = bool(stacks or reasons)
    for passed in fed:
        for blocks in find_lists_without_attention(module, passed.recording):
            stack, reason = _discover_stack(module, blocks, passed, taken=frozenset(stacks))
            # Other lists of like modules keep the shape of what passes them too: only a proof makes them blocks.
            if not reason and any("mixer_out" in layer.taps for layer in stack.layers):
                stacks[stack.name] = stack
    if attends:
        return Anatomy(stacks, not reasons, "; ".join(reasons))
    name = type(module).__name__
    if stacks:
        reason = "has no attention: sinks and heads are not observed; its mixers are, at mixer_out"
        return Anatomy(stacks, None, f"{name} {reason}")
    return Anatomy({}, None, f"{name} has no stack of blocks that attend")


def _discover_list(
    root: nn.Module, found: BlockList, passed: Fed, taken: frozenset[str]
) -> list[tuple[StackAnatomy, str]]:
    """The stack of a list, or where it is not proved those of the lists within its elements, if they all are."""
    stack, reason = _discover_stack(root, found, passed, taken)
    if not reason or not found.inner:
        return [(stack, reason)]
    instead: list[tuple[StackAnatomy, str]] = []
    for inner in found.inner:
        names = taken.union(other.name for other, _ in instead)
        instead.append(_discover_stack(root, inner, passed, names))
        if instead[-1][1]:
            return [(stack, reason)]
    return instead


def _discover_stack(
    root: nn.Module, found: BlockList, passed: Fed, taken: frozenset[str]
) -> tuple[StackAnatomy, str]:
    """The anatomy of one stack, and why it is not proved (or nothing)."""
    whole = passed.recording
    name = _free_name(_stack_name(root, found, whole), taken)
    parameters = RandomParameters()
    layers = [_reshaping_layer(index, module) for index, module in enumerate(found.reshaping)]
    reasons = []
    for index, block in enumerate(found.blocks, len(layers)):
        layer, reason = _discover_layer(root, block, index, name, whole, parameters)
        layers.append(layer)
        if reason:
            reasons.append(f"layer {index}: {reason}")
    width = whole.find(found.blocks[0].entrance).value.shape[-1] if found.blocks else 0
    stack = StackAnatomy(name, width, layers, passed.entry)
    if found.trouble:
        stack.missing |= dict.fromkeys(("embed", "final_norm"), found.trouble)
        return stack, found.trouble
    stack.taps["embed"] = found.blocks[0].entrance
    reasons += join_blocks(stack, found, whole)
    find_final_norm(root, stack, found, whole)
    return stack, _shorten(reasons)


def _free_name(name: str, taken: frozenset[str]) -> str:
    """``name``, or with the first free number from 2 where another stack has it.

    >>> _free_name("vision", frozenset({"vision", "vision_2"}))
    'vision_3'
    """
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _discover_layer(
    root: nn.Module,
    block: Block,
    index: int,
    stack: str,
    whole: Recording,
    parameters: RandomParameters,
) -> tuple[LayerAnatomy, str]:
    call = block.entrance.call
    entrance, leaving = replace(block.entrance, call=0), replace(block.exit, call=0)
    try:
        arguments = whole.arguments[block.module, call]
        trial = run_trial(
            root, block.module, entrance, leaving, arguments, parameters, seed=index, mask=whole.mask
        )
        layer = block_anatomy(trial, index, stack)
        _set_tokens_apart(layer, trial)
        return _at_call(layer, call), ""
    except ProofError as error:
        reason = str(error)
    except Exception as error:  # foreign code may fail in any way; the reason goes into the anatomy
        reason = " ".join(f"its trial failed ({type(error).__name__}: {error})".split())[:200]
    unknown = LayerAnatomy(index, block.module, "unknown", missing=dict.fromkeys(INNER_SITES, reason))
    unknown.taps |= {"resid_pre": block.entrance, "resid_post": block.exit}
    return unknown, reason


def _set_tokens_apart(layer: LayerAnatomy, trial: Trial) -> None:
    """Sites whose tokens do not stand as in the residual stream (windows, other batches) are not observed."""
    entered = trial.recording.find(trial.entrance).value.shape[:-1]
    for name, tap in list(layer.taps.items()):
        shape = trial.recording.find(tap).value.shape
        same = shape[: len(entered)] == entered or (len(shape) == 2 and shape[0] == math.prod(entered))
        flat = len(entered) != 2 and shape[:-1] == (
            1 if len(entered) == 1 else entered[0],
            math.prod(entered[len(entered) != 1 :]),
        )
        if not same and not flat:
            del layer.taps[name]
            layer.missing[name] = GROUPED_OTHERWISE
    gone = {name for name, site in layer.aliases.items() if site.name in layer.missing}
    for name in gone:
        layer.missing[name] = layer.missing[layer.aliases.pop(name).name]


def _reshaping_layer(index: int, module: str) -> LayerAnatomy:
    """A module of the list that no residual stream passes: it has its number, and nothing of it is observed."""
    sites = ("resid_pre", *INNER_SITES, "pattern", "resid_post")
    return LayerAnatomy(index, module, "reshaping", missing=dict.fromkeys(sites, not_in_one_shape(module)))


def _at_call(layer: LayerAnatomy, call: int) -> LayerAnatomy:
    """The same for a later call of the block, as blocks that share their module are proved once a call."""
    if call == 0:
        return layer
    layer.taps = {name: replace(tap, call=call) for name, tap in layer.taps.items()}
    layer.attention = replace(layer.attention, call=call) if layer.attention else None
    layer.cross_attention = replace(layer.cross_attention, call=call) if layer.cross_attention else None
    return layer


def _stack_name(root: nn.Module, found: BlockList, whole: Recording) -> str:
    parts = found.container.split(".")
    ancestors = [root.get_submodule(".".join(parts[:length])) for length in range(len(parts), -1, -1)]
    read = next((name for a in ancestors if (name := getattr(a, "main_input_name", None))), "input_ids")
    if read == "pixel_values":
        return "vision"
    if read in ("input_features", "input_values"):
        return "audio"
    if found.route == "registry":
        patterns = [call.pattern for call in whole.attention if call.module in found.attention]
    else:
        patterns = [p.value for p in returned_patterns(whole) if p.module in found.attention]
    causal = (
        any(is_causal(pattern) for pattern in patterns)
        if found.attention
        else _hides_later(root, found, whole)
    )
    return "decoder" if causal else "encoder"


def _hides_later(root: nn.Module, found: BlockList, whole: Recording) -> bool:
    """Whether the first of some blocks without attention computes nothing from later tokens."""
    block = found.blocks[0]
    try:
        arguments = whole.arguments[block.module, 0]
        trial = run_trial(root, block.module, block.entrance, block.exit, arguments, RandomParameters())
    except ProofError:
        return False
    return not sees_later_tokens(trial)


def _shorten(reasons: list[str]) -> str:
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else ""
