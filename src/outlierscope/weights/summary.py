"""Summaries of weight matrices and norm parameters: each computed from one tensor, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

BLOCK_ELEMENTS = 2**18
"""Entries of a matrix that are looked at together: 1 MiB as float32, so that they stay in cache."""

TOP = 5
"""How many of the largest ratios are kept in any case."""

QUANTILES = torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class RatioFigures:
    """How the ratios of all columns, or of all rows, of one matrix are distributed.

    Attributes:
        count: how many there are.
        mean: their mean.
        std: their unbiased standard deviation; 0 for a single one.
        median: their median.
        quantile_99: what 99 % of them do not exceed, with linear interpolation between neighbours.
        largest: the largest.
    """

    count: int
    mean: float
    std: float
    median: float
    quantile_99: float
    largest: float

    @classmethod
    def of(cls, ratios: Tensor) -> RatioFigures:
        """Figures of the ratios [n], n > 0.

        >>> RatioFigures.of(torch.tensor([1.0, 2.0, 3.0]))
        RatioFigures(count=3, mean=2.0, std=1.0, median=2.0, quantile_99=2.98, largest=3.0)
        """
        exact = ratios.double()
        median, high, largest = exact.quantile(QUANTILES).tolist()
        std = float(exact.std()) if len(ratios) > 1 else 0.0
        return cls(len(ratios), float(exact.mean()), std, median, high, largest)


@dataclass(slots=True)
class MatrixSummary:
    """What is kept of one weight matrix or norm parameter.

    Of an expert of a mixture, of which a model may have tens of thousands, the ratios of few columns and rows are kept:
    those that a rule may name and the ``TOP`` largest.

    Attributes:
        stack: stack of the model.
        layer: block index from 0, ``None`` outside of the blocks.
        role: as in ``Matrix.role``.
        module: full name of the module that owns it.
        parameter: full name of the parameter.
        column_ratio: [in] float32, max_i abs(W[i, j]) / mean_i abs(W[i, j]) of every column j (input neuron);
            An et al. 2025, section on weight outliers. 0 for a column of zeros. Of experts: [kept], in order of
            ``column_index``. Empty for norms.
        row_ratio: [out] float32, the same for rows; of experts [kept], in order of ``row_index``. Empty for norms.
        column_index: [kept] int64, which columns are kept of an expert; empty otherwise, where all are.
        row_index: [kept] int64, which rows are kept of an expert; empty otherwise.
        column_argmax: [in] or [kept] int64, the row i at which column j is largest in magnitude, the first if several.
        column_extreme: [in] or [kept] float32, that signed entry.
        values: [d] float32, the parameter itself for norms; empty for matrices.
        column_figures: distribution of the ratios of all columns, kept or not; ``None`` for norms.
        row_figures: distribution of the ratios of all rows, kept or not; ``None`` for norms.
        absmax: largest magnitude of a finite entry.
        nonfinite: how many entries are NaN or infinite; they enter nothing else.
        expert: index of the expert in a mixture, else ``None``.
        stored: name in the checkpoint's files; ``None`` of a model in memory.
        rows: first and last + 1 row in the parameter's matrix [out, in] of what is summarised; ``None`` for all. Indices of
            rows above count from the first.
        columns: the same of columns.
    """

    stack: str
    layer: int | None
    role: str
    module: str
    parameter: str
    column_ratio: Tensor
    row_ratio: Tensor
    column_index: Tensor
    row_index: Tensor
    column_argmax: Tensor
    column_extreme: Tensor
    values: Tensor
    column_figures: RatioFigures | None
    row_figures: RatioFigures | None
    absmax: float
    nonfinite: int
    expert: int | None = None
    stored: str | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class WeightPlace:
    """Whose summary it is; the attributes are those of ``MatrixSummary``."""

    stack: str
    layer: int | None
    role: str
    module: str
    parameter: str
    expert: int | None = None
    stored: str | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None


class MatrixScan:
    """Column and row figures of one matrix W [out, in], gathered from blocks of it in any order.

    Arithmetic is float32 within a block, sums over blocks are float64.

    >>> scan = MatrixScan(2, 3)
    >>> scan.add(torch.tensor([[1.0, 0.0, -8.0], [3.0, 0.0, 2.0]]))
    >>> scan.summary(WeightPlace("decoder", 0, "down", "mlp.down", "mlp.down.weight")).column_ratio
    tensor([1.5000, 0.0000, 1.6000])
    """

    def __init__(self, rows: int, columns: int, device: torch.device | str = "cpu") -> None:
        self._column_top = torch.full((columns,), -1.0, device=device)
        self._column_sum = torch.zeros(columns, dtype=torch.float64, device=device)
        self._column_lost = torch.zeros(columns, dtype=torch.int64, device=device)
        self._column_argmax = torch.zeros(columns, dtype=torch.int64, device=device)
        self._column_extreme = torch.zeros(columns, device=device)
        self._room = torch.empty(0, device=device)
        self._row_top = torch.zeros(rows, device=device)
        self._row_sum = torch.zeros(rows, dtype=torch.float64, device=device)
        self._row_lost = torch.zeros(rows, dtype=torch.int64, device=device)

    def add(self, block: Tensor, row: int = 0, column: int = 0) -> None:
        """Take in one block of W [r, c], of any floating dtype, whose first entry is W[row, column]."""
        rows, columns = slice(row, row + block.shape[0]), slice(column, column + block.shape[1])
        # The magnitudes have room of their own, as fresh memory for each block would cost more than the sums.
        if self._room.numel() < block.numel():
            self._room = torch.empty(block.numel(), device=block.device)
        magnitude = self._room[: block.numel()].view(block.shape).copy_(block).abs_()  # [r, c]
        row_top = magnitude.amax(dim=1)  # [r]
        # A NaN or an infinity anywhere shows in its row's maximum.
        if not bool(row_top.isfinite().all()):
            lost = ~magnitude.isfinite()
            self._column_lost[columns] += lost.sum(dim=0)
            self._row_lost[rows] += lost.sum(dim=1)
            row_top = magnitude.masked_fill_(lost, 0.0).amax(dim=1)
        self._row_top[rows] = torch.maximum(self._row_top[rows], row_top)
        self._row_sum[rows] += magnitude.sum(dim=1)
        self._column_sum[columns] += magnitude.sum(dim=0)
        self._update_column_extremes(block, magnitude, row, column)

    def _update_column_extremes(self, block: Tensor, magnitude: Tensor, row: int, column: int) -> None:
        block_top = magnitude.amax(dim=0)  # [c]
        # An argmax is much dearer than a maximum, and after the first blocks few columns have a new one.
        better = (block_top > self._column_top[column : column + len(block_top)]).nonzero()[:, 0]
        if not len(better):
            return
        place = magnitude[:, better].argmax(dim=0)  # [better]
        self._column_top[better + column] = block_top[better]
        self._column_argmax[better + column] = place + row
        self._column_extreme[better + column] = torch.copysign(
            block_top[better], block[place, better].float()
        )

    def summary(self, place: WeightPlace, kept_sigma: float = 0.0) -> MatrixSummary:
        """What was gathered, on the CPU.

        Args:
            place: whose it is.
            kept_sigma: of an expert, ratios of columns and rows further above the mean than this many standard
                deviations are kept, and the ``TOP`` largest.
        """
        rows, columns = len(self._row_top), len(self._column_top)
        column_top = self._column_top.clamp_min(0.0)
        top = torch.cat([column_top, self._row_top])
        column_ratio = _ratio(column_top, self._column_sum, rows - self._column_lost)
        row_ratio = _ratio(self._row_top, self._row_sum, columns - self._row_lost)
        column_figures, row_figures = RatioFigures.of(column_ratio), RatioFigures.of(row_ratio)
        column_argmax, column_extreme = self._column_argmax.cpu(), self._column_extreme.cpu()
        column_index = row_index = torch.empty(0, dtype=torch.int64)
        if place.expert is not None:
            column_index = _kept(column_ratio, column_figures, kept_sigma)
            row_index = _kept(row_ratio, row_figures, kept_sigma)
            column_argmax, column_extreme = column_argmax[column_index], column_extreme[column_index]
            column_ratio, row_ratio = column_ratio[column_index], row_ratio[row_index]
        return MatrixSummary(
            **vars(place),
            column_ratio=column_ratio,
            row_ratio=row_ratio,
            column_index=column_index,
            row_index=row_index,
            column_argmax=column_argmax,
            column_extreme=column_extreme,
            values=torch.empty(0),
            column_figures=column_figures,
            row_figures=row_figures,
            absmax=float(top.max()),
            nonfinite=int(self._column_lost.sum()),
        )


def _kept(ratios: Tensor, figures: RatioFigures, sigma: float) -> Tensor:
    """Indices [kept] of the ratios that a rule may name, and of the largest, in their order."""
    kept = ratios.double() > figures.mean + sigma * figures.std
    kept[torch.topk(ratios, min(TOP, len(ratios))).indices] = True
    return kept.nonzero()[:, 0]


def _ratio(top: Tensor, total: Tensor, count: Tensor) -> Tensor:
    mean = total / count.clamp_min(1)
    return torch.where(mean > 0, top / mean, torch.zeros_like(mean)).float().cpu()


def summarize_matrix(
    weight: Tensor, place: WeightPlace, kept_sigma: float = 0.0, *, transposed: bool = False
) -> MatrixSummary:
    """Summary of a matrix in memory, on whatever device it is.

    Args:
        weight: [out, in], or [in, out] with ``transposed``; any floating dtype.
        place: whose it is.
        kept_sigma: as for ``MatrixScan.summary``.
        transposed: whether it is stored [in, out].
    """
    matrix = weight.detach()
    out_size, in_size = reversed(matrix.shape) if transposed else matrix.shape
    scan = MatrixScan(out_size, in_size, matrix.device)
    for start, block in row_blocks(matrix):
        add_stored_rows(scan, block, start, transposed=transposed)
    return scan.summary(place, kept_sigma)


def row_blocks(matrix: Tensor) -> Iterable[tuple[int, Tensor]]:
    """Consecutive rows [r, columns] of a matrix, about ``BLOCK_ELEMENTS`` entries each, with their start."""
    rows = rows_per_block(matrix.shape[1])
    return ((start, matrix[start : start + rows]) for start in range(0, matrix.shape[0], rows))


def rows_per_block(columns: int) -> int:
    """How many rows of so many columns make a block; at least one.

    >>> rows_per_block(4096)
    64
    """
    return max(1, BLOCK_ELEMENTS // max(1, columns))


def add_stored_rows(scan: MatrixScan, block: Tensor, start: int, *, transposed: bool) -> None:
    """Add rows of the stored tensor from row ``start`` on; with ``transposed`` they are columns of W."""
    if transposed:
        scan.add(block.T, column=start)
    else:
        scan.add(block, row=start)


def summarize_norm(values: Tensor, place: WeightPlace) -> MatrixSummary:
    """Summary of gamma or beta [d] of a norm: the values themselves."""
    kept = values.detach().float().cpu().clone()
    finite = kept.isfinite()
    nothing, no_index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    return MatrixSummary(
        **vars(place),
        column_ratio=nothing,
        row_ratio=nothing,
        column_index=no_index,
        row_index=no_index,
        column_argmax=no_index,
        column_extreme=nothing,
        values=kept,
        column_figures=None,
        row_figures=None,
        absmax=float(kept[finite].abs().max()) if finite.any() else 0.0,
        nonfinite=int((~finite).sum()),
    )
