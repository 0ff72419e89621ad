"""Digest: what is computed once per site and batch while the tensor is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outlierscope.corpus.token_order import TokenOrder
from outlierscope.stats.compiled import compiled
from outlierscope.stats.power_sums import Array, PowerSums, combined, over_dims, sums_from_shifted
from outlierscope.stats.reading import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outlierscope.corpus.batch import Batch
    from outlierscope.stats.reading_plan import Plan

LOCATED = 32
"""How many non-finite values are located."""

TINY_VARIANCE = 1e-16
"""Below this variance fourth powers leave the normal range of float32."""

CANCELLED = 0.01
"""A sequence's m4 below this share of the terms that make it is computed again in float64."""


@dataclass
class Digest:
    """Figures of one tensor [B, T, d]; on the CPU. Padding and tokens with a non-finite value are left out.

    Attributes:
        order: the tokens used.
        plan: how they were cut into slots, rows of one sequence and class that were reduced together.
        sums: mean and central power sums of each dim over all tokens used, [d].
        pooled: mean and central power sums of each sequence over all its values, [B].
        minimum: [d] float32 smallest value of each dim; infinite where there are no tokens.
        maximum: [d] float32 largest.
        slot_low: [S, d] float32, smallest value of each slot and dim.
        slot_high: [S, d] float32, largest.
        token_absmax: [N] float32 largest magnitude of each token used, in the order of ``order.rows``.
        nonfinite: real tokens left out because one of their values is NaN or infinite.
        nonfinite_located: [<= 32, 3] int64 (sequence id, position, dim) of the first non-finite values.
    """

    order: TokenOrder
    plan: Plan
    sums: PowerSums
    pooled: PowerSums
    minimum: Tensor
    maximum: Tensor
    slot_low: Tensor
    slot_high: Tensor
    token_absmax: Tensor
    nonfinite: int
    nonfinite_located: Tensor

    @property
    def tokens(self) -> int:
        """Tokens used."""
        return len(self.order.rows)

    @property
    def counts(self) -> list[int]:
        """Tokens used of each sequence."""
        return self.order.counts

    @cached_property
    def dim_absmax(self) -> Tensor:
        """[d] float32 largest magnitude of each dim; only where there are tokens."""
        return torch.maximum(self.maximum, -self.minimum)

    @cached_property
    def inf_norms(self) -> Array:
        """[B] largest magnitude of each sequence; -inf where it has no token."""
        if all(self.counts):
            absmax = self.token_absmax.numpy()
            largest: Array = np.maximum.reduceat(absmax, self.order.bounds[:-1]).astype(np.float64)
            return largest
        norms = np.full(len(self.counts), -np.inf)
        filled = np.array(self.counts) > 0
        starts = np.array(self.order.bounds[:-1])[filled]
        norms[filled] = np.maximum.reduceat(self.token_absmax.numpy(), starts) if len(starts) else 0.0
        return norms

    def places(self, sequence: int) -> Tensor:
        """[T_used] int64, the places in T of one sequence's used tokens, ascending."""
        start, stop = self.order.bounds[sequence : sequence + 2]
        return self.order.rows[start:stop].sort().values - sequence * self.order.shape[1]

    def values(self, tensor: Tensor, sequence: int) -> Tensor:
        """[T_used, d] float32 on the tensor's device: the used rows of one sequence."""
        return tensor[sequence].index_select(0, self.places(sequence).to(tensor.device)).float()


def digest_tensor(tensor: Tensor, batch: Batch) -> Digest:
    """Digest a tensor [B, T, d] of any float dtype on any device.

    Arithmetic on few rows is float32 (float64 for float64 tensors) around a shift near each dim's mean; their sums
    are added in float64. Sequences whose fourth powers leave float32, and dims
    whose variance does, are done again in float64.
    """
    flat = tensor.detach().reshape(-1, tensor.shape[2])  # [B * T, d]
    order, nonfinite, located = batch.order, 0, torch.zeros(0, 3, dtype=torch.int64)
    reading = read(flat, order)
    overflown = _overflown(reading.powers)
    if overflown:
        infinite = ~flat.index_select(0, order.on(flat.device)).isfinite().all(1).cpu()  # [N]
        if infinite.any():
            dropped = order.rows[infinite].sort().values
            located = _locate(flat, dropped, batch)
            nonfinite = len(dropped)
            used = batch.real.cpu().flatten()
            used = used.index_fill(0, dropped, value=False).view(order.shape)
            order = TokenOrder.of(used, batch.classes, order.positions)
            reading = read(flat, order)
            overflown = _overflown(reading.powers)
    sums, pooled = _sums(reading.powers, order, _on_cpu(reading.shift), overflown, flat)
    low, high = torch.empty(flat.shape[1]), torch.empty(flat.shape[1])
    least = TINY_VARIANCE * len(order.rows) if flat.dtype != torch.float64 else -1.0
    mend = _find_extent(
        reading.slot_low.numpy(), reading.slot_high.numpy(), sums.m2, least, low.numpy(), high.numpy()
    )
    digest = Digest(
        order=order,
        plan=reading.plan,
        sums=sums,
        pooled=pooled,
        minimum=low,
        maximum=high,
        slot_low=reading.slot_low,
        slot_high=reading.slot_high,
        token_absmax=reading.token_absmax,
        nonfinite=nonfinite,
        nonfinite_located=located,
    )
    if mend and digest.tokens:
        _mend(digest, flat)
    return digest


