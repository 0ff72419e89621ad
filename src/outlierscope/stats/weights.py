"""Summaries of weight matrices and norm parameters: each computed from one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MatrixSummary:
    """What is kept of one weight tensor.

    Attributes:
        stack: stack of the model.
        layer: block index from 0, ``None`` outside of the blocks.
        role: as in ``Matrix.role``.
        module: full name of the module that owns it.
        parameter: full name of the parameter.
        column_ratio: [in] float32, max_i abs(W[i, j]) / mean_i abs(W[i, j]) of every column j (input neuron);
            An et al. 2025, section on weight outliers. Empty for norms.
        row_ratio: [out] float32, the same for rows. Empty for norms.
        column_argmax: [in] int64, the row i at which column j is largest in magnitude.
        column_extreme: [in] float32, that signed entry.
        values: [d] float32, the parameter itself for norms; empty for matrices.
        absmax: largest magnitude.
        nonfinite: how many entries are NaN or infinite.
        expert: index of the expert in a mixture, else ``None``.
    """

    stack: str
    layer: int | None
    role: str
    module: str
    parameter: str
    column_ratio: Tensor
    row_ratio: Tensor
    column_argmax: Tensor
    column_extreme: Tensor
    values: Tensor
    absmax: float
    nonfinite: int
    expert: int | None = None
