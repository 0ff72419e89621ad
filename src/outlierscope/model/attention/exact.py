"""Exact attention by blocks of queries, for families that dispatch through transformers' registry.

The model's own ``eager_attention_forward`` is called on some queries at a time, so that the whole pattern
never exists, and each block of the pattern is shown to whoever watches the module.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from outlierscope.errors import ProofError
from outlierscope.model.attention.masks import as_added, boolean_mask, without_blind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

EXACT = "outlierscope_exact"
"""Name of this attention in transformers' registries of attention functions and of masks."""

EXACT_BOOLEAN = "outlierscope_exact_boolean"
"""The same for families that compute with a mask as if it were boolean."""

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
"""Elements of a pattern that are computed at a time: what stays in a CPU's cache, or fills a GPU."""

PROBED_QUERIES = 32
"""Queries on which it is checked that an attention function may be called by blocks."""


class Watch(Protocol):
    """Whoever looks at the attention of one module."""

    def begin(self, query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
        """Before the first block; returns whether the blocks are wanted."""

    def block(self, sequences: slice, queries: slice, pattern: Tensor) -> None:
        """One block of the pattern, [b, H, q, K]."""

    def end(self, value: Tensor, output: Tensor, *, sums_to_one: bool) -> None:
        """After the last block: ``value`` is [B, G, K, d_head], ``output`` [B, Q, H, d_head]."""


WATCHED: WeakKeyDictionary[nn.Module, Watch] = WeakKeyDictionary()
"""Attention modules that are being watched; others are computed just the same, by blocks."""

_BY_BLOCKS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def exact_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: object,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention functions.

    Args:
        module: the attention module.
        query: [B, H, Q, d_head].
        key: [B, G, K, d_head].
        value: [B, G, K, d_head].
        attention_mask: [1 or B, 1 or H, Q, K], as ``eager_mask`` makes it.
        arguments: whatever the family's eager function takes (``scaling``, ``position_bias``, ...).

    Returns:
        [B, Q, H, d_head], bit for bit what eager attention gives, and ``None`` for the weights.
    """
    eager = eager_function(module)
    watch = WATCHED.get(module)
    wanted = watch is not None and watch.begin(query, key, attention_mask)
    arguments["attention_mask"] = attention_mask
    if module not in _BY_BLOCKS and query.shape[2] > 1:
        _BY_BLOCKS[module] = _same_by_blocks(eager, module, query, key, value, arguments)
    limit = BLOCK_ELEMENTS.get(query.device.type, 2**25) if _BY_BLOCKS.get(module, True) else None
    output: Tensor | None = None
    for sequences, queries in blocks(query, key, limit):
        part, pattern = _call(eager, module, query, key, value, arguments, sequences, queries)
        if output is None:
            output = part.new_empty(*query.shape[:1], query.shape[2], *part.shape[2:])  # [B, Q, H, d_head]
        output[sequences, queries] = part
        if watch is not None and wanted:
            watch.block(sequences, queries, pattern)
    assert output is not None  # noqa: S101  (there is at least one block)
    if watch is not None and wanted:
        # Learned sinks take part in the softmax, but have no key: rows then sum to less than 1.
        sinks = any(arguments.get(name) is not None for name in ("s_aux", "sinks"))
        sinks = sinks or getattr(module, "sinks", None) is not None
        watch.end(value, output, sums_to_one=not sinks)
    return output, None


def exact_attention_of_boolean_masks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: object,
) -> tuple[Tensor, None]:
    """``exact_attention`` with a mask that is boolean, or has negative infinity where a key is hidden.

    What it gives is within rounding of what SDPA gives, also for queries that see no key.
    """
    added, blind = as_added(attention_mask, query.dtype)
    output, _ = exact_attention(module, query, key, value, added, **arguments)
    return without_blind(output, blind), None


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function of a module's own family.

    Raises:
        ProofError: when the family has none, so that its pattern cannot be computed as the model would.
    """
    for kind in type(module).__mro__:
        forward = kind.__dict__.get("forward")
        home = sys.modules.get(kind.__module__)
        # A few families have several, and name the one they mean in the forward pass.
        names = getattr(getattr(forward, "__wrapped__", forward), "__code__", None)
        candidates = [
            name for name in (names.co_names if names else ()) if name.endswith("eager_attention_forward")
        ]
        for name in (*candidates, "eager_attention_forward"):
            function = getattr(home, name, None)
            if callable(function):
                return function  # type: ignore[no-any-return]
    raise ProofError(f"{type(module).__module__} has no eager_attention_forward for {type(module).__name__}")


def blocks(query: Tensor, key: Tensor, limit: int | None) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and queries with at most about ``limit`` elements of pattern (``None``: any)."""
    sequences, heads, queries, _ = query.shape
    if limit is None:
        yield slice(0, sequences), slice(0, queries)
        return
    rows = max(1, limit // (heads * key.shape[2]))
    together = max(1, min(sequences, rows // queries))
    # Blocks of nearly equal size: a last block of one query would go through another kernel.
    count = max(1, -(-queries // rows))
    edges = [queries * index // count for index in range(count + 1)]
    for first in range(0, sequences, together):
        for start, stop in pairwise(edges):
            yield slice(first, min(first + together, sequences)), slice(start, stop)


def _call(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arguments: dict[str, object],
    sequences: slice,
    queries: slice,
) -> tuple[Tensor, Tensor]:
    batch, _, length, _ = query.shape

    def part(argument: object) -> object:
        if not isinstance(argument, torch.Tensor) or argument.ndim != 4:
            return argument
        if argument.shape[0] == batch:
            argument = argument[sequences]
        return argument[:, :, queries] if argument.shape[2] == length else argument

    sliced = {name: part(argument) for name, argument in arguments.items()}
    return eager(module, query[sequences, :, queries], key[sequences], value[sequences], **sliced)


def _same_by_blocks(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arguments: dict[str, object],
) -> bool:
    """Whether blocks give what the whole gives, tried on the first queries.

    They do not where a function derives something from the number of queries, or takes what cannot be cut.
    """
    sequences, _, queries, _ = query.shape
    some = min(queries, PROBED_QUERIES)
    whole, _ = _call(eager, module, query, key, value, arguments, slice(0, sequences), slice(0, some))
    tolerance = 1e-5 if whole.dtype == torch.float32 else 2e-2
    scale = float(whole.float().abs().nan_to_num().max())
    half = some // 2
    for rows, part in ((slice(0, 1), slice(0, half)), (slice(sequences - 1, sequences), slice(half, some))):
        try:
            alone, _ = _call(eager, module, query, key, value, arguments, rows, part)
        except (RuntimeError, IndexError):  # shapes that do not fit together: it cannot be cut
            return False
        difference = (alone.float() - whole[rows, part].float()).abs().nan_to_num()
        if alone.shape != whole[rows, part].shape or float(difference.max()) > tolerance * scale:
            return False
    return True


AttentionInterface.register(EXACT, exact_attention)
AttentionMaskInterface.register(EXACT, eager_mask)
AttentionInterface.register(EXACT_BOOLEAN, exact_attention_of_boolean_masks)
AttentionMaskInterface.register(EXACT_BOOLEAN, boolean_mask)
