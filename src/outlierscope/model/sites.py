"""Sites: the named places of a transformer where a tensor passes.

The names are those of TransformerLens, extended where it has none. They are the only vocabulary
in which the rest of the project speaks of places in a model.
"""

from __future__ import annotations

from dataclasses import dataclass

STACK_SITES = ("embed", "final_norm")
"""Sites that a stack has once: what enters the first block, and the norm after the last."""

LAYER_SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "cross_q",
    "cross_k",
    "cross_v",
    "cross_pattern",
    "cross_z",
    "cross_out",
    "resid_cross",
    "mixer_out",
    "mlp_in",
    "mlp_gate",
    "mlp_act",
    "mlp_up",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
"""Sites that every block may have, in the order in which data passes them."""

LINEAR_INPUTS = ("attn_in", "z", "mlp_in", "mlp_post")
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
