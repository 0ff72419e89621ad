"""SinkRates: in how many sequences each head has an attention sink, and on which keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outlierscope.model.attention.visibility import CORNER
from outlierscope.stats.positions import BUCKETS, position_bucket
from outlierscope.stats.sparse_sums import SparseSums
from outlierscope.stats.stat import Stat
from outlierscope.stats.tensor_state import added, load_fields, merge_fields, save_fields

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation

LEAST_QUERIES = 16
"""A key that fewer queries can see is not judged: the last key of a causal pass is seen by itself alone."""

LEAST_SHARE = 0.5
"""Nor one that fewer than this share of the queries can see that see the most visible key."""

PLAIN = (
    "sequences",
    "whole_windows",
    "short",
    "unseen",
    "with_sink",
    "largest_alpha",
    "alpha",
    "keys",
    "positions",
)


@dataclass
class SinkRates(Stat["AttentionObservation"]):
    """Keys with alpha_k > epsilon, judged per sequence and head; dear. Gu et al. 2024, section 3.

    alpha_k is the received mass of key k over the number of queries that can see it. Causal layers are judged
    on the first ``CORNER`` (64) real tokens of each sequence, which is what a pass over these alone would
    give; shorter sequences are not judged. Other layers are judged on whole sequences.

    Keys that hardly any query can see are not judged (``LEAST_QUERIES``, ``LEAST_SHARE``): at the end of a
    causal window keys pass any threshold on some sequences (the last one is seen by one query).

    Attributes:
        epsilons: thresholds, ascending.
        sequences: sequences judged.
        whole_windows: those among them that were judged on all their tokens, in layers that are not causal.
        short: sequences not judged because they have fewer than 64 tokens in a causal layer.
        unseen: sequences not judged because no key is visible to enough queries.
        with_sink: [E, H] int64 sequences with at least one key above the threshold.
        largest_alpha: [H] float64 sum over sequences of the largest alpha.
        alpha: [H, BUCKETS] float64 sum of alpha over judged keys by bucket of their position.
        keys: [BUCKETS] int64 judged keys.
        positions: [E, H, BUCKETS] int64 keys above the threshold.
        pairs: per (epsilon index, head, token class, token id) the number of keys above the threshold, with
            the sums of their alpha and of their value drain (norm(v_k) over the sequence's median; NaN where
            values are not at hand); token id -1 where positions have no token.
    """

    epsilons: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    sequences: int = 0
    whole_windows: int = 0
    short: int = 0
    unseen: int = 0
    with_sink: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    largest_alpha: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    alpha: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    keys: Tensor = field(default_factory=lambda: torch.zeros(BUCKETS, dtype=torch.int64))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    pairs: SparseSums = field(default_factory=lambda: SparseSums.empty(4, 2))

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``sinks_64``, followed by the thresholds where they are not the usual ones."""
        if self.epsilons == (0.1, 0.2, 0.3, 0.4, 0.5):
            return f"sinks_{CORNER}"
        return f"sinks_{CORNER}_" + "_".join(f"{epsilon:g}" for epsilon in self.epsilons)

    def fresh(self) -> SinkRates:
        """An empty one with the same parameters."""
        return SinkRates(self.epsilons)

    def update(self, seen: AttentionObservation) -> None:
        """Take in one layer's attention of one batch."""
        found = SparseSums.empty(4, 2)
        for sequence in range(len(seen.real)):
            if (
                bool(seen.finite[sequence])
                and bool(seen.real[sequence].any())
                and bool(seen.query_real[sequence].any())
            ):
                found = found.plus(self._judge(seen, sequence))
        self.pairs = self.pairs.plus(found)

    def _judge(self, seen: AttentionObservation, sequence: int) -> SparseSums:
        """Count one sequence; its sinks by threshold, head, token class and token id."""
        nothing = SparseSums.empty(4, 2)
        judged = judged_alpha(seen, sequence)
        if judged is None:
            self.short += 1
            return nothing
        alpha, visible = judged  # [H, K], [K]
        if not bool(visible.any()):
            self.unseen += 1
            return nothing
        self.sequences += 1
        self.whole_windows += not seen.causal
        heads, length = alpha.shape
        bucket = position_bucket(torch.arange(length))  # [K]
        alpha = alpha * visible
        above = alpha > torch.tensor(self.epsilons, dtype=torch.float64)[:, None, None]  # [E, H, K]
        self.keys = self.keys + torch.bincount(bucket[visible], minlength=BUCKETS)
        self.with_sink = added(self.with_sink, above.any(2).long())
        self.largest_alpha = added(self.largest_alpha, alpha.amax(1))
        by_bucket = torch.zeros(heads, BUCKETS, dtype=torch.float64).index_add_(1, bucket, alpha)
        self.alpha = added(self.alpha, by_bucket)
        positions = torch.zeros(len(above), heads, BUCKETS, dtype=torch.int64)
        self.positions = added(self.positions, positions.index_add_(2, bucket, above.long()))
        epsilon, head, key = above.nonzero(as_tuple=True)
        if not len(key):
            return nothing
        place = seen.batch.rows(sequence).start + key
        classes = seen.batch.classes.cpu()[sequence, place].long()
        tokens = seen.batch.token_ids.cpu()[sequence, place]
        ratios = seen.value_ratios(sequence)  # [H, T_real] or None
        drain = torch.full_like(alpha[head, key], torch.nan) if ratios is None else ratios[head, key]
        rows = torch.stack([epsilon, head, classes, tokens], 1)
        sums = torch.stack([alpha[head, key], drain], 1)
        return SparseSums(rows, torch.ones(len(rows), dtype=torch.int64), sums)

    def merge(self, other: SinkRates) -> None:
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

    def share(self, epsilon: float) -> Tensor:
        """[H] share of the judged sequences with a key above ``epsilon`` (one of ``epsilons``)."""
        return self.with_sink[self.epsilons.index(epsilon)].double() / self.sequences

    def mean_alpha(self) -> Tensor:
        """[H, BUCKETS] mean alpha of the judged keys in each bucket of positions; NaN in empty ones."""
        return self.alpha / self.keys


def judged_alpha(seen: AttentionObservation, sequence: int) -> tuple[Tensor, Tensor] | None:
    """alpha [H, K] float64 of a sequence's keys and which of them [K] enough queries can see.

    K is the corner in causal layers, all real tokens in others; ``None`` when a causal sequence is shorter.
    """
    rows = seen.batch.rows(sequence)
    length = rows.stop - rows.start
    if seen.corner_received is not None and seen.corner_seen_by is not None:
        if length < CORNER:
            return None
        received, seen_by = seen.corner_received[sequence], seen.corner_seen_by[sequence]
    else:
        received, seen_by = seen.received[sequence, :, rows], seen.seen_by[sequence, rows]
    alpha = received.double() / seen_by.clamp_min(1)
    return alpha, seen_by >= max(LEAST_QUERIES, LEAST_SHARE * int(seen_by.max()))
