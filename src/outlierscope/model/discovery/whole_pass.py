"""The whole pass: one tiny forward pass of a model, with what passes its blocks and what lies outside of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outlierscope.model.discovery.blocks import attends_by_registry, block_lists
from outlierscope.model.discovery.recording import BrokenOffError, Recording, record, tensors_in

if TYPE_CHECKING:
    from outlierscope.model.attention.masks import MaskFormat

SAME_PASS, SAME_PASS_IN_HALF_PRECISION = 1e-3, 1e-1
"""So much, of the largest value, two ways to attend may differ at a model's output."""


def record_whole(root: nn.Module, inputs: dict[str, Any], entry: str = "") -> Recording:
    """One tiny pass: what passes the blocks and what lies outside of them.

    Args:
        root: the model; names are relative to it.
        inputs: what is fed.
        entry: name of the module that is run: empty for the whole model, else a tower.

    Returns:
        The recording, with the call arguments of every element of a list. Where some list never attends through
        transformers' ``AttentionInterface`` the pass is made with ``output_attentions``, if the model takes it; where
        only boolean masks give what SDPA gives, with such.

    Raises:
        BrokenOffError: where the pass fails, with what passed before; the cause is what failed.
    """
    lists = block_lists(root)
    elements = frozenset(name for names in lists.values() for name in names)
    inside = {name for name in dict(root.named_modules()) if _within(name, elements)}
    everything = [name for name, _ in root.named_modules()]
    module = root.get_submodule(entry)

    def keep(name: str, tensor: Tensor) -> bool:
        # Inside of blocks only what may be attention's weights: the rest is looked at block by block.
        return 2 <= tensor.ndim <= 5 and (name not in inside or name in elements or tensor.ndim == 4)

    outputs: list[object] = []

    def run(into: Recording | None = None, mask: MaskFormat = "added", **more: bool) -> Recording:
        with torch.no_grad():
            return record(
                root,
                lambda: outputs.append(module(**inputs, **more)),
                modules=everything,
                keep=keep,
                arguments_of=elements,
                mask=mask,
                into=into,
            )

    recording = Recording()
    try:
        run(recording)
        if recording.attention and not _as_by_itself(module, inputs, outputs[-1]):
            with_boolean_masks = run(mask="boolean")
            if _as_by_itself(module, inputs, outputs[-1]):
                return with_boolean_masks
    except Exception as error:  # foreign code may fail in any way; whoever asked reads the cause
        raise BrokenOffError(recording) from error
    called = [names for names in lists.values() if any(recording.calls[name] for name in names)]
    if all(attends_by_registry(names, recording) for names in called):
        return recording
    try:
        return run(output_attentions=True)
    except Exception:  # foreign code may refuse the flag in any way; then no weights are returned
        return recording


def _as_by_itself(module: nn.Module, inputs: dict[str, Any], output: object) -> bool:
    """Whether a recorded pass gave what a module that attends with SDPA gives by itself, in its first tensor.

    True also for modules that do not attend with SDPA, or that give no tensor to compare.
    """
    implementations = {
        getattr(getattr(part, "config", None), "_attn_implementation", None) for part in module.modules()
    }
    if "sdpa" not in implementations:
        return True
    try:
        with torch.no_grad():
            expected = module(**inputs)
    except Exception:  # foreign code may fail in any way; then there is nothing to compare with
        return True
    first, second = (next((tensor for _, _, tensor in tensors_in(o)), None) for o in (output, expected))
    if first is None or second is None or not second.is_floating_point():
        return True
    return _close(first, second)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not second.numel():
        return first.shape == second.shape
    tolerance = SAME_PASS if second.dtype == torch.float32 else SAME_PASS_IN_HALF_PRECISION
    left = (first.float() - second.float()).abs().max()
    return bool(left <= tolerance * second.abs().max())  # false for NaN


def _within(name: str, elements: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in elements for length in range(1, len(parts) + 1))
