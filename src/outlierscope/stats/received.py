"""ReceivedMass: how much attention keys receive, by position and by token, in both normalisations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outlierscope.stats.positions import BUCKETS, position_bucket
from outlierscope.stats.sparse_sums import SparseSums
from outlierscope.stats.stat import Stat
from outlierscope.stats.tensor_state import added, load_fields, merge_fields, save_fields

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation

PLAIN = ("sequences", "keys", "raw", "alpha")


@dataclass
class ReceivedMass(Stat["AttentionObservation"]):
    """Received attention of one layer; dear. Sequences with non-finite values are left out.

    With A the pattern of a head, ``raw`` is c_k = sum_i A[i, k] (An et al. 2025) and ``alpha`` is c_k over
    how many queries can see k (Gu et al. 2024, section 3).

    Attributes:
        sequences: sequences seen.
        keys: [BUCKETS] int64 keys by bucket of their position (``positions.bucket_names``).
        raw: [H, BUCKETS] sum over keys of c_k.
        alpha: [H, BUCKETS] sum over keys of alpha_k.
        tokens: per token id the number of keys, and the sums of c_k and of alpha_k averaged over heads;
            without positions that have no token.
    """

    sequences: int = 0
    keys: Tensor = field(default_factory=lambda: torch.zeros(BUCKETS, dtype=torch.int64))
    raw: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    alpha: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    tokens: SparseSums = field(default_factory=lambda: SparseSums.empty(1, 2))

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``received``."""
        return "received"

    def fresh(self) -> ReceivedMass:
        """An empty one with the same parameters."""
        return ReceivedMass()

    def update(self, seen: AttentionObservation) -> None:
        """Take in one layer's attention of one batch."""
        used = seen.real & seen.finite[:, None]  # [B, T]
        self.sequences += int(used.any(1).sum())
        bucket = position_bucket(seen.positions()[used])  # [keys]
        raw = seen.received.double().transpose(1, 2)[used].T  # [H, keys]
        alpha = raw / seen.seen_by[used].clamp_min(1)
        self.keys = self.keys + torch.bincount(bucket, minlength=BUCKETS)
        for name, values in (("raw", raw), ("alpha", alpha)):
            sums = torch.zeros(len(values), BUCKETS, dtype=torch.float64).index_add_(1, bucket, values)
            setattr(self, name, added(getattr(self, name), sums))
        ids = seen.batch.token_ids.cpu()[used]
        known = ids >= 0
        sums = torch.stack([raw.mean(0), alpha.mean(0)], 1)[known]
        counts = torch.ones(len(sums), dtype=torch.int64)
        self.tokens = self.tokens.plus(SparseSums(ids[known, None], counts, sums))

    def merge(self, other: ReceivedMass) -> None:
        """Take in what another one of the same parameters has seen."""
        merge_fields(self, other, PLAIN)
        self.tokens = self.tokens.plus(other.tokens)

    def state(self) -> dict[str, Tensor]:
        """The fields as named tensors."""
        return save_fields(self, PLAIN) | self.tokens.state("token")

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        load_fields(self, PLAIN, state)
        self.tokens = SparseSums.of_state("token", state)

    def mean_alpha(self) -> Tensor:
        """[H, BUCKETS] mean alpha of the keys in each bucket of positions; NaN in empty ones."""
        return self.alpha / self.keys
