"""Observation: one site's tensor while it passes, with its digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlierscope.stats.digest import Digest, digest_tensor
from outlierscope.stats.sequence_magnitudes import count_magnitudes, select_ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.sites import Site
    from outlierscope.stats.located import Located
    from outlierscope.stats.rules import EventRule


@dataclass
class Observation:
    """What Stats of a site see. Nothing may keep the tensor, or a view of it, beyond the call.

    What several Stats need is computed once, when the first asks.

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
    _counts: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _ranks: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)
    _means: dict[int, float] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def digest(self) -> Digest:
        """The figures that all Stats of this site share."""
        return digest_tensor(self.tensor, self.batch)

    @cached_property
    def filled(self) -> list[int]:
        """Rows of the batch with at least one token that is real and finite."""
        return [sequence for sequence, count in enumerate(self.digest.counts) if count]

    def values(self, sequence: int) -> Tensor:
        """[T_used, d] float32: the real, finite rows of one sequence (``digest.places(sequence)``)."""
        return self.digest.values(self.tensor, sequence)

    def at_hand(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rows of the flattened tensor [B * T, d] on the CPU: values [*, d], and where in them each row is.

        Nothing is copied when the tensor is float32 and on the CPU already.
        """
        if self._array is not None:
            return self._array, rows
        flat = self.tensor.detach().reshape(-1, self.tensor.shape[2])
        values = flat.index_select(0, torch.from_numpy(rows).to(flat.device)).float().cpu().numpy()
        return values, np.arange(len(rows))

    @cached_property
    def _array(self) -> NDArray[np.float32] | None:
        """[B * T, d], the tensor's own memory, where it is float32 and on the CPU."""
        if self.tensor.dtype != torch.float32 or self.tensor.device.type != "cpu":
            return None
        array: NDArray[np.float32] = self.tensor.detach().reshape(-1, self.tensor.shape[2]).numpy()
        return array

    def is_used(self, places: Located) -> Tensor:
        """[K] bool, whether the tokens of these places are real and finite here."""
        used = torch.zeros(self.batch.token_ids.numel(), dtype=torch.bool)
        used[self.digest.order.rows] = True
        return used[places.sequence * self.tensor.shape[1] + places.place]

    def events(self, rule: EventRule) -> Located:
        """The events of a rule."""
        if rule not in self._events:
            self._events[rule] = rule.find(self)
        return self._events[rule]

    def magnitude_counts(self, sequence: int) -> Tensor:
        """[BINS] int64 histogram of abs(x) over all values of one sequence; see ``LogHistogram``."""
        if sequence not in self._counts:
            self._counts[sequence] = count_magnitudes(self.values(sequence))
        return self._counts[sequence]

    def median(self, sequence: int) -> float:
        """Exact median of abs(x) over all values of one sequence; the mean of the middle two if even."""
        return self._ranked(sequence)[0]

    def quantile_9999(self, sequence: int) -> float:
        """Exact .9999 quantile of abs(x) over all n values of one sequence: the ceil(.9999 n)-th smallest."""
        return self._ranked(sequence)[1]

    def _ranked(self, sequence: int) -> tuple[float, float]:
        if sequence not in self._ranks:
            values = self.values(sequence)
            n = values.numel()
            ranks = ((n + 1) // 2, n // 2 + 1, -(-9999 * n // 10000))
            lower, upper, quantile = select_ranks(values, self.magnitude_counts(sequence), ranks)
            self._ranks[sequence] = (lower + upper) / 2, quantile
        return self._ranks[sequence]

    def mean_abs(self, sequence: int) -> float:
        """Mean of abs(x) over all values of one sequence."""
        if sequence not in self._means:
            values = self.values(sequence).abs_()
            if float(self.digest.inf_norms[sequence]) > 1e30:
                values = values.double()  # a float32 sum of such values may overflow
            self._means[sequence] = float(values.mean(1).double().mean())
        return self._means[sequence]
