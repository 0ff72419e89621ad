"""Masks: the formats in which transformers hands them to attention, and how one becomes the other.

Eager attention adds a mask to its logits, PyTorch's ``scaled_dot_product_attention`` also takes a boolean one, and a
few families compute with the mask in between as if it were always boolean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from torch import Tensor

MaskFormat = Literal["added", "boolean"]
"""``added``: 0 or the lowest value, as eager attention wants it; ``boolean``: true where a key is visible."""


def boolean_mask(*arguments: Any, **named: Any) -> Tensor | None:
    """The boolean mask of transformers' SDPA attention, also where SDPA would need none because it is causal."""
    mask: Tensor | None = sdpa_mask(*arguments, **(named | {"allow_is_causal_skip": False}))
    return mask


def as_added(mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """A mask in any format as eager attention takes it, and which queries see no key at all.

    Args:
        mask: [1 or B, 1 or H, Q, K] boolean (true where a key is visible), or added to the logits with negative
            infinity where a key is hidden, or ``None``.
        dtype: of the queries.

    Returns:
        The mask with the lowest finite value where a key is hidden, so that no row of the softmax is empty, and
        [1 or B, 1 or H, Q] bool.

    >>> as_added(torch.tensor([[[[True, False], [False, False]]]]), torch.float16)
    (tensor([[[[     0., -65504.],
              [-65504., -65504.]]]], dtype=torch.float16), tensor([[[False,  True]]]))
    """
    if mask is None:
        return None, None
    visible = mask if mask.dtype == torch.bool else mask > float("-inf")
    lowest = torch.finfo(dtype).min
    values = torch.zeros((), dtype=dtype, device=mask.device) if mask.dtype == torch.bool else mask.to(dtype)
    return torch.where(visible, values, lowest), ~visible.any(-1)


def without_blind(output: Tensor, blind: Tensor | None) -> Tensor:
    """What attention gives, [B, Q, H, d_head], with 0 for queries that see no key, as SDPA has it."""
    return output if blind is None else output.masked_fill(blind.transpose(1, 2)[..., None], 0.0)
