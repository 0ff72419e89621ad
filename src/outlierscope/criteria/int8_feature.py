"""int8_feature: dims of large values in many layers and at many positions, as LLM.int8() looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of
from outlierscope.criteria.located import sampling, strongest
from outlierscope.stats.exceedances import Exceedances
from outlierscope.stats.extremes import Extremes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind
    from outlierscope.model.sites import Site

INDEX_SPACES = (("attn_in", "mlp_in"), ("z",), ("cross_z",), ("mlp_post",))
"""Sites whose dims mean the same thing: the dims of the residual stream, of the heads, of the neurons."""


@dataclass(frozen=True)
class Int8Feature:
    """Dims with magnitudes of at least 6.0 in 25 % of the layers and at 6 % of the positions.

    Source: Dettmers et al. 2022, "LLM.int8()", section 3.1: a feature dim counts when it has a value of
    magnitude 6.0 or more in at least 25 % of the layers, and such values at 6 % or more of the sequence
    positions over all hidden states. Ours: hidden states are the inputs of linear layers; a layer is affected
    when any of its inputs of the same index space is; the share of positions is the mean over all those
    inputs, affected or not.

    Row key: stack, index space (``extra["sites"]``), dim. ``score`` is the share of positions, ``layer`` and
    ``site`` are where most tokens exceed. Dims of ``z``, ``cross_z`` and ``mlp_post`` have no meaning across layers in the
    model itself; the rule is applied by index all the same, and ``extra["layers"]`` names the layers.
    """

    name: ClassVar[str] = "int8_feature"
    kind: ClassVar[Kind] = "activation"
    source: ClassVar[str] = "Dettmers et al. 2022, section 3.1"

    magnitude: float = 6.0
    layer_share: float = 0.25
    position_share: float = 0.06
    least_tokens: int = 100
    least_layers: int = 5

    def requires(self) -> Iterable[Requirement]:
        """Counts of exceedances per dim, and the extreme values themselves."""
        sites = tuple(name for space in INDEX_SPACES for name in space)
        return (
            Requirement(sites, lambda: Exceedances(self.magnitude)),
            Requirement(sites, Extremes),
        )

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest share of positions first; ``NotApplied`` per stack with too little data."""
        if evidence.corpus.tokens < self.least_tokens:
            seen = f"{evidence.corpus.tokens} tokens, {self.least_tokens} needed"
            return [NotApplied(self.name, f"not enough data: {seen}")]
        found: list[Finding] = []
        refused: list[NotApplied] = []
        for stack in evidence.anatomy.stacks.values():
            if len(stack.layers) < self.least_layers:
                # With fewer layers a single one would be the whole share.
                reason = (
                    f"not enough data: {len(stack.layers)} layers in {stack.name}, {self.least_layers} needed"
                )
                refused.append(NotApplied(self.name, reason))
                continue
            for space in INDEX_SPACES:
                found += self._in_space(evidence, stack.name, space)
        return [*sorted(found, key=lambda finding: -(finding.score or 0.0)), *refused]

    def _in_space(self, evidence: Evidence, stack: str, space: tuple[str, ...]) -> list[Finding]:
        by_width: dict[int, dict[Site, Tensor]] = {}
        tokens: dict[Site, int] = {}
        stat_name = Exceedances(self.magnitude).name
        for site in evidence.anatomy.sites(*space):
            stat = evidence.stat(site, stat_name) if site.stack == stack else None
            if stat is not None and int(stat.tokens):
                by_width.setdefault(len(stat.by_dim), {})[site] = stat.by_dim
                tokens[site] = int(stat.tokens)
        found = []
        for counts in by_width.values():
            table = torch.stack(list(counts.values()))  # [sites, d]
            seen = sum(tokens[site] for site in counts)
            layers = sorted({site.layer for site in counts if site.layer is not None})
            affected = torch.stack(
                [
                    torch.stack([by_dim > 0 for site, by_dim in counts.items() if site.layer == layer]).any(0)
                    for layer in layers
                ]
            )  # [layers, d]
            positions = table.sum(0).double() / seen  # [d]
            flagged = (affected.double().mean(0) >= self.layer_share) & (positions >= self.position_share)
            for dim in flagged.nonzero().flatten().tolist():
                rows = {site: int(by_dim[dim]) for site, by_dim in counts.items()}
                found.append(self._finding(evidence, space, dim, rows, tokens, len(layers)))
        return found

    def _finding(
        self,
        evidence: Evidence,
        space: tuple[str, ...],
        dim: int,
        counts: dict[Site, int],
        tokens: dict[Site, int],
        layers: int,
    ) -> Finding:
        site = max(counts, key=lambda place: counts[place] / tokens[place])
        affected = sorted(
            {place.layer for place, count in counts.items() if count and place.layer is not None}
        )
        share = sum(counts.values()) / sum(tokens[place] for place in counts)
        finding = Finding(
            self.name,
            self.kind,
            stack=site.stack,
            layer=site.layer,
            site=site.name,
            module=evidence.module(site),
            dim=dim,
            head=head_of(evidence, site, dim),
            score=share,
            threshold=self.position_share,
            count=sum(counts.values()),
            share_tokens=share,
            rule={
                "magnitude": self.magnitude,
                "layer_share": self.layer_share,
                "position_share": self.position_share,
                "scope": f"all tokens at {' and '.join(space)} of all layers",
                **sampling(evidence, dear=False),
            },
            extra={
                "sites": list(space),
                "layers": affected,
                "layer_share": len(affected) / layers,
                "share_by_site": {
                    f"{place.layer}.{place.name}": counts[place] / tokens[place]
                    for place in counts
                    if counts[place]
                },
            },
        )
        value = strongest(evidence, site, dim)
        return value.place(finding, evidence) if value else finding
