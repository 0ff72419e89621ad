"""Coverage: how much of what a verdict on 8-bit formats rests on could be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.model.sites import LINEAR_INPUTS
from outlierscope.reporting.wording import counted

if TYPE_CHECKING:
    from outlierscope.model.anatomy import Anatomy, LayerAnatomy


def coverage(anatomy: Anatomy) -> list[str]:
    """A sentence for the verdict where linear inputs are hidden in experts or mixers; nothing where all are seen.

    >>> from outlierscope.model.anatomy import Anatomy
    >>> coverage(Anatomy({}, None))
    []
    """
    seen = [site for site in anatomy.sites(*LINEAR_INPUTS) if anatomy.has(site)]
    hiding = sum(_hides_inputs(layer) for stack in anatomy.stacks.values() for layer in stack.layers)
    if not seen or not hiding:
        return []
    return [
        f"Formats of 8 bits are judged by {counted(len(seen), 'linear input')}; "
        f"experts and mixers of {counted(hiding, 'layer')} have others, which are not seen."
    ]


def _hides_inputs(layer: LayerAnatomy) -> bool:
    # The projections of a mixer have no names among the sites.
    return "mixer_out" in layer.taps or any(name in layer.missing for name in LINEAR_INPUTS)