@compiled
def _find_extent(
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
    m2: Array,
    least: float,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> bool:
    """Into ``low`` and ``high`` [d], the extremes over all slots [S, d].

    Returns:
        Whether any dim is constant, or has an m2 below ``least``.
    """
    low[:] = np.inf
    high[:] = -np.inf
    for slot in range(len(slot_low)):
        for j in range(len(low)):
            low[j] = min(low[j], slot_low[slot, j])
            high[j] = max(high[j], slot_high[slot, j])
    wrong = False
    for j in range(len(low)):
        wrong = wrong or low[j] == high[j] or m2[j] < least
    return wrong


def _locate(flat: Tensor, rows: Tensor, batch: Batch) -> Tensor:
    """[<= 32, 3] (sequence id, position, dim) of the first non-finite values in ``rows``."""
    where = (~flat.index_select(0, rows.to(flat.device)).isfinite()).nonzero().cpu()  # [K, 2]
    sequence, place = rows[where[:, 0]] // batch.order.shape[1], rows[where[:, 0]] % batch.order.shape[1]
    ids = batch.sequence_ids.cpu()[sequence]
    return first_located(torch.stack([ids, batch.order.positions[sequence, place], where[:, 1]], 1))


def first_located(located: Tensor) -> Tensor:
    """The first ``LOCATED`` rows of [K, 3] (sequence, position, dim), in that order, without repeats."""
    return torch.as_tensor(torch.unique(located, dim=0)[:LOCATED])


def _on_cpu(tensor: Tensor) -> Array:
    """As a float64 array."""
    array: Array = tensor.cpu().double().numpy()
    return array


def _overflown(powers: Array) -> list[int]:
    """The sequences with a fourth power beyond the arithmetic's range, or a non-finite value."""
    found: list[int] = (~np.isfinite(powers[3].sum(1))).nonzero()[0].tolist()
    return found


def _sums(
    powers: Array, order: TokenOrder, shift: Array, overflown: list[int], flat: Tensor
) -> tuple[PowerSums, PowerSums]:
    """Power sums by dim and by sequence; sequences that float32 does not serve are read again in float64."""
    counts = np.array(order.counts, dtype=np.float64)
    fast = counts
    if overflown:
        fast = counts.copy()
        fast[overflown] = 0.0
        powers[:, overflown] = 0.0
        shift = np.nan_to_num(shift, nan=0.0, posinf=0.0, neginf=0.0)
    sums, pooled, terms = sums_from_shifted(fast, shift, powers)
    pooled.count = counts * len(shift)
    poor = (pooled.m4 < CANCELLED * terms) | (pooled.m2 < TINY_VARIANCE * pooled.count)  # [B]
    again = sorted({*overflown, *poor.nonzero()[0].tolist()}) if overflown or poor.any() else []
    for sequence in again:
        start, stop = order.bounds[sequence : sequence + 2]
        rows = order.rows[start:stop].to(flat.device)
        exact = PowerSums.of(_on_cpu(flat.index_select(0, rows)))  # [d]
        if sequence in overflown:
            sums = combined(sums, exact)
        pooled.assign(sequence, over_dims(exact))
    return sums, pooled


def _mend(digest: Digest, flat: Tensor) -> None:
    """Do dims again whose powers are below the range of float32; constant ones are known exactly."""
    sums = digest.sums
    suspect = sums.m2 < TINY_VARIANCE * digest.tokens  # [d]
    minimum = digest.minimum.numpy()
    constant = minimum == digest.maximum.numpy()
    if constant.any():
        nought = np.zeros(())
        sums.assign(constant, PowerSums(sums.count, minimum[constant], nought, nought, nought))
    if suspect.any():
        dims = torch.from_numpy((suspect & ~constant).nonzero()[0]).to(flat.device)
        rows = digest.order.on(flat.device)[:, None]
        sums.assign(dims.cpu().numpy(), PowerSums.of(_on_cpu(flat[rows, dims])))
