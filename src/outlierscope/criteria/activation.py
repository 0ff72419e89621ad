"""Activation outliers from located events: six_sigma, massive, systematic_activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.event_rows import EventSite
from outlierscope.criteria.located import width
from outlierscope.stats import rules
from outlierscope.stats.events import Events
from outlierscope.stats.flags import Flags
from outlierscope.stats.magnitudes import TopMagnitudes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from outlierscope.criteria.criterion import Criterion, Evidence
    from outlierscope.criteria.finding import Finding, Kind
    from outlierscope.model.sites import Site


@dataclass(frozen=True)
class SixSigma:
    """Values further than 6 standard deviations from the mean of their tensor.

    Source: Bondarenko, Nagel and Blankevoort 2023, "Quantizable Transformers", section 3, on the outputs of
    the feed-forward layers; ``resid_post`` is added. Mean and unbiased std are over all values [T, d] of one
    sequence: the source leaves the scope open.

    Row key: stack, layer, site, dim. The row is placed at the dim's value of largest magnitude; ``score`` is
    how many std that one is off, ``count`` all events of the dim, ``extra["top_tokens"]`` the tokens by count
    and ``extra["layers_of_dim"]`` the layers at whose same site the dim has events, by count.
    """

    name: ClassVar[str] = "six_sigma"
    kind: ClassVar[Kind] = "activation"
    source: ClassVar[str] = "Bondarenko et al. 2023, section 3"
    sites: ClassVar[tuple[str, ...]] = ("mlp_out", "resid_post")

    sigma: float = 6.0

    @property
    def _rule(self) -> rules.SixSigma:
        return rules.SixSigma(self.sigma)

    def requires(self) -> Iterable[Requirement]:
        """Events of the rule."""
        return (Requirement(self.sites, lambda: Events(self._rule)),)

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows, the furthest first."""

        def too_short(values: int) -> str | None:
            # No value of n can be more than (n - 1) / sqrt(n) unbiased standard deviations from their mean.
            if values - 1 > self.sigma * math.sqrt(values):
                return None
            return f"{values} values in the longest sequence cannot hold one {self.sigma:g} std from the mean"

        def rows(place: Site, events: Events) -> Iterator[Finding]:
            rule = {"sigma": self.sigma, "scope": "mean and std over [T, d] of each sequence"}
            return EventSite(self.name, self.kind, self.sigma, rule, evidence, place, events).by_dim()

        return _collect(self, evidence, self._rule.name, too_short, rows)


