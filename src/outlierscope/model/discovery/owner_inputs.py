"""Inputs of a part: hidden states for the module that runs a list of blocks, made from its signature alone.

Where a model cannot be fed from its front door, its blocks can still be reached: the module that owns their list
takes hidden states of their width. The proof is about blocks, so random hidden states serve it as well.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlierscope.model.discovery.example_tensors import SEQUENCES, SIDE, TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

MAIN = ("embeds", "embeddings", "embedding_output", "hidden_states", "inputs", "states", "features")
"""How the names of arguments end that hold hidden states."""

GRIDS = ((TOKENS,), (SIDE, SIDE))
"""Hidden states are [B, T, d], or in some stacks of images [B, H, W, d]."""

WIDTH_IN_MESSAGE = (
    r"shapes cannot be multiplied \(\d+x\d+ and (\d+)x\d+\)",
    r"must match the size of tensor b \((\d+)\)",
    r"Given normalized_shape=\[(\d+)\]",
)
"""PyTorch's own words for the width that it had expected."""


def widths_of(block: nn.Module) -> list[int]:
    """The two commonest lengths of a block's vectors: of norms and biases, most have the residual's width.

    >>> from torch import nn
    >>> widths_of(nn.TransformerEncoderLayer(8, 2, dim_feedforward=20))
    [8, 24]
    """
    lengths = Counter(len(parameter) for parameter in block.parameters() if parameter.ndim == 1)
    return [length for length, _ in lengths.most_common(2)]


def width_asked_for(message: str) -> int | None:
    """The width that a failed pass would have taken, where PyTorch's message tells it.

    >>> width_asked_for("mat1 and mat2 shapes cannot be multiplied (24x64 and 320x64)")
    320
    """
    found = next((match for words in WIDTH_IN_MESSAGE if (match := re.search(words, message))), None)
    return int(found[1]) if found else None


def owner_inputs(owner: nn.Module, widths: list[int], seed: int = 0) -> Iterator[dict[str, object]]:
    """Keyword arguments for a tiny pass of the module that runs blocks, the simplest first; few of them run.

    Every required tensor is hidden states, [2, 12, width] or [2, 4, 4, width] float32 (masks: ones [2, 12] int64),
    every required integer 1. First only what is required, then also the first optional argument that is named
    like hidden states, then every such argument. Where there are two, they may differ in width.

    Args:
        owner: runs the blocks.
        widths: to be tried, in this order.
        seed: of the random values.

    >>> from torch import nn
    >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    >>> inputs = next(owner_inputs(layer, [8]))
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'src': (2, 12, 8)}
    """
    kinds = inspect.Parameter
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(owner.forward).parameters.items()
        if parameter.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    }
    needed = [name for name, parameter in parameters.items() if parameter.default is kinds.empty]
    optional = [
        name
        for name in parameters
        if name not in needed and name.endswith(MAIN) and not name.startswith("output_")
    ]
    choices = dict.fromkeys((*needed, *more) for more in ([], optional[:1], optional))
    like = next((p for p in owner.parameters() if p.is_floating_point()), None)
    for grid, names in product(GRIDS, (names for names in choices if names)):
        same = [(width,) * len(names) for width in widths]
        differing = product(widths, repeat=2) if len(names) == 2 else ()
        for chosen in dict.fromkeys([*same, *differing]):
            generator = torch.Generator().manual_seed(seed)
            inputs = {
                name: _value(name, parameters[name], (*grid, width), generator, like)
                for name, width in zip(names, chosen, strict=True)
            }
            if "use_cache" in parameters:
                inputs["use_cache"] = False
            yield inputs


def _value(
    name: str,
    parameter: inspect.Parameter,
    shape: tuple[int, ...],
    generator: torch.Generator,
    like: Tensor | None,
) -> object:
    if parameter.annotation in (int, "int"):
        return 1
    if parameter.annotation in (bool, "bool"):
        return False
    device = None if like is None else like.device
    if "mask" in name:
        return torch.ones(SEQUENCES, TOKENS, dtype=torch.int64, device=device)  # [B, T]
    states = torch.randn(SEQUENCES, *shape, generator=generator)  # [B, T, d] or [B, H, W, d]
    return states if like is None else states.to(like.device, like.dtype)
