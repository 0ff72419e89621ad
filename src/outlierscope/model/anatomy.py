"""Anatomy: the proved map from sites to the modules of one concrete model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from collections.abc import Collection

    from outlierscope.model.attention.masks import MaskFormat


@dataclass(frozen=True)
class Tap:
    """Where to read one site's tensor during a forward pass.

    Attributes:
        module: full name of the module in the model that is run.
        side: whether the tensor is what enters or what leaves that module.
        index: which positional argument (side ``input``) or tuple element (side ``output``) it is.
        argument: name of the keyword argument, where the tensor is passed by keyword.
        factor: number by which the tensor is multiplied to give the site (residual multipliers).
        scale_parameter: full name of a parameter by which it is multiplied element by element (layer
            scale that is no module), or ``None``.
        call: which call of the module in one forward pass, from 0 (blocks that share a module call it in turn).
        offset_parameter: full name of a parameter that is added before factor and scale (a bias that is part of no
            module that gives the tensor), or ``None``.
    """

    module: str
    side: Literal["input", "output"]
    index: int = 0
    argument: str | None = None
    factor: float = 1.0
    scale_parameter: str | None = None
    call: int = 0
    offset_parameter: str | None = None


@dataclass(frozen=True)
class AttentionPlace:
    """The attention of one layer.

    Attributes:
        module: full name of the attention module (the one handed to the attention function).
        route: ``registry`` (dispatches through transformers' ``AttentionInterface``) or ``returned`` (an
            own implementation whose eager form returns the weights).
        heads: number of query heads.
        key_value_heads: number of key and value heads.
        head_dim: dims of one value head, so that ``z`` has ``heads * head_dim`` dims.
        causal: whether a query sees only keys at or before its own position.
        window: sliding window in tokens as the family states it, or ``None`` for full attention. Causal: a
            query sees itself and ``window - 1`` keys before; bidirectional: up to ``window`` on either side.
        call: which call of the module in one forward pass, from 0.
        mask: ``boolean`` where the family computes as it does by itself only with the boolean mask of PyTorch's
            SDPA; ``added`` where its own eager attention, which adds the mask to the logits, does as well.
    """

    module: str
    route: Literal["registry", "returned"]
    heads: int
    key_value_heads: int
    head_dim: int
    causal: bool
    window: int | None = None
    call: int = 0
    mask: MaskFormat = "added"


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a layer that an outlier criterion looks at.

    Attributes:
        role: ``q``, ``k``, ``v``, ``qkv`` (fused), ``o``, ``gate``, ``up``, ``gate_up`` (fused), ``down``,
            or ``norm`` for gamma (weight) and beta (bias) of a norm.
        module: full name of the module that owns it.
        parameter: full name of the parameter.
        transposed: true where the parameter is stored [in, out] (GPT-2's Conv1D) rather than [out, in].
    """

    role: str
    module: str
    parameter: str
    transposed: bool = False


@dataclass
class LayerAnatomy:
    """What was found and proved of one block.

    Attributes:
        index: from 0.
        module: full name of the block.
        layout: ``pre-norm``, ``post-norm``, ``sandwich``, ``parallel``, ...
        taps: site name -> where to read it.
        aliases: site name -> site with the very same tensor (for example ``resid_pre`` of layer 3 is
            ``resid_post`` of layer 2), so that nothing is computed twice.
        attention: the block's attention to its own stack, if it has one.
        cross_attention: its attention to another stack, if it has one.
        matrices: weight matrices and norm parameters by role.
        missing: site name -> why it is not observed.
        identities: what was proved, by name, with the largest relative error seen.
    """

    index: int
    module: str
    layout: str
    taps: dict[str, Tap] = field(default_factory=dict)
    aliases: dict[str, Site] = field(default_factory=dict)
    attention: AttentionPlace | None = None
    cross_attention: AttentionPlace | None = None
    matrices: list[Matrix] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    identities: dict[str, float] = field(default_factory=dict)

    def attentions(self) -> dict[str, AttentionPlace]:
        """``pattern`` and ``cross_pattern`` where the block attends: an attention observer sees them, not a tap."""
        places = {"pattern": self.attention, "cross_pattern": self.cross_attention}
        return {name: place for name, place in places.items() if place is not None}


