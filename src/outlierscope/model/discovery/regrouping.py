"""Regrouping: rows of the residual stream found again in a tensor that has them in another order.

Attention in windows of an image, or beside tokens that are added and taken away again, gives the tokens of the
residual stream in an order of its own, sometimes among others.
"""

from __future__ import annotations

import torch
from torch import Tensor

MATCHES = 1e-5
"""So far, relative to the largest value, two rows that are the same may differ in float32."""


def find_rows(wanted: Tensor, among: Tensor) -> Tensor | None:
    """Where each row of one matrix stands in another; ``None`` where some does not, or two are the same one.

    Args:
        wanted: [N, d].
        among: [M, d] with M at least N.

    Returns:
        [N] int64.

    >>> find_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]))
    tensor([2, 0])
    """
    if len(among) < len(wanted) or not len(wanted):
        return None
    wanted, among = wanted.double(), among.double()
    tolerance = MATCHES * float(among.abs().max())
    if float((among - wanted[0]).abs().amax(1).min()) > tolerance:
        return None  # most tensors are told so
    generator = torch.Generator(among.device).manual_seed(0)
    direction = torch.randn(among.shape[1], generator=generator, dtype=among.dtype, device=among.device)
    projected, order = (among @ direction).sort()  # [M]
    above = torch.searchsorted(projected, wanted @ direction).clamp(1, len(among) - 1)  # [N]
    neighbours = order[torch.stack([above - 1, above])] if len(among) > 1 else order.expand(1, len(wanted))
    distances = (among[neighbours] - wanted).abs().amax(-1)  # [2, N]
    nearest, which = distances.min(0)
    rows = neighbours.gather(0, which[None])[0]  # [N]
    one_to_one = len(torch.unique(rows)) == len(rows)
    return rows if one_to_one and float(nearest.max()) <= tolerance else None


def in_order(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """The rows [N, d] of a tensor [..., d] in the order of the residual stream; as it is where that is its own."""
    return tensor if rows is None else tensor.reshape(-1, tensor.shape[-1])[rows]