@dataclass(frozen=True)
class Massive:
    """Values above 100 and above 1000 times the median magnitude of their tensor.

    Source: Sun et al. 2024, "Massive Activations in Large Language Models", section 2. Medians grow with
    depth, so the rule can let go at the very peak: a coordinate once flagged stays flagged while it is above
    ``absolute`` and above ``keep`` times its value at the layer that flagged it (ours).

    Row key: stack, layer, site, dim, token id. ``score`` is the ratio to the median at the strongest event,
    ``count`` the events of that token in that dim; ``extra["carried"]`` of them rest on the memory of earlier
    layers, and ``extra["all_carried"]`` says that all do. ``share_sequences`` is that of the dim, whatever
    the token. Judged on the sampled batches: medians are dear.
    """

    name: ClassVar[str] = "massive"
    kind: ClassVar[Kind] = "activation"
    source: ClassVar[str] = "Sun et al. 2024, section 2"
    sites: ClassVar[tuple[str, ...]] = ("resid_post",)

    absolute: float = 100.0
    ratio: float = 1000.0
    keep: float = 0.5
    least_values: int = 1000

    @property
    def _rule(self) -> rules.Massive:
        return rules.Massive(self.absolute, self.ratio, self.keep)

    def requires(self) -> Iterable[Requirement]:
        """Events of the rule, and where they are in the first sequences, for what occurs together."""
        return (
            Requirement(self.sites, lambda: Events(self._rule)),
            Requirement(self.sites, lambda: Flags(self._rule)),
        )

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows, the largest ratio first."""

        def too_short(values: int) -> str | None:
            if values >= self.least_values:
                return None
            return f"a median of {values} values in the longest sequence, {self.least_values} needed"

        def rows(place: Site, events: Events) -> Iterator[Finding]:
            rule = {
                "absolute": self.absolute,
                "ratio": self.ratio,
                "keep": self.keep,
                "scope": "median of abs over [T, d] of each sequence",
            }
            at = EventSite(self.name, self.kind, self.ratio, rule, evidence, place, events)
            for finding in at.by_dim_and_token():
                finding.extra["all_carried"] = finding.extra["carried"] == finding.count
                yield finding

        return _collect(self, evidence, self._rule.name, too_short, rows)


@dataclass(frozen=True)
class SystematicActivation:
    """Tokens whose largest magnitude is above 1000 times the mean magnitude of their tensor.

    Source: An et al. 2025, "Systematic Outliers in Large Language Models", section 3: hidden states of the
    residual stream, and the inputs of the down projections. One event per token, at its dim of largest
    magnitude.

    Row key: stack, layer, site, dim. ``score`` is the ratio at the strongest event. ``extra`` also holds the
    means over sequences of that site's three largest magnitudes and of its median, as the source prints them.
    """

    name: ClassVar[str] = "systematic_activation"
    kind: ClassVar[Kind] = "activation"
    source: ClassVar[str] = "An et al. 2025, section 3"
    sites: ClassVar[tuple[str, ...]] = ("resid_post", "mlp_post")

    ratio: float = 1000.0

    @property
    def _rule(self) -> rules.Systematic:
        return rules.Systematic(self.ratio)

    def requires(self) -> Iterable[Requirement]:
        """Events of the rule, where they are in the first sequences, and the top magnitudes to print with them."""
        return (
            Requirement(self.sites, lambda: Events(self._rule)),
            Requirement(self.sites, lambda: Flags(self._rule)),
            Requirement(self.sites, TopMagnitudes),
        )

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows, the largest ratio first."""

        def too_short(values: int) -> str | None:
            # max / mean of n magnitudes is at most n: near that bound the rule says nothing but "one value".
            if values > self.ratio:
                return None
            return (
                f"largest over mean is at most {values} for the longest sequence, {self.ratio:g} is asked for"
            )

        def rows(place: Site, events: Events) -> Iterator[Finding]:
            rule = {"ratio": self.ratio, "scope": "mean of abs over [T, d] of each sequence"}
            at = EventSite(self.name, self.kind, self.ratio, rule, evidence, place, events)
            figures = top_figures(evidence, place)
            for finding in at.by_dim():
                finding.extra |= figures
                yield finding

        return _collect(self, evidence, self._rule.name, too_short, rows)


def top_figures(evidence: Evidence, site: Site) -> dict[str, Any]:
    """Means over sequences of top-3 magnitudes and median of magnitudes; empty where not measured."""
    stat = evidence.stat(site, "top_magnitudes")
    if stat is None or not int(stat.count):
        return {}
    return {
        "top_3": [stat.mean_of(figure) for figure in ("top_1", "top_2", "top_3")],
        "median": stat.mean_of("median"),
        "top_sequences": int(stat.count),
    }


def _collect(
    criterion: Criterion,
    evidence: Evidence,
    stat_name: str,
    too_short: Callable[[int], str | None],
    rows: Callable[[Site, Events], Iterator[Finding]],
) -> list[Finding | NotApplied]:
    """The rows of all sites, highest score first, then what could not be judged, once per reason."""
    found: list[Finding] = []
    refused: dict[str, NotApplied] = {}
    sites = [name for requirement in criterion.requires() for name in requirement.sites]
    for site in evidence.anatomy.sites(*dict.fromkeys(sites)):
        events = evidence.stat(site, stat_name)
        dims = width(evidence, site)
        if events is None or dims is None:
            continue
        reason = too_short(dims * evidence.corpus.longest)
        if reason is not None:
            refused[reason] = NotApplied(criterion.name, f"not enough data: {reason}")
            continue
        found += rows(site, events)
    _note_layers(found)
    return [*sorted(found, key=lambda finding: -(finding.score or 0.0)), *refused.values()]


def _note_layers(found: list[Finding]) -> None:
    """Give every row the layers at whose same site the same dim has events, by count."""
    layers: dict[tuple[str | None, str | None, int | None], dict[str, int]] = {}
    for finding in found:
        by_layer = layers.setdefault((finding.stack, finding.site, finding.dim), {})
        by_layer[str(finding.layer)] = by_layer.get(str(finding.layer), 0) + (finding.count or 0)
        finding.extra["layers_of_dim"] = by_layer