@dataclass
class StackAnatomy:
    """What was found and proved of one stack.

    Attributes:
        name: ``decoder``, ``encoder``, ``vision`` or ``audio``.
        hidden_size: dims of the residual stream.
        layers: the blocks in order.
        taps: ``embed`` and ``final_norm``.
        aliases: as in ``LayerAnatomy``.
        matrices: gamma and beta of the final norm.
        missing: site name -> why it is not observed.
        entry: full name of the module that is run to feed this stack: empty for the whole model, else a tower
            of a model of several modalities.
    """

    name: str
    hidden_size: int
    layers: list[LayerAnatomy]
    entry: str = ""
    taps: dict[str, Tap] = field(default_factory=dict)
    aliases: dict[str, Site] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Anatomy:
    """The map of a whole model.

    Attributes:
        stacks: by name.
        proved: true when the residual identities of every block hold (a module of a stack's list that gives its
            hidden states another shape is no block: all its sites are missing, with that reason); false when some
            do not; ``None`` when the model has no attention.
        reason: why it is not proved, in one line; empty when it is.
    """

    stacks: dict[str, StackAnatomy]
    proved: bool | None
    reason: str = ""

    def canonical(self, site: Site) -> Site:
        """The site under which this site's tensor is observed (itself, unless it is an alias)."""
        place = self._place(site)
        target = place.aliases.get(site.name) if place else None
        return self.canonical(target) if target else site

    def tap(self, site: Site) -> Tap | None:
        """Where to read this site; ``None`` when it is not observed."""
        site = self.canonical(site)
        place = self._place(site)
        return place.taps.get(site.name) if place else None

    def has(self, site: Site) -> bool:
        """Whether this site's tensor can be observed."""
        return self.tap(site) is not None

    def layer(self, site: Site) -> LayerAnatomy | None:
        """The block that a site belongs to; ``None`` for sites that a stack has once."""
        place = self._place(site)
        return place if isinstance(place, LayerAnatomy) else None

    def sites(self, *names: str) -> list[Site]:
        """Every site with one of these names (all names if none is given), alias or not, observed or not."""
        found = []
        for stack in self.stacks.values():
            candidates = [(None, name) for name in stack.taps.keys() | stack.aliases.keys()]
            for layer in stack.layers:
                names_of_layer = layer.taps.keys() | layer.aliases.keys() | layer.attentions().keys()
                candidates += [(layer.index, name) for name in names_of_layer]  # type: ignore[misc]
            found += [
                Site(stack.name, index, name) for index, name in candidates if not names or name in names
            ]
        return sorted(
            found, key=lambda site: (site.stack, -1 if site.layer is None else site.layer, site.name)
        )

    @property
    def missing(self) -> dict[Site, str]:
        """Every site that is not observed, with the reason."""
        reasons: dict[Site, str] = {}
        for stack in self.stacks.values():
            reasons |= {Site(stack.name, None, name): why for name, why in stack.missing.items()}
            for layer in stack.layers:
                reasons |= {Site(stack.name, layer.index, name): why for name, why in layer.missing.items()}
        return reasons

    def of_stacks(self, names: Collection[str]) -> Anatomy:
        """The map of some of its stacks."""
        kept = {name: stack for name, stack in self.stacks.items() if name in names}
        return Anatomy(kept, self.proved, self.reason)

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``: layouts, taps, identities and what is missing."""

        def plain(value: object) -> object:
            if isinstance(value, Site):
                return str(value)
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list):
                return [plain(item) for item in value]
            return value

        return {
            "proved": self.proved,
            "reason": self.reason,
            "stacks": {name: plain(_shallow(stack)) for name, stack in self.stacks.items()},
        }

    def _place(self, site: Site) -> LayerAnatomy | StackAnatomy | None:
        stack = self.stacks.get(site.stack)
        if stack is None or site.layer is None:
            return stack
        return stack.layers[site.layer] if site.layer < len(stack.layers) else None


def _shallow(stack: StackAnatomy) -> dict[str, Any]:
    described = {key: value for key, value in vars(stack).items() if key != "layers"}
    described["taps"] = {name: asdict(tap) for name, tap in stack.taps.items()}
    described["matrices"] = [asdict(matrix) for matrix in stack.matrices]
    described["layers"] = [
        {
            **vars(layer),
            "taps": {name: asdict(tap) for name, tap in layer.taps.items()},
            "attention": asdict(layer.attention) if layer.attention else None,
            "cross_attention": asdict(layer.cross_attention) if layer.cross_attention else None,
            "matrices": [asdict(matrix) for matrix in layer.matrices],
        }
        for layer in stack.layers
    ]
    return described
