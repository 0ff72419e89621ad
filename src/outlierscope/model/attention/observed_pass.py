"""AttentionPass: what the layers of one forward pass share while their attention is reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.model.attention.observation import AttentionReduction
from outlierscope.model.attention.visibility import AttentionTokens, Visibility

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.attention.observation import AttentionObservation, HeadTensors, PatternBlock
    from outlierscope.model.sites import Site


class AttentionPass:
    """One dear batch on its way through the model.

    Attributes:
        batch: the batch.
        consume: takes finished observations.
        on_block: takes blocks of patterns, or ``None``.
        on_heads: takes queries, keys and values, or ``None``.
        unobserved: where reasons go when a layer cannot be observed.
    """

    def __init__(
        self,
        batch: Batch,
        consume: Callable[[AttentionObservation], None],
        on_block: Callable[[PatternBlock], None] | None,
        on_heads: Callable[[HeadTensors], None] | None,
        unobserved: dict[Site, str],
    ) -> None:
        self.batch = batch
        self.consume = consume
        self.on_block = on_block
        self.on_heads = on_heads
        self.unobserved = unobserved
        self._tokens: dict[torch.device, AttentionTokens] = {}
        # Layers are handed the same mask: what it says is worked out once. The mask is kept so that no other
        # tensor can come by its id.
        self._by_mask: dict[tuple[int, bool], tuple[Tensor | None, Visibility]] = {}
        self._by_rule: dict[tuple[bool, int | None], Visibility] = {}

    def tokens(self, device: torch.device) -> AttentionTokens:
        """The batch on a device."""
        if device not in self._tokens:
            self._tokens[device] = AttentionTokens(self.batch, device)
        return self._tokens[device]

    def masked(
        self, site: Site, heads: int, device: torch.device, *, mask: Tensor | None, causal: bool
    ) -> AttentionReduction:
        """A reduction for a layer whose mask is at hand."""
        tokens = self.tokens(device)
        key = (id(mask), causal)
        if key not in self._by_mask:
            self._by_mask[key] = (mask, Visibility.from_mask(mask, tokens, causal=causal))
        return AttentionReduction(site, tokens, self._by_mask[key][1], heads)

    def ruled(
        self, site: Site, heads: int, device: torch.device, *, causal: bool, window: int | None
    ) -> AttentionReduction:
        """A reduction for a layer of which it is known what it sees."""
        tokens = self.tokens(device)
        if (causal, window) not in self._by_rule:
            self._by_rule[causal, window] = Visibility.from_rule(tokens, causal=causal, window=window)
        return AttentionReduction(site, tokens, self._by_rule[causal, window], heads)

    def fits(self, site: Site, sequences: int, queries: int, keys: int) -> bool:
        """Whether a pattern's shape is that of the batch; the reason is noted where it is not."""
        expected = tuple(self.batch.real.shape)
        if (sequences, queries) == expected and keys == queries:
            return True
        self.unobserved[site] = (
            f"its pattern is {sequences} x {queries} queries by {keys} keys, "
            f"the batch {expected[0]} sequences of {expected[1]} tokens"
        )
        return False
