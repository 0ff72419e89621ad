"""Where a projection's output holds the value vectors: proposed by layout, proved by ``A @ V = z``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from outlierscope.model.anatomy import AttentionPlace

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest error relative to the spread of z over queries; 0.1 for half precision."""


def proved_values(projected: Tensor, place: AttentionPlace, rows: Tensor, z: Tensor) -> Tensor | None:
    """[B, G, T, d_head] value vectors, or ``None`` when no layout of ``projected`` satisfies ``A @ V = z``.

    A constant per head may stand between them (a value bias that is added later): rows of A sum to 1, so that
    it appears as it is in z.

    Args:
        projected: [B, T, F], what the projection to values (alone or fused with queries and keys) returned.
        place: the layer's attention.
        rows: [H, some, T], the first sequence's pattern for some of its queries.
        z: [at least some, H, d_head], rows of A @ V for these queries.
    """
    if projected.ndim != 3 or not rows.shape[1]:
        return None
    rows = rows.float()
    expected = z[: rows.shape[1]].float().transpose(0, 1)  # [H, some, d_head]
    spread = (expected - expected.mean(1, keepdim=True)).abs().amax()
    tolerance = TOLERANCE.get(z.dtype, 0.1)
    for values in _layouts(projected, place):
        first = values[0].float().repeat_interleave(place.heads // values.shape[1], dim=0)  # [H, T, d_head]
        left = expected - rows @ first  # [H, some, d_head]
        bias = left.mean(1)  # [H, d_head]
        # Against the spread over queries and not against z itself: where attention is nearly uniform any
        # tensor would do, up to a constant.
        if (left - bias[:, None]).abs().amax() <= tolerance * spread:
            if bias.abs().amax() <= tolerance * spread:
                return values
            by_group = bias.reshape(values.shape[1], -1, bias.shape[-1])  # [G, H / G, d_head]
            if (by_group - by_group[:, :1]).abs().amax() <= tolerance * spread:
                return values + by_group[:, 0, None].to(values.dtype)
    return None


def _layouts(projected: Tensor, place: AttentionPlace) -> Iterator[Tensor]:
    """Every way in which values may lie in the output, as [B, G, T, d_head]."""
    heads, groups, width = place.heads, place.key_value_heads, place.head_dim
    *shape, features = projected.shape
    if features == groups * width:  # values alone
        yield projected.reshape(*shape, groups, width).transpose(1, 2)
    if features == (heads + 2 * groups) * width:
        # All queries, then all keys, then all values.
        yield projected[..., -groups * width :].reshape(*shape, groups, width).transpose(1, 2)
        # By key and value head: its queries, its key, its value.
        yield projected.reshape(*shape, groups, -1, width)[..., -1, :].transpose(1, 2)
