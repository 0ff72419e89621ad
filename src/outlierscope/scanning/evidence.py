"""Evidence: what criteria see of a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outlierscope.criteria.criterion import Corpus
    from outlierscope.model.anatomy import Anatomy, LayerAnatomy
    from outlierscope.model.sites import Site
    from outlierscope.stats.measurements import Measurements
    from outlierscope.weights.summary import MatrixSummary

READERS = {
    "attn_in": ("q", "k", "v", "qkv"),
    "z": ("o",),
    "cross_z": ("cross_o",),
    "mlp_in": ("gate", "up", "gate_up"),
    "mlp_post": ("down",),
}
"""Roles of the matrices that read a linear input."""


class ScanEvidence:
    """The measurements of a scan with what is needed to interpret them.

    Attributes:
        anatomy: the proved map of the model.
        corpus: what was read.
        weights: summaries of the weight matrices and norms.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        corpus: Corpus,
        weights: Sequence[MatrixSummary],
        measurements: Measurements,
        *,
        module_prefix: str = "",
        decode: Callable[[int], str | None] | None = None,
    ) -> None:
        self.anatomy = anatomy
        self.corpus = corpus
        self.weights = weights
        self.measurements = measurements
        self._module_prefix = module_prefix
        self._decode = decode

    def stat(self, site: Site, name: str) -> Any:
        """A Stat of a site (aliases are resolved), or ``None`` when it was not measured."""
        return self.measurements.get(self.anatomy.canonical(site), name)

    def modules(self, site: Site) -> list[str]:
        """Full names of the modules concerned: the readers of a linear input, else what the tensor leaves."""
        layer = self.anatomy.layer(site)
        if layer is None:
            tap = self.anatomy.tap(site)
            return [self._module_prefix + tap.module] if tap else []
        readers = [matrix.module for matrix in layer.matrices if matrix.role in READERS.get(site.name, ())]
        if readers:
            return [self._module_prefix + name for name in dict.fromkeys(readers)]
        return [self._module_prefix + _producer(layer, site.name)]

    def module(self, site: Site) -> str | None:
        """The first of ``modules``."""
        return next(iter(self.modules(site)), None)

    def token_text(self, token_id: int) -> str | None:
        """Text of a token; ``None`` without a tokenizer, under ``--no-text`` or for what is no token."""
        if self._decode is None or token_id < 0:
            return None
        return self._decode(token_id)


def _producer(layer: LayerAnatomy, name: str) -> str:
    attention = layer.cross_attention if name.startswith("cross_") else layer.attention
    if name.removeprefix("cross_") in ("q", "k", "v", "pattern") and attention:
        return attention.module
    tap = layer.taps.get(name)
    # A residual stream has no module of its own: the block is what a skip list can name.
    if tap is None or name.startswith("resid"):
        return layer.module
    return tap.module
