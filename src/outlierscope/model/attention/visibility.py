"""Which queries see which keys, and what the batch says about both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlierscope.errors import ProofError

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch

CORNER = 64
"""Tokens of the inputs on which Gu et al. 2024 (section 3) judge attention sinks."""


class AttentionTokens:
    """A stack's tokens as attention needs them, on the model's device; made once a batch for all layers.

    Attributes:
        batch: the tokens of the stack.
        real: [B, T] bool.
        classes: [B, C + 1, T] float32: 1 where a key is real and of the class; 1 for every key in
            the last row.
        query_weights: [B, 2, T] float32: 1 for real queries; 1 for the first ``CORNER`` of them.
        starts: [B] int64, the first real position.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch = batch
        self.real = batch.real.to(device)
        kinds = torch.arange(len(batch.class_names), device=device)
        of_class = batch.classes.to(device).long()[:, None] == kinds[:, None]  # [B, C, T]
        every = torch.ones_like(of_class[:, :1])
        self.classes = torch.cat([of_class & self.real[:, None], every], dim=1).float()
        first = self.real & (self.real.cumsum(1) <= CORNER)  # [B, T]
        self.query_weights = torch.stack([self.real, first], dim=1).float()
        self.starts = self.real.long().argmax(1)
        self._corner_ends = int((first * torch.arange(1, first.shape[1] + 1, device=device)).max())

    def in_corner(self, queries: slice) -> bool:
        """Whether any of these queries may be among the first ``CORNER`` real ones of a sequence."""
        return bool(queries.start < self._corner_ends)

    def gather_corner(self, by_key: Tensor) -> Tensor:
        """[..., T] -> [..., CORNER]: the first real positions of each sequence; 0 where it has fewer."""
        length = self.real.shape[1]
        positions = self.starts[:, None] + torch.arange(CORNER, device=self.real.device)  # [B, CORNER]
        inside = (positions < length) & self.real.gather(1, positions.clamp_max(length - 1))
        index = positions.clamp_max(length - 1)
        for _ in range(by_key.ndim - 2):
            index, inside = index.unsqueeze(1), inside.unsqueeze(1)
        shape = (*by_key.shape[:-1], CORNER)
        return by_key.gather(-1, index.expand(shape)) * inside


@dataclass(frozen=True)
class Visibility:
    """How many queries see each key and how many keys each query sees, among real tokens.

    Attributes:
        causal: whether no query sees a later key.
        seen_by: [B, K] int64, queries that can see each key.
        visible: [B, Q] int64, keys that each query can see.
        corner_seen_by: [B, CORNER] int64, ``seen_by`` within the first ``CORNER`` real tokens.
    """

    causal: bool
    seen_by: Tensor
    visible: Tensor
    corner_seen_by: Tensor

    @classmethod
    def from_mask(
        cls, mask: Tensor | None, queries: AttentionTokens, keys: AttentionTokens, *, causal: bool
    ) -> Visibility:
        """From a mask as eager attention takes it.

        Args:
            mask: [1 or B, 1 or H, 1 or Q, K]; added to the logits (very negative where a key is hidden) or bool
                (true where it is visible); ``None`` when every query sees every key.
            queries: the tokens that look.
            keys: the tokens that are looked at: the same ones, but in cross attention.
            causal: whether the layer is known to hide later keys.

        Raises:
            ProofError: when the mask of a causal layer shows later keys.
        """
        seen_by, visible, corner = [], [], []
        for sequence, (looking, real) in enumerate(zip(queries.real, keys.real, strict=True)):  # [Q], [K]
            sees = looking[:, None] & real  # [Q, K]
            if mask is not None:
                rows = mask[min(sequence, len(mask) - 1)]  # [1 or H, 1 or Q, K]
                # Half of the lowest value: masks may carry a bias beside it (ALiBi), never as large as that.
                sees &= (rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2).any(0)
            if causal and bool(sees.triu(1).any()):
                raise ProofError("a layer that is causal by its anatomy lets queries see later keys")
            seen_by.append(sees.sum(0))
            visible.append(sees.sum(1))
            first = queries.query_weights[sequence, 1].bool()  # [Q]
            corner.append((sees & first[:, None]).sum(0))
        by_key = torch.stack(corner)  # [B, K]
        return cls(causal, torch.stack(seen_by), torch.stack(visible), keys.gather_corner(by_key))

    @classmethod
    def from_rule(
        cls, queries: AttentionTokens, keys: AttentionTokens, *, causal: bool, window: int | None
    ) -> Visibility:
        """From what is known of the layer (see ``AttentionPlace``), where the mask is not at hand."""
        device = queries.real.device
        position = torch.arange(queries.real.shape[1], device=device)  # [Q]
        # [Q, K], positive for earlier keys
        distance = position[:, None] - torch.arange(keys.real.shape[1], device=device)
        sees = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            sees &= distance >= 0
        if window is not None:
            sees &= distance.abs() < window if causal else distance.abs() <= window
        return cls.from_mask(sees[None, None], queries, keys, causal=causal)
