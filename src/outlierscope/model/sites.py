"""Sites: the named places of a transformer where a tensor passes.

The names are those of TransformerLens, extended where it has none. They are the only vocabulary
in which the rest of the project speaks of places in a model.
"""

from __future__ import annotations

from dataclasses import dataclass

SITES_OF_STACK = {
    "embed": "what enters the first block",
    "final_norm": "output of the norm after the last block",
}
"""Sites that a stack has once, and what they are."""

SITES_OF_LAYER = {
    "resid_pre": "residual stream before the block",
    "attn_in": "what the first projections of attention read",
    "q": "queries, after norms and rotary embedding",
    "k": "keys, by key and value head, after norms and rotary embedding",
    "v": "values, by key and value head",
    "pattern": "attention weights, after the softmax",
    "z": "weighted values of all heads, before the output projection",
    "attn_out": "what attention adds to the residual stream, after any norm or factor",
    "resid_mid": "residual stream between attention and MLP",
    "cross_q": "queries of cross attention",
    "cross_k": "keys of cross attention, from the encoder",
    "cross_v": "values of cross attention, from the encoder",
    "cross_pattern": "weights of cross attention",
    "cross_z": "weighted values of cross attention",
    "cross_out": "what cross attention adds to the residual stream",
    "resid_cross": "residual stream after cross attention",
    "mixer_out": "what a mixer without attention (state space, convolution) adds to the residual stream",
    "mlp_in": "what the first projections of the MLP read",
    "mlp_gate": "gate of a gated MLP, before its activation function",
    "mlp_act": "activation function's output",
    "mlp_up": "what the gate is multiplied with",
    "mlp_post": "neurons: what the down projection reads",
    "mlp_out": "what the MLP adds to the residual stream, after any norm or factor",
    "side_out": "what a further branch adds to the residual stream (a second MLP, gated embeddings)",
    "side_out_2": "the same of one more branch",
    "side_out_3": "the same of a third one",
    "resid_post": "residual stream after the block",
}
"""Sites that every block may have, in the order in which data passes them, and what they are."""

STACK_SITES, LAYER_SITES = tuple(SITES_OF_STACK), tuple(SITES_OF_LAYER)

PATTERNS = ("pattern", "cross_pattern")
"""Weights of attention: seen by an observer of attention and not by a tap."""

LINEAR_INPUTS = ("attn_in", "z", "cross_z", "mlp_in", "mlp_post")
"""Inputs of linear layers: what W8A8 schemes quantize."""

ALL_SITES = (STACK_SITES[0], *LAYER_SITES, STACK_SITES[1])


@dataclass(frozen=True, order=True)
class Site:
    """One named place in one model.

    Attributes:
        stack: ``decoder``, ``encoder``, ``vision`` or ``audio``.
        layer: block index from 0; ``None`` for the sites that a stack has once.
        name: one of ``ALL_SITES``.

    Raises:
        ValueError: for an unknown name, or a layer where there is none (or none where there is one).

    >>> str(Site("decoder", 3, "mlp_out"))
    'decoder.3.mlp_out'
    >>> Site.parse("encoder.final_norm")
    Site(stack='encoder', layer=None, name='final_norm')
    """

    stack: str
    layer: int | None
    name: str

    def __post_init__(self) -> None:
        if self.name not in ALL_SITES:
            raise ValueError(f"unknown site {self.name!r}; the sites are {', '.join(ALL_SITES)}")
        if (self.layer is None) != (self.name in STACK_SITES):
            raise ValueError(f"site {self.name!r} with layer {self.layer!r}")

    def __str__(self) -> str:
        return f"{self.stack}.{self.name}" if self.layer is None else f"{self.stack}.{self.layer}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read what ``str(site)`` wrote."""
        parts = text.split(".")
        if len(parts) == 2:
            return cls(parts[0], None, parts[1])
        if len(parts) == 3 and parts[1].isdigit():
            return cls(parts[0], int(parts[1]), parts[2])
        raise ValueError(f"not a site: {text!r}")
