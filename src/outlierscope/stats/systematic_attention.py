"""SystematicAttention: keys that receive a large share of all attention, by the rule of An et al. 2025."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outlierscope.stats.positions import BUCKETS, position_bucket
from outlierscope.stats.sinks import LEAST_QUERIES, LEAST_SHARE
from outlierscope.stats.sparse_sums import SparseSums
from outlierscope.stats.stat import Stat
from outlierscope.stats.tensor_state import added, load_fields, merge_fields, save_fields

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation

PLAIN = (
    "sequences",
    "short",
    "with_any",
    "with_any_normalised",
    "count",
    "count_normalised",
    "positions",
    "mass",
)


@dataclass
class SystematicAttention(Stat["AttentionObservation"]):
    """Keys k with c_k = sum_i mean_h A[h, i, k] >= ratio * T, per sequence; dear. An et al. 2025, section 3.

    T is the number of queries i.

    Beside it the normalised form: the same with alpha_k = c_k over the number of queries that can see k,
    against ``ratio`` itself, for keys that enough queries can see (as in ``SinkRates``).

    Attributes:
        ratio: share of the queries' attention.
        shortest: sequences with fewer queries or keys are not judged: uniform attention alone reaches 0.1 T when
            T <= 10, and ordinary models do at 64 tokens.
        sequences: sequences judged.
        short: sequences not judged.
        with_any: sequences with at least one key of at least ``ratio``.
        with_any_normalised: the same in the normalised form.
        count: keys of at least ``ratio``.
        count_normalised: the same in the normalised form.
        positions: [BUCKETS] int64 keys of at least ``ratio`` by bucket of their position.
        mass: [H] float64, sum over those keys of each head's share c_k / T.
        pairs: per (token class, token id) the number of keys of at least ``ratio``, with the sums of c_k / T, of
            alpha_k and of how many of them are also above it in the normalised form.
    """

    ratio: float = 0.1
    shortest: int = 256
    sequences: int = 0
    short: int = 0
    with_any: int = 0
    with_any_normalised: int = 0
    count: int = 0
    count_normalised: int = 0
    positions: Tensor = field(default_factory=lambda: torch.zeros(BUCKETS, dtype=torch.int64))
    mass: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    pairs: SparseSums = field(default_factory=lambda: SparseSums.empty(2, 3))

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``systematic_attention_0.1`` for a ratio of 0.1, with the least length where it is not 256."""
        suffix = "" if self.shortest == 256 else f"_{self.shortest}"
        return f"systematic_attention_{self.ratio:g}{suffix}"

    def fresh(self) -> SystematicAttention:
        """An empty one with the same parameters."""
        return SystematicAttention(self.ratio, self.shortest)

    def update(self, seen: AttentionObservation) -> None:
        """Take in one layer's attention of one batch."""
        found = SparseSums.empty(2, 3)
        for sequence in range(len(seen.real)):
            rows = seen.batch.rows(sequence)
            queries = int(seen.query_real[sequence].sum())
            least = min(queries, rows.stop - rows.start)
            if not least or not bool(seen.finite[sequence]):
                continue
            if least < self.shortest:
                self.short += 1
                continue
            self.sequences += 1
            share, alpha, above, normalised = judged_keys(seen, sequence, self.ratio)
            self.with_any += bool(above.any())
            self.with_any_normalised += bool(normalised.any())
            self.count += int(above.sum())
            self.count_normalised += int(normalised.sum())
            key = above.nonzero().flatten()
            self.positions = self.positions + torch.bincount(position_bucket(key), minlength=BUCKETS)
            by_head = seen.received[sequence, :, rows].double()[:, key].sum(1) / queries
            self.mass = added(self.mass, by_head)
            classes = seen.batch.classes.cpu()[sequence, rows].long()[key]
            tokens = seen.batch.token_ids.cpu()[sequence, rows][key]
            sums = torch.stack([share[key], alpha[key], normalised[key].double()], 1)
            ones = torch.ones(len(key), dtype=torch.int64)
            found = found.plus(SparseSums(torch.stack([classes, tokens], 1), ones, sums))
        self.pairs = self.pairs.plus(found)

    def merge(self, other: SystematicAttention) -> None:
        """Take in what another one of the same parameters has seen."""
        merge_fields(self, other, PLAIN)
        self.pairs = self.pairs.plus(other.pairs)

    def state(self) -> dict[str, Tensor]:
        """The fields as named tensors."""
        return save_fields(self, PLAIN) | self.pairs.state("pair")

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        load_fields(self, PLAIN, state)
        self.pairs = SparseSums.of_state("pair", state)


def judged_keys(
    seen: AttentionObservation, sequence: int, ratio: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a sequence's keys, each [T_real]: c_k / T, alpha_k, and which are above ``ratio`` in either form."""
    rows = seen.batch.rows(sequence)
    received = seen.received[sequence, :, rows].double().mean(0)
    seen_by = seen.seen_by[sequence, rows]
    share = received / int(seen.query_real[sequence].sum())
    alpha = received / seen_by.clamp_min(1)
    visible = seen_by >= max(LEAST_QUERIES, LEAST_SHARE * int(seen_by.max()))
    return share, alpha, share >= ratio, (alpha >= ratio) & visible
