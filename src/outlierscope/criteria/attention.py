"""systematic_attention and sink: keys on which attention piles up, and the heads that give it to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.located import class_name, sampling
from outlierscope.model.attention.visibility import CORNER
from outlierscope.model.sites import PATTERNS
from outlierscope.stats import systematic_attention
from outlierscope.stats.attention_flags import AttentionFlags
from outlierscope.stats.positions import EXACT, bucket_names
from outlierscope.stats.received import ReceivedMass
from outlierscope.stats.sinks import LEAST_QUERIES, LEAST_SHARE, SinkRates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.model.sites import Site


@dataclass(frozen=True)
class SystematicAttention:
    """Keys that receive at least 0.1 T of the attention of T queries, averaged over heads.

    Source: An et al. 2025, "Systematic Outliers", section 3: key k is an outlier if
    c_k = sum over queries of the head-mean attention to k is at least 0.1 * T. The source's T is 4096; short
    sequences pass it without any sink, so that at least 256 tokens are asked for. c_k is not normalised by
    how many queries can see k; ``extra["normalised"]`` has the form that is, alpha_k >= 0.1.

    Row key: stack, layer, token id and class. ``score`` is the mean of c_k / T over the keys that pass,
    ``value`` the mean of alpha_k, ``head`` the one that gives those of the layer most, ``share_sequences``
    the layer's share of sequences with any such key.
    """

    name: ClassVar[str] = "systematic_attention"
    kind: ClassVar[Kind] = "attention"
    source: ClassVar[str] = "An et al. 2025, section 3"

    ratio: float = 0.1
    shortest: int = 256

    def requires(self) -> Iterable[Requirement]:
        """The keys that pass, all received mass, and the joint flags of the first sequences."""
        return (
            Requirement(PATTERNS, self._stat),
            Requirement(PATTERNS, ReceivedMass),
            Requirement(PATTERNS, lambda: AttentionFlags(self.ratio, self.shortest)),
        )

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest c_k / T first; ``NotApplied`` when no sequence is long enough."""
        name = self._stat().name
        stats = {
            site: stat
            for site in evidence.anatomy.sites(*PATTERNS)
            if (stat := evidence.stat(site, name)) is not None
        }
        judged = {site: stat for site, stat in stats.items() if stat.sequences}
        if stats and not judged:
            longest = evidence.corpus.longest
            reason = f"not enough data: sequences of {longest} tokens at most, {self.shortest} needed"
            return [NotApplied(self.name, reason)]
        rows = [row for site, stat in judged.items() for row in self._rows(evidence, site, stat)]
        return sorted(rows, key=lambda row: -(row.score or 0.0))

    def _stat(self) -> systematic_attention.SystematicAttention:
        return systematic_attention.SystematicAttention(self.ratio, self.shortest)

    def _rows(
        self, evidence: Evidence, site: Site, stat: systematic_attention.SystematicAttention
    ) -> Iterator[Finding]:
        for index in range(len(stat.pairs)):
            kind, token_id = stat.pairs.keys[index].tolist()
            count = int(stat.pairs.counts[index])
            share, alpha, normalised = (stat.pairs.sums[index] / count).tolist()
            token_class = class_name(evidence, kind)
            yield Finding(
                self.name,
                self.kind,
                stack=site.stack,
                layer=site.layer,
                site=site.name,
                module=evidence.module(site),
                head=int(stat.mass.argmax()),
                position=0 if token_class in ("initial", "cls") else None,
                token_id=token_id if token_id >= 0 else None,
                token=evidence.token_text(token_id),
                token_class=token_class,
                value=alpha,
                score=share,
                threshold=self.ratio,
                count=count,
                share_sequences=stat.with_any / stat.sequences,
                rule={
                    "ratio": self.ratio,
                    "shortest": self.shortest,
                    "scope": "head-mean attention that a key receives, over the number of queries",
                    "judged_sequences": stat.sequences,
                    "too_short": stat.short,
                    **sampling(evidence, dear=True),
                },
                extra={
                    "normalised": {
                        "share_of_keys": normalised,
                        "keys_in_layer": stat.count_normalised,
                        "share_sequences": stat.with_any_normalised / stat.sequences,
                    },
                    "by_head": (stat.mass / stat.count).tolist(),
                    "positions": bucket_counts(stat.positions),
                },
            )


