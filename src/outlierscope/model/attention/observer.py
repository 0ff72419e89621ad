"""AttentionObserver: looks at every layer's attention pattern without keeping it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from outlierscope.model.attention.exact import EXACT, EXACT_BOOLEAN, WATCHED, eager_function
from outlierscope.model.attention.implementation import attention_configs
from outlierscope.model.attention.observed_pass import AttentionPass
from outlierscope.model.attention.registry import RegistryWatch
from outlierscope.model.attention.returned import ReturnedWatch
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor, nn

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy
    from outlierscope.model.attention.masks import MaskFormat
    from outlierscope.model.attention.observation import AttentionObservation, HeadTensors, PatternBlock


class AttentionObserver:
    """A context manager under which the attention of dear batches is computed exactly and consumed.

    Batches that are not dear pass through the very attention that the model came with, at no cost. The model
    is left as it was found. Dropout must be off (``module.eval()``).

    Args:
        module: the model; ``anatomy``'s module names are relative to it.
        anatomy: its map; layers with an ``attention`` or a ``cross_attention`` are observed.
        consume: called once a layer and dear batch.
        sites: the ``pattern`` and ``cross_pattern`` of the layers to look at; ``None`` for all.
        on_block: called with every block of a pattern while it is at hand, for saving examples.
        on_heads: called with a layer's queries, keys and values, for saving examples; not for families that
            compute attention outside of transformers' registry.

    Attributes:
        unobserved: sites whose attention could not be observed in some batch, with the reason.

    Raises:
        RuntimeError: on entering, when the model is being observed already.
        ProofError: on entering, when a family has no eager attention; during a forward pass, when what a
            layer computes is no attention pattern.
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        consume: Callable[[AttentionObservation], None],
        on_block: Callable[[PatternBlock], None] | None = None,
        on_heads: Callable[[HeadTensors], None] | None = None,
        sites: Collection[Site] | None = None,
    ) -> None:
        self._module = module
        self._anatomy = anatomy
        self._consume = consume
        self._on_block = on_block
        self._on_heads = on_heads
        self._sites = sites
        self._registry: dict[nn.Module, RegistryWatch] = {}
        self._returned: dict[Site, ReturnedWatch] = {}  # by the layer's z
        self._taps: Taps | None = None
        # Each configuration, its attention implementation, whether attentions are asked for, and its masks.
        self._saved: list[tuple[Any, Any, Any, MaskFormat]] = []
        self.unobserved: dict[Site, str] = {}

    def __enter__(self) -> Self:
        for stack in self._anatomy.stacks.values():
            for layer in stack.layers:
                for name, place in layer.attentions().items():
                    self._watch(Site(stack.name, layer.index, name), layer, place)
        if any(attention in WATCHED for attention in self._registry):
            self._forget()
            raise RuntimeError("the attention of this model is being observed already")
        for config, mask in attention_configs(self._module, self._anatomy):
            self._saved.append(
                (config, config._attn_implementation_internal, config._output_attentions, mask)
            )
        WATCHED.update(self._registry)
        for returned in self._returned.values():
            returned.attach()
        tapped_sites = [z for z in self._returned if self._anatomy.has(z)]
        if tapped_sites:
            self._taps = Taps(self._module, self._anatomy, tapped_sites, self._take_z)
            self._taps.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        for attention in self._registry:
            WATCHED.pop(attention, None)
        for returned in self._returned.values():
            returned.detach()
        if self._taps is not None:
            self._taps.remove()
        self._forget()

    def begin(self, batch: Batch) -> None:
        """Get ready for the forward pass of a batch: exact where it is dear, the model's own otherwise."""
        now = None
        if batch.dear:
            now = AttentionPass(batch, self._consume, self._on_block, self._on_heads, self.unobserved)
        for watch in self._registry.values():
            watch.begin_pass(now)
        for returned in self._returned.values():
            returned.begin_pass(now)
        self._restore()
        if batch.dear:
            for config, _, _, mask in self._saved:
                exact = EXACT if mask == "added" else EXACT_BOOLEAN
                config._attn_implementation_internal = exact if self._registry else "eager"
                config._output_attentions = bool(self._returned)

    def _watch(self, site: Site, layer: LayerAnatomy, place: AttentionPlace) -> None:
        attention = self._module.get_submodule(place.module)
        if place.route == "registry":
            eager_function(attention)
            # Layers that share their weights share the module, and call it in turn.
            watch = self._registry.setdefault(attention, RegistryWatch(place.causal))
            watch.sites.append(site)
            if self._wants(site):
                watch.wanted.add(site)
        elif self._wants(site):
            prefix = site.name.removesuffix("pattern")  # of the sites of cross attention
            z = self._anatomy.canonical(Site(site.stack, site.layer, f"{prefix}z"))
            roles = (f"{prefix}v", f"{prefix}qkv")
            values = next((matrix for matrix in layer.matrices if matrix.role in roles), None)
            tapped = self._anatomy.has(z)
            self._returned[z] = ReturnedWatch(self._module, place, values, site, z_tapped=tapped)

    def _wants(self, site: Site) -> bool:
        return self._sites is None or site in self._sites

    def _take_z(self, site: Site, z: Tensor) -> None:
        self._returned[site].take_z(z)

    def _restore(self) -> None:
        for config, implementation, output_attentions, _ in self._saved:
            config._attn_implementation_internal = implementation
            config._output_attentions = output_attentions

    def _forget(self) -> None:
        self._registry, self._returned, self._saved, self._taps = {}, {}, [], None
