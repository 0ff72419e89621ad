"""extreme_neuron: one dim that is the largest, or the smallest, of nearly every token vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.heads import head_of_same_index
from outlierscope.criteria.located import sampling, strongest
from outlierscope.model.sites import Site
from outlierscope.stats.extreme_dims import ExtremeDims
from outlierscope.stats.extremes import Extremes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Kind

SITE = "resid_post"


@dataclass(frozen=True)
class NeuronShare:
    """How often one dim is the extreme one.

    Attributes:
        dim: the dim.
        end: ``argmax`` or ``argmin``.
        share: share of the token vectors of all layers.
        by_layer: layer -> share of that layer's token vectors.
    """

    dim: int
    end: str
    share: float
    by_layer: dict[int, float]


@dataclass(frozen=True)
class ExtremeNeuron:
    """Dims that are the argmax or the argmin of most token vectors, over all layers.

    Source: Luo, Kulmizev and Mao 2021, "Positional Artefacts Propagate Through Masked Language Model
    Embeddings", section 3: the outputs of all layers, the embedding layer excluded. They report shares of 82
    to 100 % and give no threshold; ``share`` is ours.

    Row key: stack, dim, end (``extra["end"]`` is ``argmax`` or ``argmin``). ``score`` is the share of token
    vectors over all layers, ``count`` their number, ``layer`` where the share is largest.
    """

    name: ClassVar[str] = "extreme_neuron"
    kind: ClassVar[Kind] = "activation"
    source: ClassVar[str] = "Luo et al. 2021, section 3"

    share: float = 0.5
    least_tokens: int = 100

    def requires(self) -> Iterable[Requirement]:
        """Counts of argmax and argmin per dim, and the extreme values themselves."""
        return (Requirement((SITE,), ExtremeDims), Requirement((SITE,), Extremes))

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows with the largest share first."""
        if evidence.corpus.tokens < self.least_tokens:
            seen = f"{evidence.corpus.tokens} tokens, {self.least_tokens} needed"
            return [NotApplied(self.name, f"not enough data: {seen}")]
        found = [
            self._finding(evidence, stack, neuron)
            for stack in evidence.anatomy.stacks
            for neuron in neuron_shares(evidence, stack)
            if neuron.share >= self.share
        ]
        return sorted(found, key=lambda finding: -(finding.score or 0.0))

    def _finding(self, evidence: Evidence, stack: str, neuron: NeuronShare) -> Finding:
        layer = max(neuron.by_layer, key=lambda index: (neuron.by_layer[index], -index))
        site = Site(stack, layer, SITE)
        extreme_dims = evidence.stat(site, "extreme_dims")
        finding = Finding(
            self.name,
            self.kind,
            stack=stack,
            layer=layer,
            site=SITE,
            module=evidence.module(site),
            dim=neuron.dim,
            score=neuron.share,
            threshold=self.share,
            count=_over_layers(evidence, stack, neuron.end)[0][neuron.dim].item(),  # type: ignore[arg-type]
            share_tokens=neuron.share,
            rule={
                "share": self.share,
                "scope": "token vectors of all layers, embedding layer excluded",
                **sampling(evidence, dear=False),
            },
            extra={
                "end": neuron.end,
                "share_by_layer": {str(index): share for index, share in neuron.by_layer.items()},
                "head_of_same_index": head_of_same_index(
                    evidence, site, neuron.dim, len(extreme_dims.argmax)
                ),
            },
        )
        value = strongest(evidence, site, neuron.dim)
        return value.place(finding, evidence) if value else finding


def neuron_shares(evidence: Evidence, stack: str, top: int = 3) -> list[NeuronShare]:
    """The dims that are most often argmax or argmin over all layers, ``top`` of each end."""
    shares = []
    for end in ("argmax", "argmin"):
        total, by_layer = _over_layers(evidence, stack, end)
        vectors = int(total.sum())
        if not vectors:
            continue
        for dim in torch.argsort(total, descending=True, stable=True)[:top].tolist():
            layers = {
                layer: int(counts[dim]) / max(int(counts.sum()), 1) for layer, counts in by_layer.items()
            }
            shares.append(NeuronShare(dim, end, int(total[dim]) / vectors, layers))
    return shares


def _over_layers(evidence: Evidence, stack: str, end: str) -> tuple[Tensor, dict[int, Tensor]]:
    """[d] counts over all layers, and per layer; the layers of one stack share one width."""
    by_layer: dict[int, Tensor] = {}
    for site in evidence.anatomy.sites(SITE):
        stat = evidence.stat(site, "extreme_dims") if site.stack == stack else None
        if stat is not None and site.layer is not None and int(stat.argmax.sum()):
            by_layer[site.layer] = getattr(stat, end)
    if not by_layer:
        return torch.zeros(0, dtype=torch.int64), {}
    return torch.stack(list(by_layer.values())).sum(0), by_layer
