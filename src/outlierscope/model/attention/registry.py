"""RegistryWatch: reduces the attention of a module that dispatches through transformers' registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outlierscope.model.attention.observation import HeadTensors, PatternBlock

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.attention.observation import AttentionReduction
    from outlierscope.model.attention.observed_pass import AttentionPass, Ends
    from outlierscope.model.sites import Site


@dataclass
class RegistryWatch:
    """The observer's end of ``exact_attention`` for one attention module.

    Attributes:
        sites: ``pattern`` (or ``cross_pattern``) of the layers that call the module, in their order.
        wanted: those of them that are looked at.
        causal: whether these layers hide later keys.
    """

    causal: bool
    sites: list[Site] = field(default_factory=list)
    wanted: set[Site] = field(default_factory=set)
    _pass: AttentionPass | None = None
    _calls: int = 0
    _reduction: AttentionReduction | None = None
    _ends: Ends | None = None
    _queries_and_keys: tuple[Tensor, Tensor] | None = None

    def begin_pass(self, now: AttentionPass | None) -> None:
        """Forget the last forward pass; ``None`` where the next one is not observed."""
        self._pass, self._calls, self._reduction = now, 0, None

    def begin(self, query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
        """Before the first block of a call: whether this call is observed."""
        self._reduction = None
        if self._pass is None:
            return False
        self._calls += 1
        if self._calls > len(self.sites):
            self._pass.unobserved[self.sites[-1]] = "its module is called more often than it has layers"
            return False
        site = self.sites[self._calls - 1]
        if site not in self.wanted:
            return False
        sequences, heads, queries, _ = query.shape
        self._ends = self._pass.ends(site, sequences, queries, key.shape[2])
        if self._ends is None:
            return False
        self._reduction = self._pass.masked(
            site, self._ends, heads, query.device, mask=mask, causal=self.causal
        )
        self._queries_and_keys = (query, key) if self._pass.on_heads is not None else None
        return True

    def block(self, sequences: slice, queries: slice, pattern: Tensor) -> None:
        """One block of the pattern, [b, H, q, K]."""
        assert self._pass is not None  # noqa: S101  (begin returned true)
        assert self._reduction is not None  # noqa: S101
        assert self._ends is not None  # noqa: S101
        self._reduction.add(sequences, queries, pattern)
        if self._pass.on_block is not None:
            site = self._reduction.site
            self._pass.on_block(PatternBlock(site, self._ends.keys, sequences, queries, pattern))

    def end(self, value: Tensor, output: Tensor, *, sums_to_one: bool) -> None:
        """After the last block: ``value`` is [B, G, K, d_head], ``output`` [B, Q, H, d_head]."""
        assert self._pass is not None  # noqa: S101
        assert self._reduction is not None  # noqa: S101
        assert self._ends is not None  # noqa: S101
        reduction, self._reduction = self._reduction, None
        if self._queries_and_keys is not None and self._pass.on_heads is not None:
            query, key = self._queries_and_keys
            ends = self._ends
            self._pass.on_heads(HeadTensors(reduction.site, ends.queries, ends.keys, query, key, value))
            self._queries_and_keys = None
        self._pass.consume(reduction.finish(value, output, sums_to_one=sums_to_one))
