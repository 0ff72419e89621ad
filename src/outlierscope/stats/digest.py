"""Digest: what is computed once per site and batch while the tensor is in cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from outlierscope.stats.power_sums import PowerSums, from_shifted, over_dims

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch

BLOCK_ELEMENTS = 400_000
"""Elements of one block: two float32 buffers of it stay in the last level cache, and the cost of a call
from Python is small beside the work."""

SHIFT_ROWS = 32
"""Rows of a sequence whose mean is the shift of its power sums. Any k of n rows have a mean within
sqrt(n / k - 1) standard deviations of that of all, so that little is lost by cancellation."""

LOCATED = 32
"""How many non-finite values are located."""

TINY_VARIANCE = 1e-16
"""Below this variance fourth powers leave the normal range of float32."""


@dataclass
class Digest:
    """Figures of one tensor [B, T, d]; on the CPU, padding and tokens with a non-finite value left out.

    Attributes:
        count: [B] int64, tokens used of each sequence.
        used: [B, T] bool, which tokens are real and finite.
        sums: mean and central power sums by sequence and dim, [B, d] float64 each.
        class_minimum: [B, C, d] float32 by sequence, token class and dim; +inf where there is no token.
        class_maximum: the same; -inf where there is no token.
        minimum: [B, d] float32 over all classes; +inf where there is no token.
        maximum: the same; -inf where there is no token.
        token_minimum: [B, T] float32 over the dims; +inf where the token is not used.
        token_maximum: the same; -inf where the token is not used.
        nonfinite: real tokens left out because one of their values is NaN or infinite.
        nonfinite_located: [<= 32, 3] int64 (sequence id, position, dim) of the first non-finite values.
    """

    count: Tensor
    used: Tensor
    sums: PowerSums
    class_minimum: Tensor
    class_maximum: Tensor
    minimum: Tensor
    maximum: Tensor
    token_minimum: Tensor
    token_maximum: Tensor
    nonfinite: int
    nonfinite_located: Tensor

    @property
    def tokens(self) -> int:
        """Tokens used."""
        return int(self.count.sum())

    @cached_property
    def absmax(self) -> Tensor:
        """[B, T] float32 largest magnitude of each token; -inf where the token is not used."""
        return torch.maximum(self.token_maximum, -self.token_minimum)

    @cached_property
    def dim_absmax(self) -> Tensor:
        """[B, d] float32 largest magnitude of each dim; -inf where there is no token."""
        return torch.maximum(self.maximum, -self.minimum)

    @cached_property
    def pooled(self) -> PowerSums:
        """Mean and central power sums over all values [T, d] of each sequence; [B] float64 each."""
        return over_dims(self.sums)

    @cached_property
    def rows(self) -> list[Tensor]:
        """For each sequence the used places in T, ascending."""
        return [used.nonzero().flatten() for used in self.used]

    def values(self, tensor: Tensor, sequence: int) -> Tensor:
        """[T_used, d] float32 on the tensor's device: the used rows of one sequence."""
        return tensor[sequence].index_select(0, self.rows[sequence].to(tensor.device)).float()


def digest_tensor(tensor: Tensor, batch: Batch) -> Digest:
    """Digest a tensor [B, T, d] of any float dtype on any device.

    Arithmetic inside of a block is float32 (float64 for float64 tensors) around a shift near each dim's mean;
    blocks and sequences are combined in float64. Sequences with non-finite values, or with values whose
    fourth powers leave float32, are done again in float64.
    """
    return _Reader(tensor, batch).digest()


