"""AttentionObservation: one layer's attention of one batch, reduced block of queries by block of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlierscope.errors import ProofError

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.attention.visibility import AttentionTokens, Visibility
    from outlierscope.model.sites import Site

ROW_SUM_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far the sum of an attention row may be from 1, by the dtype in which the model keeps its pattern."""


@dataclass
class AttentionObservation:
    """What Stats of attention see of one layer and batch. Padding never counts; arithmetic is float32.

    B sequences, H query heads, G key and value heads, Q queries, K keys, C token classes. Queries and keys are
    the same tokens but in cross attention. All tensors are on the CPU. Rows of padding positions hold zeros.

    Attributes:
        site: the layer's ``pattern`` or ``cross_pattern``.
        batch: the identities of the keys.
        real: [B, K] bool, the real keys.
        query_real: [B, Q] bool, the real queries.
        causal: whether no query saw a later key.
        received: [B, H, K] float32, ``sum_i A[i, k]`` over real queries i.
        seen_by: [B, K] int64, the number of real queries that can see each key.
        visible: [B, Q] int64, the number of keys that each query can see.
        class_mass: [B, H, Q, C] float32, each query's attention mass on the keys of each token class.
        row_sums: [B, H, Q] float32, each query's whole attention mass: 1, or less with a sink in the softmax.
        entropy: [B, H, Q] float32, ``-sum_k A[i, k] log A[i, k]`` of each query in nats.
        corner_received: [B, H, corner] float32, ``received`` by the first ``corner`` real positions from the
            first ``corner`` real queries; what a pass over that many tokens would show in a causal layer.
            ``None`` in layers that are not causal.
        corner_seen_by: [B, corner] int64, ``seen_by`` within that corner; ``None`` as well.
        value_norms: [B, G, K] float32, Euclidean norm of each key's value vector; ``None`` when not at hand.
        mean_value_norms: [B, G] float32, norm of the mean value vector over real keys; ``None`` as well.
        output_norms: [B, H, Q] float32, norm of each query's row of A @ V; ``None`` when not at hand.
        finite: [B] bool, false for a sequence with a NaN or an infinity in any of the above.
    """

    site: Site
    batch: Batch
    real: Tensor
    query_real: Tensor
    causal: bool
    received: Tensor
    seen_by: Tensor
    visible: Tensor
    class_mass: Tensor
    row_sums: Tensor
    entropy: Tensor
    corner_received: Tensor | None
    corner_seen_by: Tensor | None
    value_norms: Tensor | None
    mean_value_norms: Tensor | None
    output_norms: Tensor | None
    finite: Tensor

    def alpha(self, sequence: int) -> Tensor:
        """[H, K_real] float64: received mass over how many queries can see the key (Gu et al. 2024)."""
        rows = self.batch.rows(sequence)
        return self.received[sequence, :, rows].double() / self.seen_by[sequence, rows].clamp_min(1)

    def positions(self) -> Tensor:
        """[B, K] int64 positions of the keys without padding; meaningless at padding."""
        return self.real.long().cumsum(1) - 1

    def value_ratios(self, sequence: int) -> Tensor | None:
        """[H, K_real] float64: norm of each key's value vector over the sequence's median, by query head."""
        if self.value_norms is None:
            return None
        norms = self.value_norms[sequence, :, self.batch.rows(sequence)].double()  # [G, K_real]
        ratios = norms / norms.quantile(0.5, 1, keepdim=True).clamp_min(1e-30)
        return ratios.repeat_interleave(self.received.shape[1] // len(norms), 0)


LOW_INFORMATION = ("initial", "special", "strong_delimiter", "cls", "register")
"""Token classes to which heads turn that have nothing to write (Bondarenko et al. 2023, section 3)."""


def low_information(class_names: tuple[str, ...]) -> list[int]:
    """Indices of the low-information classes among ``class_names``.

    >>> low_information(("initial", "special", "strong_delimiter", "weak_semantic", "other"))
    [0, 1, 2]
    """
    return [index for index, name in enumerate(class_names) if name in LOW_INFORMATION]


@dataclass(frozen=True)
class PatternBlock:
    """Some rows of a pattern while they pass, for whoever saves examples. Keep copies only.

    Attributes:
        site: the layer's ``pattern`` or ``cross_pattern``.
        batch: the identities of the keys.
        sequences: rows of the batch.
        queries: positions of the queries.
        pattern: [b, H, q, K] in the model's dtype and on its device, padding included.
    """

    site: Site
    batch: Batch
    sequences: slice
    queries: slice
    pattern: Tensor


@dataclass(frozen=True)
class HeadTensors:
    """What a layer attends with, for whoever saves examples. Nothing may keep the tensors themselves.

    Attributes:
        site: the layer's ``pattern`` or ``cross_pattern``.
        queries: the identities of the queries.
        keys: the identities of the keys.
        query: [B, H, Q, d_head], after norms and rotary embedding, in the model's dtype and on its device.
        key: [B, G, K, d_head], likewise.
        value: [B, G, K, d_head].
    """

    site: Site
    queries: Batch
    keys: Batch
    query: Tensor
    key: Tensor
    value: Tensor


class AttentionReduction:
    """Builds an ``AttentionObservation`` from blocks of a pattern, so that it never exists as a whole.

    Args:
        site: the layer's ``pattern`` or ``cross_pattern``.
        queries: the tokens that look, on the pattern's device.
        keys: the tokens that are looked at.
        visibility: which queries see which keys.
        heads: number of query heads.
    """

    def __init__(
        self,
        site: Site,
        queries: AttentionTokens,
        keys: AttentionTokens,
        visibility: Visibility,
        heads: int,
    ) -> None:
        sequences, length = queries.real.shape
        device = queries.real.device
        self.site = site
        self._queries = queries
        self._keys = keys
        self._visibility = visibility
        self._dtype = torch.float32
        classes = len(keys.batch.class_names) + 1  # and one for every key, so that row sums come along
        self._masses = torch.zeros(sequences, heads, length, classes, device=device)  # [B, H, Q, C + 1]
        self._entropy = torch.zeros(sequences, heads, length, device=device)  # [B, H, Q]
        # By all real queries, and by those of the corner.
        self._received = torch.zeros(sequences, heads, 2, keys.real.shape[1], device=device)  # [B, H, 2, K]

    def add(self, sequences: slice, queries: slice, pattern: Tensor) -> None:
        """Take in the rows ``queries`` of ``sequences``: ``pattern`` is [b, H, q, K]."""
        real = self._queries.real[sequences, queries]  # [b, q]
        self._dtype = pattern.dtype
        # No key beyond the block's last query can have mass in a causal layer.
        stop = queries.stop if self._visibility.causal else pattern.shape[-1]
        pattern = pattern[..., :stop].float()  # [b, H, q, k]
        if not bool(real.all()):
            # What padding queries attend to is arbitrary, and may be NaN.
            pattern = pattern.masked_fill(~real[:, None, :, None], 0.0)
        classes = self._keys.classes[sequences, :, :stop]  # [b, C + 1, k]
        # Written this way round because a product with few columns is slow on CPUs.
        masses = classes[:, None] @ pattern.transpose(-1, -2)  # [b, H, C + 1, q]
        self._masses[sequences, :, queries] = masses.transpose(-1, -2)
        logarithm = pattern.clamp_min(torch.finfo(torch.float32).tiny).log_()
        self._entropy[sequences, :, queries] = logarithm.mul_(pattern).sum(-1).neg_()
        weights = self._queries.query_weights[sequences, None, :, queries]  # [b, 1, 2, q]
        if not self._queries.in_corner(queries):
            weights = weights[:, :, :1]
        self._received[sequences, :, : weights.shape[2], :stop] += weights @ pattern

    def finish(
        self, values: Tensor | None, outputs: Tensor | None, *, sums_to_one: bool
    ) -> AttentionObservation:
        """The observation, when all rows were added.

        Args:
            values: [B, G, K, d_head] value vectors by key and value head, or ``None``.
            outputs: [B, Q, H, d_head] rows of A @ V by query head, or ``None``.
            sums_to_one: whether the rows of the pattern must sum to 1; less is allowed otherwise.

        Raises:
            ProofError: when the rows' sums show that this is no attention pattern.
        """
        visibility, keys, real, query_real = self._visibility, self._keys, self._keys.real, self._queries.real
        row_sums = self._masses[..., -1]  # [B, H, Q]
        self._check_sums(row_sums, sums_to_one=sums_to_one)
        received, corner = self._received.unbind(2)  # [B, H, K] each
        value_norms = mean_value_norms = output_norms = None
        if values is not None:
            values = values.float() * real[:, None, :, None]  # [B, G, K, d_head]
            value_norms = values.norm(dim=-1)
            counts = real.sum(1).clamp_min(1)  # [B]
            mean_value_norms = (values.sum(2) / counts[:, None, None]).norm(dim=-1)  # [B, G]
        if outputs is not None:
            output_norms = outputs.float().norm(dim=-1).transpose(1, 2) * query_real[:, None]  # [B, H, Q]
        finite = torch.ones(len(real), dtype=torch.bool, device=real.device)
        for part in (received, self._masses, value_norms, mean_value_norms, output_norms):
            if part is not None:
                finite &= part.isfinite().flatten(1).all(1)
        return AttentionObservation(
            site=self.site,
            batch=keys.batch,
            real=real.cpu(),
            query_real=query_real.cpu(),
            causal=visibility.causal,
            received=(received * real[:, None]).cpu(),
            seen_by=visibility.seen_by.cpu(),
            visible=visibility.visible.cpu(),
            class_mass=self._masses[..., :-1].cpu(),
            row_sums=row_sums.cpu(),
            entropy=self._entropy.cpu(),
            corner_received=keys.gather_corner(corner).cpu() if visibility.causal else None,
            corner_seen_by=visibility.corner_seen_by.cpu() if visibility.causal else None,
            value_norms=None if value_norms is None else value_norms.cpu(),
            mean_value_norms=None if mean_value_norms is None else mean_value_norms.cpu(),
            output_norms=None if output_norms is None else output_norms.cpu(),
            finite=finite.cpu(),
        )

    def _check_sums(self, row_sums: Tensor, *, sums_to_one: bool) -> None:
        sums = row_sums.transpose(1, 2)[self._queries.real]  # [queries, H]
        sums = sums[sums.isfinite()]
        if not len(sums):
            return
        low, high = float(sums.min()), float(sums.max())
        tolerance = ROW_SUM_TOLERANCE.get(self._dtype, 1e-4)
        if high > 1 + tolerance or low < (1 - tolerance if sums_to_one else -tolerance):
            raise ProofError(
                f"{self.site}: rows of the attention pattern sum to {low:.6g} .. {high:.6g}, expected 1"
            )
