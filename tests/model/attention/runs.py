"""Running models plainly, eagerly and under the attention observer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outlierscope.model.attention.observer import AttentionObserver

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation


def run(model, batch, **options):
    with torch.inference_mode():
        return model(**batch.inputs, **options)


def observe(model, anatomy, batch) -> tuple[torch.Tensor, list[AttentionObservation], AttentionObserver]:
    seen: list[AttentionObservation] = []
    with AttentionObserver(model, anatomy, seen.append) as observer:
        observer.begin(batch)
        output = run(model, batch).last_hidden_state
    return output, seen, observer


def eager(model, batch, **options):
    """The model's own eager attention, however the family chooses it."""
    saved = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    try:
        return run(model, batch, **options)
    finally:
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = saved
