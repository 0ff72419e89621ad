"""Observation: one site's tensor while it passes, with its digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from outlierscope.stats.digest import Digest, digest_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.sites import Site


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

    @cached_property
    def digest(self) -> Digest:
        """What is computed once for all Stats of this site and batch."""
        return digest_tensor(self.tensor, self.batch)

    def values(self, sequence: int) -> Tensor:
        """[T_used, d] float32: the real, finite rows of one sequence (``digest.rows[sequence]``)."""
        return self.digest.values(self.tensor, sequence)
