"""Rows from located events: by dim, or by dim and token."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of, head_of_same_index
from outlierscope.criteria.located import class_name, sampling
from outlierscope.stats.positions import bucket_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.model.sites import Site
    from outlierscope.stats.events import Events
    from outlierscope.stats.pairs import Pairs

TOP_TOKENS = 10
"""Tokens listed with their counts in a row that stands for several."""

TOP_POSITIONS = 10
"""Buckets listed of a site's histogram of positions."""

DELIMITERS = ("strong_delimiter", "special")
"""Classes counted in ``delimiter_share``: Bondarenko et al. 2023 count [SEP], "." and ","."""


@dataclass(frozen=True)
class PairRow:
    """One row of ``Pairs`` as plain numbers."""

    dim: int
    token_id: int
    count: int
    carried: int
    value: float
    score: float
    sequence: int
    position: int


def dim_bounds(pairs: Pairs) -> list[tuple[int, int]]:
    """First and one past the last row of each dim (rows are sorted by dim)."""
    if not len(pairs):
        return []
    counts = torch.bincount(pairs.dim)
    stops = counts[counts > 0].cumsum(0).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def pair_row(pairs: Pairs, index: int) -> PairRow:
    """One row as plain numbers."""
    return PairRow(*(getattr(pairs, item.name)[index].item() for item in fields(PairRow)))


@dataclass(frozen=True)
class EventSite:
    """The events of one criterion at one site, and what all rows from there share.

    Attributes:
        criterion: name of the criterion.
        kind: its kind.
        threshold: what ``score`` is compared with.
        rule: its thresholds and scope; sampling is added.
        evidence: the scan.
        site: where.
        events: the located events.
    """

    criterion: str
    kind: Kind
    threshold: float
    rule: dict[str, Any]
    evidence: Evidence
    site: Site
    events: Events

    def by_dim(self) -> Iterator[Finding]:
        """One row per dim, placed at its value of largest magnitude."""
        by_dim = self.events.by_dim.tolist()
        common = self._common()
        pairs = self.events.pairs
        order = np.lexsort((pairs.position.numpy(), pairs.sequence.numpy(), -pairs.value.abs().numpy()))
        rank = np.empty_like(order)  # of every row, the strongest first
        rank[order] = np.arange(len(order))
        for start, stop in dim_bounds(pairs):
            strongest = pair_row(pairs, start + int(rank[start:stop].argmin()))
            finding = self._finding(strongest, by_dim[strongest.dim], common)
            finding.extra["top_tokens"] = self._top_tokens(pairs, start, stop)
            yield finding

    def by_dim_and_token(self) -> Iterator[Finding]:
        """One row per dim and token id."""
        common = self._common()
        for index in range(len(self.events.pairs)):
            row = pair_row(self.events.pairs, index)
            finding = self._finding(row, row.count, common)
            finding.extra["carried"] = row.carried
            yield finding

    def _common(self) -> dict[str, Any]:
        names = bucket_names()
        buckets = self.events.positions
        order = buckets.argsort(descending=True, stable=True)[:TOP_POSITIONS].tolist()
        return {
            "module": self.evidence.module(self.site),
            "rule": {**self.rule, **sampling(self.evidence, dear=self.events.dear)},
            "positions": {names[index]: int(buckets[index]) for index in order if buckets[index]},
            "classes": self.events.by_dim_class.tolist(),
            "sequences_by_dim": self.events.sequences_by_dim.tolist(),
            "token_share": self.events.tokens_with_any / max(self.events.tokens, 1),
        }

    def _finding(self, row: PairRow, count: int, common: dict[str, Any]) -> Finding:
        evidence, site, events = self.evidence, self.site, self.events
        classes = {
            class_name(evidence, index): number
            for index, number in enumerate(common["classes"][row.dim])
            if number
        }
        total = sum(classes.values())
        return Finding(
            self.criterion,
            self.kind,
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=common["module"],
            dim=row.dim,
            head=head_of(evidence, site, row.dim),
            position=row.position,
            token_id=row.token_id if row.token_id >= 0 else None,
            token=evidence.token_text(row.token_id),
            sequence=row.sequence,
            value=row.value,
            score=row.score,
            threshold=self.threshold,
            count=count,
            share_tokens=count / max(events.tokens, 1),
            share_sequences=common["sequences_by_dim"][row.dim] / max(events.sequences, 1),
            token_class=self._class_of(row, classes),
            rule=common["rule"],
            extra={
                "classes_of_dim": classes,
                "delimiter_share": sum(classes.get(name, 0) for name in DELIMITERS) / total
                if total
                else None,
                "site_positions": common["positions"],
                "site_token_share": common["token_share"],
                "head_of_same_index": head_of_same_index(evidence, site, row.dim, len(events.by_dim)),
            },
        )

    def _class_of(self, row: PairRow, classes: dict[str, int]) -> str | None:
        """Class of the row's event where the statistics tell it; pairs do not keep it themselves."""
        if len(classes) == 1:
            return next(iter(classes))
        if row.position == 0 and "initial" in classes:
            return "initial"
        extremes = self.evidence.stat(self.site, "extremes")
        if extremes is None:
            return None
        here = (extremes.sequence[:, row.dim] == row.sequence) & (
            extremes.position[:, row.dim] == row.position
        )  # [C]
        found = here.nonzero().flatten().tolist()
        return class_name(self.evidence, found[0]) if found else None

    def _top_tokens(self, pairs: Pairs, start: int, stop: int) -> list[dict[str, Any]]:
        """The most frequent tokens of one dim; the smaller id first where counts are equal."""
        order = pairs.count[start:stop].argsort(descending=True, stable=True)[:TOP_TOKENS].tolist()
        rows = [pair_row(pairs, start + index) for index in order]
        return [
            {
                "token_id": row.token_id,
                "token": self.evidence.token_text(row.token_id),
                "count": row.count,
                "value": row.value,
            }
            for row in rows
        ]
