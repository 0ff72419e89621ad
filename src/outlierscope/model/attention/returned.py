"""ReturnedWatch: reduces the weights that an attention module returns, for families outside the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outlierscope.model.attention.observation import PatternBlock
from outlierscope.model.attention.values import proved_values

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from outlierscope.model.anatomy import AttentionPlace, Matrix
    from outlierscope.model.attention.observation import AttentionReduction
    from outlierscope.model.attention.observed_pass import AttentionPass, Ends
    from outlierscope.model.sites import Site

PROVING_QUERIES = 64
"""Rows of a pattern that are kept until z is known, to prove which tensor holds the values."""


class ReturnedWatch:
    """Hooks on one layer: on its attention, for the weights, and on the projection that gives v.

    The weights are replaced by ``None`` in what the module returns, so that the model does not collect them.

    Attributes:
        attention: the attention module.
    """

    def __init__(
        self, model: nn.Module, place: AttentionPlace, values: Matrix | None, site: Site, *, z_tapped: bool
    ) -> None:
        self.attention = model.get_submodule(place.module)
        self._model = model
        self._place = place
        self._site = site
        self._z_tapped = z_tapped
        self._value_matrix = values
        self._hooks: list[RemovableHandle] = []
        self._pass: AttentionPass | None = None
        self._reduction: AttentionReduction | None = None
        self.begin_pass(None)

    def begin_pass(self, now: AttentionPass | None) -> None:
        """Forget the last forward pass; ``None`` where the next one is not observed."""
        if self._pass is not None and self._reduction is not None:
            self._pass.unobserved[self._site] = "its z never came by"
        self._pass = now
        self._ends: Ends | None = None
        self._projected: Tensor | None = None  # what the value projection returned
        self._z: Tensor | None = None  # [B, Q, H * d_head]
        self._reduction = None
        self._some_rows: Tensor | None = None  # [H, some, K]

    def attach(self) -> None:
        """Put the hooks in place."""
        if self._value_matrix is not None:
            projection = self._model.get_submodule(self._value_matrix.module)
            self._hooks.append(projection.register_forward_hook(self._on_projection))
        # Before all others, among them those by which transformers collects attentions.
        self._hooks.append(self.attention.register_forward_hook(self._on_attention, prepend=True))

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.begin_pass(None)

    def _on_projection(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if self._pass is not None and isinstance(output, torch.Tensor):
            self._projected = output

    def take_z(self, z: Tensor) -> None:
        """What the tap of ``z`` brought: [B, Q, H * d_head]."""
        if self._pass is not None:
            self._z = z
            self._finish()

    def _on_attention(self, _module: nn.Module, _inputs: object, output: object) -> object:
        now, site = self._pass, self._site
        if now is None or now.batch.of(site.stack) is None:
            return None
        parts = output if isinstance(output, tuple) else (output,)
        heads = self._place.heads
        found = [
            index
            for index, part in enumerate(parts)
            if isinstance(part, torch.Tensor) and part.ndim == 4 and part.shape[1] == heads and index > 0
        ]
        if not found:
            now.unobserved[site] = f"{type(self.attention).__name__} returns no attention weights"
            return None
        weights = parts[found[0]]  # [B, H, Q, K]
        self._ends = now.ends(site, weights.shape[0], weights.shape[2], weights.shape[3])
        if self._ends is not None:
            self._reduce(now, self._ends, weights)
        return tuple(None if index in found[:1] else part for index, part in enumerate(parts))

    def _reduce(self, now: AttentionPass, ends: Ends, weights: Tensor) -> None:
        heads, length = weights.shape[1:3]
        place = self._place
        window = place.window
        if window is None and place.causal:
            window = _window_seen(weights, ends.queries.real.to(weights.device))
        reduction = now.ruled(self._site, ends, heads, weights.device, causal=place.causal, window=window)
        for sequence in range(len(weights)):
            rows, queries = slice(sequence, sequence + 1), slice(0, length)
            reduction.add(rows, queries, weights[rows])
            if now.on_block is not None:
                now.on_block(PatternBlock(self._site, ends.keys, rows, queries, weights[rows]))
        real = ends.queries.rows(0)
        self._some_rows = weights[
            0, :, slice(real.start, min(real.stop, real.start + PROVING_QUERIES))
        ].clone()
        self._reduction = reduction
        if not self._z_tapped or self._z is not None:
            self._finish()

    def _finish(self) -> None:
        """Once the weights and, where it is tapped, z are known, in whichever order they came."""
        if self._pass is None or self._reduction is None or self._ends is None:
            return
        values = outputs = None
        if self._z is not None:
            outputs = self._z.reshape(*self._z.shape[:-1], self._place.heads, -1)  # [B, Q, H, d_head]
            if self._projected is not None and self._some_rows is not None:
                first = self._ends.queries.rows(0).start
                values = proved_values(self._projected, self._place, self._some_rows, outputs[0, first:])
        self._pass.consume(self._reduction.finish(values, outputs, sums_to_one=True))
        self._reduction = self._projected = self._z = self._some_rows = None


def _window_seen(weights: Tensor, real: Tensor) -> int | None:
    """Tokens of the sliding window outside of which no query of a causal layer has any weight at all.

    Masked weights are 0 exactly; that others are as well, in all heads and at all queries, is next to
    impossible.
    """
    strongest = weights.amax(1).masked_fill(~real[:, :, None], 0).amax(0)  # [Q, K]
    query, key = (strongest > 0).nonzero(as_tuple=True)
    farthest = int((query - key).max()) + 1 if len(query) else 0
    return farthest if 0 < farthest < int(real.sum(1).max()) else None
