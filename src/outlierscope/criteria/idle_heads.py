"""no_op_head and value_drain: heads that attend to tokens with little to give, and so write little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlierscope.criteria.attention import Sink
from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.located import class_name, sampling
from outlierscope.model.attention.observation import low_information
from outlierscope.model.sites import PATTERNS
from outlierscope.stats.heads import Heads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.model.sites import Site
    from outlierscope.stats.sinks import SinkRates


@dataclass(frozen=True)
class NoOpHead:
    """Heads that write next to nothing for at least half of the queries.

    Source: Bondarenko et al. 2023, "Quantizable Transformers", section 3: such heads put their mass on
    delimiters and special tokens whose values are small, so that the product of pattern and values is near
    zero. The source gives three figures to look at and no thresholds; these are ours.

    A query is idle when more than ``mass`` of its attention goes to low-information tokens (initial, special,
    strong delimiters; [CLS] and registers of images) and its row of A @ V is shorter than ``quiet`` times the
    mean value vector of the sequence, which is what uniform attention would write. A head is a no-op head
    when at least ``idle_share`` of its queries are idle and values of low-information tokens are no longer on
    average than others' (``value_ratio``); without keys of either kind it is not reported. It is called a soft
    no-update when at least ``almost_all`` of its queries are idle, and a selective update otherwise.

    Row key: stack, layer, head. ``score`` is the share of idle queries, ``value`` the mean mass on
    low-information tokens. The three figures stand in ``extra`` of the reported heads; ``head_figures`` gives
    those of all heads.
    """

    name: ClassVar[str] = "no_op_head"
    kind: ClassVar[Kind] = "attention"
    source: ClassVar[str] = "Bondarenko et al. 2023, section 3; thresholds ours"

    mass: float = 0.5
    quiet: float = 0.5
    idle_share: float = 0.5
    value_ratio: float = 1.0
    almost_all: float = 0.9
    least_queries: int = 1000

    def requires(self) -> Iterable[Requirement]:
        """The figures of every head."""
        return (Requirement(PATTERNS, self._stat),)

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest share of idle queries first; a ``NotApplied`` where it cannot be judged."""
        name = self._stat().name
        measured = [
            (site, stat) for site in evidence.anatomy.sites(*PATTERNS) if (stat := evidence.stat(site, name))
        ]
        if not measured:
            return []
        seen = max(stat.queries for _, stat in measured)
        if seen < self.least_queries:
            queries = "1 query" if seen == 1 else f"{seen} queries"
            return [NotApplied(self.name, f"not enough data: {queries}, {self.least_queries} needed")]
        rows: list[Finding] = []
        without: list[str] = []
        for site, stat in measured:
            if not stat.written_sequences:
                without.append(str(site))
            elif stat.queries >= self.least_queries:
                rows += self._rows(evidence, site, stat)
        rows.sort(key=lambda row: -(row.score or 0.0))
        if without:
            layers = "1 layer" if len(without) == 1 else f"{len(without)} layers"
            reason = f"value vectors were not observed in {layers}, first {without[0]}"
            return [*rows, NotApplied(self.name, reason)]
        return rows

    def _stat(self) -> Heads:
        return Heads(self.mass, self.quiet)

    def _rows(self, evidence: Evidence, site: Site, stat: Heads) -> list[Finding]:
        idle = stat.idle / stat.queries  # [H]
        figures = head_figures(evidence, stat)
        found = []
        for head in (idle >= self.idle_share).nonzero().flatten().tolist():
            ratio = figures[head]["value_norm_ratio"]
            if ratio is None or ratio > self.value_ratio:
                continue
            score = float(idle[head])
            pattern = "soft no-update" if score >= self.almost_all else "selective update"
            classes = stat.class_share()[head]
            low = low_information(evidence.corpus.class_names)
            top = max(low, key=lambda index: float(classes[index]))
            found.append(
                Finding(
                    self.name,
                    self.kind,
                    stack=site.stack,
                    layer=site.layer,
                    site=site.name,
                    module=evidence.module(site),
                    head=head,
                    token_class=class_name(evidence, top),
                    value=figures[head]["low_information_mass"],
                    score=score,
                    threshold=self.idle_share,
                    count=int(stat.idle[head]),
                    share_tokens=score,
                    rule={
                        "mass": self.mass,
                        "quiet": self.quiet,
                        "idle_share": self.idle_share,
                        "value_ratio": self.value_ratio,
                        "almost_all": self.almost_all,
                        "least_queries": self.least_queries,
                        "scope": "queries of sampled sequences",
                        "queries": stat.queries,
                        **sampling(evidence, dear=True),
                    },
                    extra={"pattern": pattern, **figures[head]},
                )
            )
        return found