class _Reader:
    """One pass over a tensor: fills the tables that a ``Digest`` is made of."""

    def __init__(self, tensor: Tensor, batch: Batch) -> None:
        self.batch = batch
        self.order = batch.order
        self.length, self.dims = tensor.shape[1:]
        self.flat = tensor.detach().reshape(-1, self.dims)  # [B * T, d]
        self.device = tensor.device
        self.work = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        self.sequences, self.classes = len(tensor), len(batch.class_names)
        self.rows = self.order.rows_on(self.device)  # [N]
        self.class_minimum = self._full(self.sequences * self.classes, self.dims, value=torch.inf)
        self.class_maximum = self._full(self.sequences * self.classes, self.dims, value=-torch.inf)

    def _full(self, *shape: int, value: float) -> Tensor:
        return torch.full(shape, value, dtype=self.work, device=self.device)

    def digest(self) -> Digest:
        blocks = self.order.blocks(max(1, BLOCK_ELEMENTS // max(1, self.dims)))
        shift = self._shift()  # [B, d]
        powers = torch.zeros(4, len(blocks), self.dims, dtype=self.work, device=self.device)
        low = torch.empty(
            len(self.rows), dtype=self.work, device=self.device
        )  # [N], in the order of self.rows
        high = torch.empty_like(low)
        self._read(blocks, shift, powers, low, high)

        count = torch.tensor(self.order.counts)  # [B]
        powers = self._by_sequence(blocks, powers.cpu().double())  # [4, B, d]
        sums = from_shifted(count, shift.cpu().double(), powers)
        class_minimum = self.class_minimum.view(self.sequences, self.classes, self.dims).float().cpu()
        class_maximum = self.class_maximum.view(self.sequences, self.classes, self.dims).float().cpu()
        result = Digest(
            count=count,
            used=self.batch.real.cpu(),
            sums=sums,
            class_minimum=class_minimum,
            class_maximum=class_maximum,
            minimum=class_minimum.amin(1),
            maximum=class_maximum.amax(1),
            token_minimum=self._by_token(low.float().cpu(), torch.inf),
            token_maximum=self._by_token(high.float().cpu(), -torch.inf),
            nonfinite=0,
            nonfinite_located=torch.empty(0, 3, dtype=torch.int64),
        )
        self._mend(result)
        return result

    def _shift(self) -> Tensor:
        """[B, d] mean of some evenly spaced rows of each sequence; 0 where it has none."""
        rows = self.order.spaced(SHIFT_ROWS)  # [B', k]
        sample = self.flat.index_select(0, rows.flatten().to(self.device)).to(self.work)
        means = sample.view(*rows.shape, self.dims).mean(1)  # [B', d]
        if len(rows) == self.sequences:
            return means
        shift = self._full(self.sequences, self.dims, value=0.0)
        shift[torch.tensor(self.order.filled, device=self.device)] = means
        return shift

    def _read(
        self, blocks: list[tuple[int, int, int]], shift: Tensor, powers: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Read every block once: extremes by class and by token, power sums around the shift."""
        if not blocks:
            return
        largest = max(stop - start for _, start, stop in blocks)
        buffers = torch.empty(2, largest, self.dims, dtype=self.work, device=self.device)
        same_dtype = self.flat.dtype == self.work
        shifts = shift.unbind(0)
        runs = iter(self.order.runs)
        run = next(runs)
        for number, (sequence, start, stop) in enumerate(blocks):
            x, y = buffers[0, : stop - start], buffers[1, : stop - start]
            if same_dtype:
                torch.index_select(self.flat, 0, self.rows[start:stop], out=x)
            else:
                x.copy_(self.flat.index_select(0, self.rows[start:stop]))
            torch.amin(x, 1, out=low[start:stop])
            torch.amax(x, 1, out=high[start:stop])
            while True:
                first, last = max(run.start, start), min(run.stop, stop)
                self._class_extremes(
                    x[first - start : last - start],
                    run.sequence * self.classes + run.token_class,
                    whole=last - first == run.stop - run.start,
                )
                if run.stop <= stop:
                    run = next(runs, run)
                if last == stop:
                    break
            x.sub_(shifts[sequence])
            torch.sum(x, 0, out=powers[0, number])
            torch.mul(x, x, out=y)
            torch.sum(y, 0, out=powers[1, number])
            torch.mul(x, y, out=x)
            torch.sum(x, 0, out=powers[2, number])
            torch.mul(y, y, out=y)
            torch.sum(y, 0, out=powers[3, number])

    def _class_extremes(self, x: Tensor, slot: int, *, whole: bool) -> None:
        minimum, maximum = self.class_minimum[slot], self.class_maximum[slot]
        if whole:
            torch.amin(x, 0, out=minimum)
            torch.amax(x, 0, out=maximum)
        else:
            torch.minimum(minimum, x.amin(0), out=minimum)
            torch.maximum(maximum, x.amax(0), out=maximum)

    def _by_sequence(self, blocks: list[tuple[int, int, int]], powers: Tensor) -> Tensor:
        owners = [sequence for sequence, _, _ in blocks]
        if owners == list(range(self.sequences)):
            return powers
        total = torch.zeros(4, self.sequences, self.dims, dtype=torch.float64)
        return total.index_add_(1, torch.tensor(owners, dtype=torch.int64), powers)

    def _by_token(self, values: Tensor, absent: float) -> Tensor:
        table = torch.full((self.sequences * self.length,), absent)
        table[self.order.rows] = values
        return table.view(self.sequences, self.length)

    def _mend(self, result: Digest) -> None:
        """Do sequences and dims again on which float32 failed, and drop tokens with non-finite values."""
        sums, n = result.sums, result.count.clamp(min=1)[:, None]
        bad = (~sums.m4.isfinite().all(1)).nonzero().flatten().tolist()
        for sequence in bad:
            self._again(result, sequence)
        constant = result.minimum == result.maximum  # [B, d]
        if constant.any():
            sums.mean[constant] = result.minimum[constant].double()
            for power in (sums.m2, sums.m3, sums.m4):
                power[constant] = 0.0
        small = (sums.m2 < TINY_VARIANCE * n) & ~constant & (result.count > 0)[:, None]
        if small.any():
            for sequence in small.any(1).nonzero().flatten().tolist():
                dims = small[sequence].nonzero().flatten()
                rows = result.rows[sequence] + sequence * self.length
                values = self.flat[rows.to(self.device)[:, None], dims.to(self.device)].double().cpu()
                sums.assign((sequence, dims), PowerSums.of(values))

    def _again(self, result: Digest, sequence: int) -> None:
        start, stop = self.order.bounds[sequence : sequence + 2]
        rows = self.rows[start:stop].sort().values
        values = self.flat.index_select(0, rows)  # [T_real, d]
        finite = values.isfinite()
        keep = finite.all(1)
        if not keep.all():
            where = (~finite).nonzero()[:LOCATED].cpu()  # [<= 32, 2], position first
            places = rows.cpu()[where[:, 0]] - sequence * self.length
            located = torch.stack(
                [
                    self.batch.sequence_ids.cpu()[sequence].expand(len(where)),
                    self.order.positions[sequence, places],
                    where[:, 1],
                ],
                1,
            )
            result.nonfinite += int((~keep).sum())
            result.nonfinite_located = first_located(torch.cat([result.nonfinite_located, located]))
        values = values[keep].double().cpu()  # [T_used, d]
        places = rows[keep].cpu() - sequence * self.length
        dropped = torch.ones(self.length, dtype=torch.bool)
        dropped[places] = False
        result.used = result.used.clone()
        result.used[sequence] &= ~dropped
        result.count[sequence] = len(values)
        result.sums.assign(sequence, PowerSums.of(values))
        result.token_minimum[sequence, dropped] = torch.inf
        result.token_maximum[sequence, dropped] = -torch.inf
        classes = self.batch.classes.cpu()[sequence, places]
        for token_class in range(self.classes):
            of_class = values[classes == token_class].float()
            result.class_minimum[sequence, token_class] = of_class.amin(0) if len(of_class) else torch.inf
            result.class_maximum[sequence, token_class] = of_class.amax(0) if len(of_class) else -torch.inf
        result.minimum[sequence] = result.class_minimum[sequence].amin(0)
        result.maximum[sequence] = result.class_maximum[sequence].amax(0)


def first_located(located: Tensor) -> Tensor:
    """The first ``LOCATED`` rows of [K, 3] (sequence, position, dim), in that order, without repeats."""
    return torch.unique(located, dim=0)[:LOCATED]
