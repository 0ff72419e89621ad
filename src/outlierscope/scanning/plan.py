"""The plan of a scan: which Stats are kept at which sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.criteria.criterion import Requirement
from outlierscope.errors import UserError
from outlierscope.model.sites import ALL_SITES, PATTERNS
from outlierscope.scanning.settings import DEFAULT_SITES
from outlierscope.stats.extremes import Extremes
from outlierscope.stats.histogram import LogHistogram, TokenAbsmax
from outlierscope.stats.magnitudes import TopMagnitudes
from outlierscope.stats.measurements import Measurements
from outlierscope.stats.moments import Moments
from outlierscope.stats.sequences import SequenceSummaries

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Criterion
    from outlierscope.model.anatomy import Anatomy
    from outlierscope.scanning.settings import ScanSettings

EVERYWHERE = (Moments, Extremes, TokenAbsmax, SequenceSummaries, LogHistogram)
"""Kept at every observed site, whatever the criteria ask for, unless neither activations nor formats are looked at."""

LAYER_CURVES = ("resid_post", "mlp_out", "mlp_post")
"""Sites whose top magnitudes and medians are kept per layer."""


def plan(anatomy: Anatomy, criteria: Iterable[Criterion], settings: ScanSettings) -> Measurements:
    """Empty Stats at every canonical site that a scan with these settings observes.

    Raises:
        UserError: when the settings leave nothing to observe.
    """
    _check_choice(anatomy, settings)
    measurements = Measurements()
    requirements: list[Requirement] = []
    if settings.keeps_sites:
        requirements += [Requirement(settings.sites, make) for make in EVERYWHERE]
        requirements.append(Requirement(LAYER_CURVES, TopMagnitudes))
    requirements += [requirement for criterion in criteria for requirement in criterion.requires()]
    allowed = set(settings.sites) | set(PATTERNS)
    for requirement in requirements:
        names = [name for name in requirement.sites if name in allowed]
        # No name at all would mean every site.
        for site in anatomy.sites(*names) if names else ():
            if settings.observes(site.layer):
                measurements.add(anatomy.canonical(site), requirement.make())
    if not len(measurements):
        raise UserError("nothing to observe: these sites are outside of these layers")
    return measurements


def _check_choice(anatomy: Anatomy, settings: ScanSettings) -> None:
    """Refuse layers and sites that the model does not have."""
    layers = max((len(stack.layers) for stack in anatomy.stacks.values()), default=0)
    for layer in settings.layers or ():
        if layer >= layers:
            raise UserError(f"--layers: there is no layer {layer}; this model has layers 0 to {layers - 1}")
    if settings.sites == DEFAULT_SITES:
        return
    observed = {site.name for site in anatomy.sites()} - set(PATTERNS)
    for name in settings.sites:
        if name not in observed:
            known = ", ".join(site for site in ALL_SITES if site in observed)
            raise UserError(f"--sites: {name} is not observed in this model; these are: {known}")