@dataclass(frozen=True)
class ValueDrain:
    """Sinks whose value vector is short: norm(v_sink) over the sequence's median norm(v) at most 0.5.

    Source: An et al. 2025, section 3, and Sun et al. 2024, section 4: on outlier tokens it is far below 1.
    The threshold is ours. Sink heads and their keys are those of the rule ``sink`` with this criterion's own
    ``epsilon``, ``sequence_share`` and ``least_sequences``: by default the heads that ``sink`` reports; a
    threshold changed there does not change here.

    Row key: stack, layer, head. ``score`` is the mean ratio over all keys of the head above ``epsilon``
    (smaller is stronger), ``value`` their mean alpha. Heads that share a key and value head share its values,
    each with its own sink keys.
    """

    name: ClassVar[str] = "value_drain"
    kind: ClassVar[Kind] = "attention"
    source: ClassVar[str] = "An et al. 2025, section 3; Sun et al. 2024, section 4; threshold ours"

    ratio: float = 0.5
    epsilon: float = 0.3
    sequence_share: float = 0.5
    least_sequences: int = 8

    def requires(self) -> Iterable[Requirement]:
        """What ``sink`` needs."""
        return self._sink().requires()

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the smallest ratio first; ``NotApplied`` where sinks or values cannot be judged."""
        sink = self._sink()
        reason = sink.not_judged(evidence)
        if reason is not None:
            return [NotApplied(self.name, reason)]
        rows: list[Finding] = []
        without: list[str] = []
        for site, stat in sink.judged(evidence).items():
            for head in sink.sink_heads(stat):
                row = self._row(evidence, site, stat, head)
                if row is None:
                    without.append(f"{site} head {head}")
                elif (row.score or 0.0) <= self.ratio:
                    rows.append(row)
        rows.sort(key=lambda row: row.score or 0.0)
        if without:
            heads = "1 sink head" if len(without) == 1 else f"{len(without)} sink heads"
            reason = f"value vectors were not observed for {heads}, first {without[0]}"
            return [*rows, NotApplied(self.name, reason)]
        return rows

    def _sink(self) -> Sink:
        return Sink(self.epsilon, self.sequence_share, self.least_sequences)

    def _row(self, evidence: Evidence, site: Site, stat: SinkRates, head: int) -> Finding | None:
        place = stat.epsilons.index(self.epsilon)
        of_head = (stat.pairs.keys[:, 0] == place) & (stat.pairs.keys[:, 1] == head)
        counts, sums = stat.pairs.counts[of_head], stat.pairs.sums[of_head]
        alpha, ratio = (sums.sum(0) / int(counts.sum())).tolist()
        if ratio != ratio:  # NaN: the layer's values were not at hand
            return None
        kind, token_id = stat.pairs.keys[of_head][int(counts.argmax()), 2:].tolist()
        return Finding(
            self.name,
            self.kind,
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=evidence.module(site),
            head=head,
            token_id=token_id if token_id >= 0 else None,
            token=evidence.token_text(token_id),
            token_class=class_name(evidence, kind),
            value=alpha,
            score=ratio,
            threshold=self.ratio,
            count=int(counts.sum()),
            share_sequences=float(stat.share(self.epsilon)[head]),
            rule={
                "ratio": self.ratio,
                "epsilon": self.epsilon,
                "sequence_share": self.sequence_share,
                "scope": "keys that are sinks of the head, against the median over the sequence's keys",
                "judged_sequences": stat.sequences,
                **sampling(evidence, dear=True),
            },
        )


def head_figures(evidence: Evidence, stat: Heads) -> list[dict[str, Any]]:
    """For every head, reported or not, the figures of Bondarenko et al. 2023; ``None`` without values.

    ``low_information_mass``, ``value_norm_ratio`` (mean norm of v on low-information tokens over that
    elsewhere), ``output_ratio`` (mean norm of the rows of A @ V over that of the mean value vector),
    ``attending_share`` and ``idle_share`` of queries, ``initial_alpha``, ``entropy`` in nats,
    ``normalised_entropy``, ``mass_by_class``.
    """
    names = evidence.corpus.class_names
    low = low_information(names)
    shares = stat.class_share()  # [H, C]
    heads = len(shares)
    values, outputs = stat.value_norm_ratio(low), stat.mean_output_ratio()
    figures = []
    for head in range(heads):
        group = 0 if values is None else head * len(values) // heads
        figures.append(
            {
                "low_information_mass": float(shares[head, low].sum()),
                "value_norm_ratio": None if values is None else float(values[group]),
                "output_ratio": None if outputs is None else float(outputs[head]),
                "attending_share": float(stat.attending[head]) / stat.queries,
                "idle_share": float(stat.idle[head]) / stat.queries if len(stat.idle) else None,
                "initial_alpha": float(stat.mean_initial_alpha()[head]),
                "entropy": float(stat.mean_entropy()[head]),
                "normalised_entropy": float(stat.mean_normalised_entropy()[head]),
                "mass_by_class": dict(zip(names, shares[head].tolist(), strict=False)),
            }
        )
    return figures
