"""Digest: what is computed once per site and batch while the tensor is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlierscope.corpus.token_order import TokenOrder
from outlierscope.stats.compiled import compiled
from outlierscope.stats.power_sums import Array, PowerSums, combined, over_dims, sums_from_shifted
from outlierscope.stats.reading import read

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.stats.reading import Reading
    from outlierscope.stats.reading_plan import Plan

LOCATED = 32
"""How many non-finite values are located."""

NOWHERE = torch.zeros(0, 3, dtype=torch.int64)
"""Places of non-finite values where there are none; shared, never written."""

TINY_VARIANCE = 1e-16
"""Below this variance fourth powers leave the normal range of float32."""

CANCELLED = 0.01
"""A sequence's m4 below this share of the terms that make it is computed again in float64."""

OVERFLOWN, POOR, NARROW = 1, 2, 4
"""What is not right yet, bit by bit: fourth powers of a sequence that are not finite, a sequence's power sums
without digits, dims that are constant or whose variance is tiny."""


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
        inf_norms: [B] float64 largest magnitude of each sequence; -inf where it has no token.
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
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    inf_norms: Array
    slot_low: NDArray[np.float32]
    slot_high: NDArray[np.float32]
    token_absmax: NDArray[np.float32]
    nonfinite: int
    nonfinite_located: Tensor

    @property
    def tokens(self) -> int:
        """Tokens used."""
        return len(self.token_absmax)

    @property
    def counts(self) -> list[int]:
        """Tokens used of each sequence."""
        return self.order.counts

    @cached_property
    def dim_absmax(self) -> NDArray[np.float32]:
        """[d] float32 largest magnitude of each dim; only where there are tokens."""
        largest: NDArray[np.float32] = np.maximum(self.maximum, -self.minimum)
        return largest

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
    are added in float64. Sequences whose fourth powers leave float32, and dims whose variance does, are done
    again in float64.

    Raises:
        ValueError: for a tensor of other sequences or positions than the batch has.
    """
    if tuple(tensor.shape[:2]) != batch.order.shape:  # compiled loops do not look at bounds
        raise ValueError(
            f"a tensor of {tensor.shape[0]} x {tensor.shape[1]} positions is none of this batch, "
            f"which has {batch.order.shape[0]} x {batch.order.shape[1]}"
        )
    flat = tensor.detach().reshape(-1, tensor.shape[2])  # [B * T, d]
    reading = read(flat, batch.order)
    digest, wrong = _digest(reading, batch.order, exact=flat.dtype == torch.float64)
    if wrong & OVERFLOWN:
        infinite = ~flat.index_select(0, batch.order.on(flat.device)).isfinite().all(1).cpu()  # [N]
        if infinite.any():
            dropped = batch.order.rows[infinite].sort().values
            used = batch.real.cpu().flatten()
            used = used.index_fill(0, dropped, value=False).view(batch.order.shape)
            order = TokenOrder.of(used, batch.classes, batch.order.positions)
            reading = read(flat, order)
            digest, wrong = _digest(reading, order, exact=flat.dtype == torch.float64)
            digest.nonfinite, digest.nonfinite_located = len(dropped), _locate(flat, dropped, batch)
    if wrong & (OVERFLOWN | POOR):
        _sum_again(digest, reading, flat)
    if wrong and digest.tokens:
        _mend(digest, flat)
    return digest


def _digest(reading: Reading, order: TokenOrder, *, exact: bool) -> tuple[Digest, int]:
    """The digest as the arithmetic of the reading gives it, and what is wrong with it."""
    counts, dims = order.count_array, len(reading.shift)
    sums, pooled, terms = sums_from_shifted(counts, reading.shift.astype(np.float64), reading.powers)
    digest = Digest(
        order=order,
        plan=reading.plan,
        sums=sums,
        pooled=pooled,
        minimum=np.empty(dims, dtype=np.float32),
        maximum=np.empty(dims, dtype=np.float32),
        inf_norms=np.empty(len(counts)),
        slot_low=reading.slot_low,
        slot_high=reading.slot_high,
        token_absmax=reading.token_absmax,
        nonfinite=0,
        nonfinite_located=NOWHERE,
    )
    wrong = _doubt(counts * dims, pooled.m2, pooled.m4, terms)
    wrong |= _find_extent(
        reading.slot_low,
        reading.slot_high,
        sums.m2,
        -1.0 if exact else TINY_VARIANCE * len(reading.token_absmax),
        digest.minimum,
        digest.maximum,
    )
    _find_norms(reading.token_absmax, order.bound_array, digest.inf_norms)
    return digest, wrong


@compiled
def _doubt(count: Array, m2: Array, m4: Array, terms: Array) -> int:
    """``OVERFLOWN`` and ``POOR``, each where it holds of the pooled sums of any sequence [B]."""
    wrong = 0
    for b in range(len(count)):
        if not np.isfinite(terms[b]):
            wrong |= OVERFLOWN
        elif m4[b] < CANCELLED * terms[b] or m2[b] < TINY_VARIANCE * count[b]:
            wrong |= POOR
    return wrong


@compiled
def _find_norms(token_absmax: NDArray[np.float32], bounds: NDArray[np.int64], norms: Array) -> None:
    """Into ``norms`` [B], the largest of each sequence."""
    for b in range(len(norms)):
        largest = np.float32(-np.inf)
        for token in range(bounds[b], bounds[b + 1]):
            largest = max(largest, token_absmax[token])
        norms[b] = largest


@compiled
def _find_extent(
    slot_low: NDArray[np.float32],
    slot_high: NDArray[np.float32],
    m2: Array,
    least: float,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> int:
    """Into ``low`` and ``high`` [d], the extremes over all slots [S, d].

    Returns:
        ``NARROW`` if any dim is constant, or has an m2 below ``least``.
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
    return NARROW if wrong else 0


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


def _sum_again(digest: Digest, reading: Reading, flat: Tensor) -> None:
    """Sum again those sequences in float64 that float32 does not serve."""
    order = digest.order
    counts = order.count_array
    overflown = ~np.isfinite(reading.powers[3].sum(1))  # [B]
    reading.powers[:, overflown] = 0.0
    shift = np.nan_to_num(reading.shift.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    digest.sums, pooled, terms = sums_from_shifted(np.where(overflown, 0.0, counts), shift, reading.powers)
    pooled.count, digest.pooled = counts * len(shift), pooled
    poor = (pooled.m4 < CANCELLED * terms) | (pooled.m2 < TINY_VARIANCE * pooled.count)  # [B]
    for sequence in (overflown | poor).nonzero()[0].tolist():
        start, stop = order.bounds[sequence : sequence + 2]
        rows = order.rows[start:stop].to(flat.device)
        exact = PowerSums.of(_on_cpu(flat.index_select(0, rows)))  # [d]
        if overflown[sequence]:
            digest.sums = combined(digest.sums, exact)
        pooled.assign(sequence, over_dims(exact))


def _mend(digest: Digest, flat: Tensor) -> None:
    """Do dims again whose powers are below the range of float32; constant ones are known exactly."""
    sums = digest.sums
    suspect = sums.m2 < TINY_VARIANCE * digest.tokens  # [d]
    constant = digest.minimum == digest.maximum
    if constant.any():
        nought = np.zeros(())
        sums.assign(constant, PowerSums(sums.count, digest.minimum[constant], nought, nought, nought))
    if suspect.any():
        dims = torch.from_numpy((suspect & ~constant).nonzero()[0]).to(flat.device)
        rows = digest.order.on(flat.device)[:, None]
        sums.assign(dims.cpu().numpy(), PowerSums.of(_on_cpu(flat[rows, dims])))
