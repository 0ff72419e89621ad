"""Fingerprint: a short identity of a model, the same for a checkpoint and a live model with its weights."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLED_VALUES = 64
"""Values of each parameter that enter, evenly spread."""

VOLATILE = frozenset(
    {
        "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map", "dtype",
        "output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "transformers_version",
        "use_cache",
    }
)  # fmt: skip
"""Settings of a config that say how it was loaded or run, not which model it is."""


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the config and over every parameter's name, shape, dtype and a sample of its values.

    The same weights in another dtype have another fingerprint, as their findings may differ.
    """
    digest = hashlib.sha256()
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        digest.update(json.dumps(_steady(config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            digest.update(_sample(parameter.detach()))
    return digest.hexdigest()


def _sample(parameter: Tensor) -> bytes:
    flat = parameter.reshape(-1)
    places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLED_VALUES, len(flat)), dtype=torch.float64)
    return flat[places.long().to(flat.device)].cpu().float().numpy().tobytes()


def _steady(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _steady(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_steady(item) for item in value]
    return value
