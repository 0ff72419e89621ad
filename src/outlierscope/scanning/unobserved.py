"""What was not observed, and why: absence of evidence must not be taken for evidence of absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlierscope.model.observed import stack_kind
from outlierscope.model.sites import LAYER_SITES, PATTERNS, STACK_SITES, Site

if TYPE_CHECKING:
    from outlierscope.criteria.criterion import NotApplied
    from outlierscope.model.anatomy import Anatomy
    from outlierscope.model.observed import ObservedModel
    from outlierscope.scanning.settings import ScanSettings

WAYS_TO_FEED = {
    "text": "give text with --data",
    "image": "give a folder of images with --data",
    "audio": "give a folder of recordings with --data",
}
"""How a stack that reads this kind of input is fed."""


def not_observed(
    observed: ObservedModel,
    anatomy: Anatomy,
    settings: ScanSettings,
    not_applied: list[NotApplied],
    unobserved: dict[str, str],
) -> list[dict[str, Any]]:
    """What a reader must not take for absent: sites without statistics, rules without enough data."""
    rows: list[dict[str, Any]] = []
    for name, stack in observed.anatomy.stacks.items():
        if name not in anatomy.stacks:
            reads = any(layer.cross_attention is not None for layer in stack.layers)
            way = "it reads another stack" if reads else WAYS_TO_FEED[stack_kind(name)]
            rows.append({"what": f"{name} stack", "why": f"not fed; {way}"})
    if observed.left_out:
        rows.append(
            {
                "what": observed.left_out,
                "why": "only the encoder is fed with recordings and looked at; for the decoder's weights use --only weight",
            }
        )
    if anatomy.proved is not True:
        # A model without attention is no failure of the proof.
        what = "attention" if anatomy.proved is None and anatomy.stacks else "anatomy"
        rows.append({"what": what, "why": anatomy.reason or "no attention stack was found"})
    rows += beside_the_model(observed.origin)
    layers_of: dict[tuple[str, str, str], list[int]] = {}
    for site, why in (anatomy.missing | {Site.parse(site): why for site, why in unobserved.items()}).items():
        if anatomy.proved is None and site.name in PATTERNS:
            continue  # said above, of the whole model
        layers = layers_of.setdefault((site.stack, site.name, why), [])
        if site.layer is not None:
            layers.append(site.layer)
    names_of: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (stack_name, site_name, why), layers in layers_of.items():
        names_of.setdefault((stack_name, why, tuple(layers)), []).append(site_name)
    rows += [
        {"what": f"{stack_name} {', '.join(names)}", "why": why, "layers": list(layers_there)}
        for (stack_name, why, layers_there), names in names_of.items()
    ]
    left_out = [
        name for name in (*STACK_SITES, *LAYER_SITES) if name not in settings.sites and anatomy.sites(name)
    ]
    left_out = [name for name in left_out if name not in ("q", "k", "v", *PATTERNS, "resid_pre")]
    if left_out and settings.keeps_sites:
        rows.append({"what": ", ".join(left_out), "why": "not asked for; add them with --sites"})
    rows += [{"what": item.criterion, "why": item.reason} for item in not_applied]
    if any(stack.name.startswith("decoder") for stack in anatomy.stacks.values()):
        why = "a scan reads given text; what the model writes itself is not observed"
        rows.append({"what": "generation", "why": why})
    return rows


def beside_the_model(origin: dict[str, Any]) -> list[dict[str, Any]]:
    """Modules that come with a model but are no part of what is scanned (``Source.origin``)."""
    others = origin.get("sentence_transformers", {}).get("not_scanned")
    why = "modules of sentence-transformers after the transformer; not scanned"
    return [{"what": ", ".join(others), "why": why}] if others else []
