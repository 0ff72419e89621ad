"""AttentionPass: what the layers of one forward pass share while their attention is reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from outlierscope.model.attention.observation import AttentionReduction
from outlierscope.model.attention.visibility import AttentionTokens, Visibility

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.attention.observation import AttentionObservation, HeadTensors, PatternBlock
    from outlierscope.model.sites import Site


class Ends(NamedTuple):
    """Whose tokens meet in a pattern.

    Attributes:
        queries: the tokens that look.
        keys: the tokens that are looked at: the same ones, but in cross attention.
    """

    queries: Batch
    keys: Batch


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
        self._tokens: dict[tuple[str, torch.device], AttentionTokens] = {}
        # Layers are handed the same mask: what it says is worked out once. The mask is kept so that no other
        # tensor can come by its id.
        self._by_mask: dict[tuple[str, str, int, bool], tuple[Tensor | None, Visibility]] = {}
        self._by_rule: dict[tuple[str, str, bool, int | None], Visibility] = {}

    def ends(self, site: Site, sequences: int, queries: int, keys: int) -> Ends | None:
        """Whose tokens the queries and keys of a pattern are; ``None`` where it is not observed.

        The reason is noted, but where the stack is not fed at all. Cross attention reads the other stack that is
        fed.
        """
        looking = self.batch.of(site.stack)
        if looking is None:
            return None
        read = looking
        if site.name == "cross_pattern":
            others = [view for view in self.batch.views if view is not looking]
            if len(others) != 1:
                self.unobserved[site] = f"what it reads is not known: {len(others)} other stacks are fed"
                return None
            read = others[0]
        expected = (*looking.real.shape, read.real.shape[1])
        if (sequences, queries, keys) == expected:
            return Ends(looking, read)
        self.unobserved[site] = (
            f"its pattern is {sequences} x {queries} queries by {keys} keys, "
            f"the batch {expected[0]} sequences of {expected[1]} tokens"
            + ("" if read is looking else f" that read {expected[2]}")
        )
        return None

    def masked(
        self, site: Site, ends: Ends, heads: int, device: torch.device, *, mask: Tensor | None, causal: bool
    ) -> AttentionReduction:
        """A reduction for a layer whose mask is at hand."""
        queries, keys = self._on(ends, device)
        place = (ends.queries.stack, ends.keys.stack, id(mask), causal)
        if place not in self._by_mask:
            self._by_mask[place] = (mask, Visibility.from_mask(mask, queries, keys, causal=causal))
        return AttentionReduction(site, queries, keys, self._by_mask[place][1], heads)

    def ruled(
        self,
        site: Site,
        ends: Ends,
        heads: int,
        device: torch.device,
        *,
        causal: bool,
        window: int | None,
    ) -> AttentionReduction:
        """A reduction for a layer of which it is known what it sees."""
        queries, keys = self._on(ends, device)
        place = (ends.queries.stack, ends.keys.stack, causal, window)
        if place not in self._by_rule:
            self._by_rule[place] = Visibility.from_rule(queries, keys, causal=causal, window=window)
        return AttentionReduction(site, queries, keys, self._by_rule[place], heads)

    def _on(self, ends: Ends, device: torch.device) -> tuple[AttentionTokens, AttentionTokens]:
        for view in ends:
            if (view.stack, device) not in self._tokens:
                self._tokens[view.stack, device] = AttentionTokens(view, device)
        return self._tokens[ends.queries.stack, device], self._tokens[ends.keys.stack, device]
