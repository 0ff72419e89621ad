"""Observation: one site's tensor while it passes, with its digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from outlierscope.stats.digest import Digest, digest_tensor
from outlierscope.stats.order_statistics import select_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.sites import Site
    from outlierscope.stats.located import Located
    from outlierscope.stats.rules import EventRule


@dataclass
class Observation:
    """What Stats of a site see. Nothing may keep the tensor, or a view of it, beyond the call.

    Attributes:
        site: canonical site.
        tensor: [B, T, d] as it passed, in the model's dtype and on its device.
        batch: the identities of the tokens.
        scratch: shared by all sites of one forward pass, in the order in which data passes them; for rules
            that look at earlier layers (``massive``). Cleared before the next pass.
    """

    site: Site
    tensor: Tensor
    batch: Batch
    scratch: dict[Any, Any] = field(default_factory=dict)
    _events: dict[EventRule, Located] = field(default_factory=dict, init=False, repr=False)
    _medians: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _means: dict[int, float] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def digest(self) -> Digest:
        """What is computed once for all Stats of this site and batch."""
        return digest_tensor(self.tensor, self.batch)

    def values(self, sequence: int) -> Tensor:
        """[T_used, d] float32: the real, finite rows of one sequence (``digest.rows[sequence]``)."""
        return self.digest.values(self.tensor, sequence)

    def events(self, rule: EventRule) -> Located:
        """The events of a rule; found once, whatever the number of Stats that ask."""
        if rule not in self._events:
            self._events[rule] = rule.find(self)
        return self._events[rule]

    def order_statistics(self, sequence: int, ranks: tuple[int, ...]) -> list[float]:
        """The ``rank``-th smallest abs(x), from 1, over all values of one sequence; exact."""
        return select_ranks(self.values(sequence).abs().flatten(), ranks)

    def median(self, sequence: int) -> float:
        """Exact median of abs(x) over all values of one sequence; the mean of the middle two if even."""
        if sequence not in self._medians:
            n = int(self.digest.pooled.count[sequence])
            lower, upper = self.order_statistics(sequence, ((n + 1) // 2, n // 2 + 1))
            self._medians[sequence] = (lower + upper) / 2
        return self._medians[sequence]

    def mean_abs(self, sequence: int) -> float:
        """Mean of abs(x) over all values of one sequence."""
        if sequence not in self._means:
            values = self.values(sequence).abs()
            # By token first: a float32 sum over everything would lose digits, and may overflow.
            self._means[sequence] = float(
                (values.double() if values.max() > 1e30 else values).mean(1).double().mean()
            )
        return self._means[sequence]
