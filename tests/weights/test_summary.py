"""Summaries of weights against direct computation in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.weights import summary as weights
from outlierscope.weights.summary import (
    MatrixScan,
    WeightPlace,
    summarize_matrix,
    summarize_norm,
)

PLACE = WeightPlace("decoder", 3, "down", "layers.3.mlp.down_proj", "layers.3.mlp.down_proj.weight")


def direct(matrix, dim):
    """Ratios along one dim by plain Python sums over the finite entries."""
    ratios = []
    for line in matrix.double().unbind(1 - dim):
        finite = [abs(number) for number in line.tolist() if math.isfinite(number)]
        total = math.fsum(finite)
        ratios.append(max(finite) * len(finite) / total if total else 0.0)
    return torch.tensor(ratios)


def check(summary, matrix):
    torch.testing.assert_close(summary.column_ratio, direct(matrix, 0), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(summary.row_ratio, direct(matrix, 1), rtol=1e-5, atol=0.0)
    known = matrix.float().nan_to_num(0.0, 0.0, 0.0)
    assert summary.absmax == float(known.abs().max())
    assert summary.nonfinite == int((~matrix.isfinite()).sum())
    for column in range(matrix.shape[1]):
        magnitudes = known[:, column].abs().tolist()
        row = magnitudes.index(max(magnitudes))
        assert int(summary.column_argmax[column]) == row
        assert float(summary.column_extreme[column]) == float(known[row, column])


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (50, 1), (37, 20), (20, 100)])
@pytest.mark.usefixtures("small_blocks")
def test_summary_is_that_of_the_whole_matrix(dtype, shape):
    torch.manual_seed(sum(shape))
    matrix = torch.randn(shape).to(dtype)
    check(summarize_matrix(matrix, PLACE), matrix)
    check(summarize_matrix(matrix.T.contiguous(), PLACE, transposed=True), matrix)


@pytest.mark.usefixtures("small_blocks")
def test_what_is_not_finite_is_counted_and_enters_nothing_else():
    torch.manual_seed(0)
    matrix = torch.randn(40, 12)
    matrix[3, 4], matrix[39, 4], matrix[8, 0] = float("nan"), float("-inf"), float("inf")
    check(summarize_matrix(matrix, PLACE), matrix)
    summary = summarize_matrix(torch.full((3, 2), float("nan")), PLACE)
    assert (summary.nonfinite, summary.absmax, summary.column_ratio.tolist()) == (6, 0.0, [0.0, 0.0])


def test_ratios_survive_the_range_of_float16_and_of_small_numbers():
    matrix = torch.full((2000, 40), 60000.0, dtype=torch.float16)
    assert summarize_matrix(matrix, PLACE).column_ratio.tolist() == [1.0] * 40
    tiny = torch.full((2000, 40), 1e-38)
    torch.testing.assert_close(summarize_matrix(tiny, PLACE).column_ratio, torch.ones(40))


def test_planted_entry_is_found():
    torch.manual_seed(0)
    matrix = torch.randn(300, 200).bfloat16() * 0.02
    matrix[17, 42] = -3.0
    summary = summarize_matrix(matrix, PLACE)
    assert int(summary.column_ratio.argmax()) == 42
    assert int(summary.row_ratio.argmax()) == 17
    assert (int(summary.column_argmax[42]), float(summary.column_extreme[42])) == (17, -3.0)
    assert summary.absmax == 3.0


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_blocks_in_any_order_and_of_any_size_give_the_same(data):
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 7))
    numbers = st.sampled_from(
        [0.0, 1.0, -1.0, 0.25, -3.5, 6e4, 1e-6, float("nan"), float("inf"), -float("inf")]
    )
    matrix = torch.tensor(data.draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns)))
    matrix = matrix.view(rows, columns)
    cuts = sorted(data.draw(st.sets(st.integers(0, rows))) | {0, rows})
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    scan = MatrixScan(rows, columns)
    for start, end in pieces:
        scan.add(matrix[start:end], row=start)
    summary, whole = scan.summary(PLACE), summarize_matrix(matrix, PLACE)
    torch.testing.assert_close(summary.column_ratio, whole.column_ratio)
    assert torch.equal(summary.row_ratio, whole.row_ratio)
    assert torch.equal(summary.column_extreme.abs(), whole.column_extreme.abs())
    assert (summary.absmax, summary.nonfinite) == (whole.absmax, whole.nonfinite)


def test_norm_keeps_its_values():
    values = torch.tensor([1.0, -2.5, float("nan")], dtype=torch.bfloat16)
    summary = summarize_norm(values, WeightPlace("encoder", 0, "norm", "norm", "norm.weight"))
    assert torch.equal(summary.values[:2], torch.tensor([1.0, -2.5]))
    assert (summary.absmax, summary.nonfinite, len(summary.column_ratio)) == (2.5, 1, 0)