@dataclass(frozen=True)
class Sink:
    """Heads that give some key more than 0.3 of the attention of each query that can see it.

    Source: Gu et al. 2024, "When Attention Sink Emerges in Language Models", section 3: alpha_k is the mean
    over the queries that can see key k of their attention to it, with T = 64 tokens; k is a sink of a head
    when alpha_k > 0.3. Published shares of (layer, head) with a sink on the first token: 18.18 % for a LLaMA
    of 60 M parameters, 45.11 % for one of 1 B.

    Ours: a head is reported when at least half of the sequences, each judged on its own, have such a key.
    Causal layers are judged on the first 64 tokens of every sequence, which is the same as a pass over 64;
    other layers on whole sequences, which ``rule["scope"]`` says. Keys that fewer than 16 queries, or fewer
    than half as many as see the most visible key, can see are not judged: near the end of a causal window any
    key passes.

    Row key: stack, layer, head. ``score`` is the share of sequences, ``value`` the mean alpha of the keys
    that pass; the token is the most frequent one among them.
    """

    name: ClassVar[str] = "sink"
    kind: ClassVar[Kind] = "attention"
    source: ClassVar[str] = "Gu et al. 2024, section 3"

    epsilon: float = 0.3
    sequence_share: float = 0.5
    least_sequences: int = 8

    def requires(self) -> Iterable[Requirement]:
        """Sink rates at the usual thresholds and at this one."""
        return (Requirement(PATTERNS, self.stat),)

    def stat(self) -> SinkRates:
        """An empty Stat that counts at ``epsilon``."""
        return SinkRates(tuple(sorted({*SinkRates().epsilons, self.epsilon})))

    def judged(self, evidence: Evidence) -> dict[Site, SinkRates]:
        """Sink rates of the layers with enough sequences."""
        name = self.stat().name
        found = {site: evidence.stat(site, name) for site in evidence.anatomy.sites(*PATTERNS)}
        return {
            site: stat
            for site, stat in found.items()
            if stat is not None and stat.sequences >= self.least_sequences
        }

    def not_judged(self, evidence: Evidence) -> str | None:
        """Why no layer at all was judged; ``None`` when some was, or none was measured."""
        name = self.stat().name
        stats = [
            stat
            for site in evidence.anatomy.sites(*PATTERNS)
            if (stat := evidence.stat(site, name)) is not None
        ]
        if not stats or self.judged(evidence):
            return None
        most = max(stat.sequences for stat in stats)
        short = max(stat.short for stat in stats)
        judged = "1 sequence" if most == 1 else f"{most} sequences"
        reason = f"not enough data: {judged} judged, {self.least_sequences} needed"
        return f"{reason}; {short} have fewer than {CORNER} tokens" if short else reason

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest share of sequences first, then the largest alpha."""
        reason = self.not_judged(evidence)
        if reason is not None:
            return [NotApplied(self.name, reason)]
        rows = [
            self._row(evidence, site, stat, head)
            for site, stat in self.judged(evidence).items()
            for head in self.sink_heads(stat)
        ]
        return sorted(rows, key=lambda row: (-(row.score or 0.0), -(row.value or 0.0)))

    def sink_heads(self, stat: SinkRates) -> list[int]:
        """Heads of a layer with a sink in enough sequences."""
        return (stat.share(self.epsilon) >= self.sequence_share).nonzero().flatten().tolist()

    def _row(self, evidence: Evidence, site: Site, stat: SinkRates, head: int) -> Finding:
        place = stat.epsilons.index(self.epsilon)
        of_head = (stat.pairs.keys[:, 0] == place) & (stat.pairs.keys[:, 1] == head)
        counts, sums = stat.pairs.counts[of_head], stat.pairs.sums[of_head]
        most = int(counts.argmax())
        kind, token_id = stat.pairs.keys[of_head][most, 2:].tolist()
        positions = stat.positions[place, head]  # [BUCKETS]
        bucket = int(positions.argmax())
        count = int(counts.sum())
        if stat.whole_windows == stat.sequences:
            scope = "whole sequences, every query sees every key (the source: inputs of 64 tokens)"
        else:
            scope = f"the first {CORNER} tokens of each sequence"
        return Finding(
            self.name,
            self.kind,
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=evidence.module(site),
            head=head,
            position=bucket if bucket < EXACT else None,
            token_id=token_id if token_id >= 0 else None,
            token=evidence.token_text(token_id),
            token_class=class_name(evidence, kind),
            value=float(sums[:, 0].sum()) / count,
            score=float(stat.share(self.epsilon)[head]),
            threshold=self.sequence_share,
            count=count,
            share_sequences=float(stat.share(self.epsilon)[head]),
            rule={
                "epsilon": self.epsilon,
                "sequence_share": self.sequence_share,
                "least_sequences": self.least_sequences,
                "least_queries": LEAST_QUERIES,
                "least_share_of_queries": LEAST_SHARE,
                "scope": scope,
                "judged_sequences": stat.sequences,
                "too_short": stat.short,
                **sampling(evidence, dear=True),
            },
            extra={
                "share_of_keys_with_this_token": int(counts[most]) / count,
                "mean_largest_alpha": float(stat.largest_alpha[head]) / stat.sequences,
                "share_by_epsilon": {
                    f"{epsilon:g}": float(stat.share(epsilon)[head]) for epsilon in stat.epsilons
                },
                "positions": bucket_counts(positions),
            },
        )


def bucket_counts(counts: Tensor) -> dict[str, int]:
    """Buckets of positions that are not empty, by name.

    >>> import torch
    >>> bucket_counts(torch.tensor([2, 0, 1]))
    {'0': 2, '2': 1}
    """
    names = bucket_names()
    return {names[index]: int(counts[index]) for index in counts.nonzero().flatten().tolist()}
