"""Summaries of whole tensors that go with the outlier criteria: no thresholds, hence no findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.model.sites import Site


@dataclass(frozen=True)
class SiteSummary:
    """One site's tensors, averaged over sequences.

    Attributes:
        site: canonical or alias, as asked for.
        inf_norm: mean over sequences of max abs(x) over [T, d].
        kurtosis: mean over sequences of mean((x - mean)^4) / std^4, not excess, with the unbiased std.
        channel_kurtosis: kurtosis over dims of each dim's root mean square; 1 when all dims are alike
            (a constant has none: then 1), ``d`` when one dim carries everything.
        sequences: sequences averaged over.
    """

    site: Site
    inf_norm: float
    kurtosis: float
    channel_kurtosis: float
    sequences: int


@dataclass(frozen=True)
class ModelSummary:
    """The two figures that Bondarenko et al. 2023 print per model (section 5 and their code).

    Attributes:
        site: name of the site whose layers are summarized: ``mlp_out`` (they: BERT) or ``resid_post`` (OPT).
        max_inf_norm: maximum over layers of the averaged inf norm.
        mean_kurtosis: mean over layers of the averaged kurtosis.
        layers: the layers, in order.
    """

    site: str
    max_inf_norm: float
    mean_kurtosis: float
    layers: tuple[SiteSummary, ...]


def site_summary(evidence: Evidence, site: Site) -> SiteSummary | None:
    """The summary of one site; ``None`` where it was not measured. Needs ``sequences`` and ``moments``."""
    sequences = evidence.stat(site, "sequences")
    moments = evidence.stat(site, "moments")
    if sequences is None or moments is None or not int(sequences.count):
        return None
    return SiteSummary(
        site=site,
        inf_norm=float(sequences.inf_norm_mean),
        kurtosis=float(sequences.kurtosis_mean),
        channel_kurtosis=root_mean_square_kurtosis(moments.rms()),
        sequences=int(sequences.count),
    )


def model_summary(evidence: Evidence, stack: str, name: str) -> ModelSummary | None:
    """The two figures over all layers of a stack; ``None`` where no layer was measured."""
    found = [site_summary(evidence, site) for site in evidence.anatomy.sites(name) if site.stack == stack]
    layers = tuple(summary for summary in found if summary is not None)
    if not layers:
        return None
    return ModelSummary(
        site=name,
        max_inf_norm=max(layer.inf_norm for layer in layers),
        mean_kurtosis=sum(layer.kurtosis for layer in layers) / len(layers),
        layers=layers,
    )


def root_mean_square_kurtosis(root_mean_square: Tensor) -> float:
    """Kurtosis over dims of the per-dim root mean square: a cousin of the criteria without thresholds.

    Args:
        root_mean_square: [d] root mean square over tokens of each dim.

    With s_j the root mean square of dim j over tokens: mean_j(s_j^4) / mean_j(s_j^2)^2, which is about 1 when
    all dims carry alike and d when one carries everything. He et al. 2024, "Understanding and Minimising
    Outlier Features in Neural Network Training", section 2 (there the moments of s are not centred).

    >>> import torch
    >>> root_mean_square_kurtosis(torch.ones(8))
    1.0
    >>> root_mean_square_kurtosis(torch.tensor([1.0, 0, 0, 0]))
    4.0
    """
    square = root_mean_square.double() ** 2
    energy = square.mean() ** 2
    return float((square**2).mean() / energy) if float(energy) > 0 else 1.0
