"""Summaries kept in little room, stored and restored, bit for bit; what is kept of experts."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from outlierscope.weights.summaries import PLAIN, TENSORS, WeightSummaries
from outlierscope.weights.summary import RatioFigures, WeightPlace, summarize_matrix, summarize_norm

PLACE = WeightPlace("decoder", 3, "down", "layers.3.mlp.down_proj", "layers.3.mlp.down_proj.weight")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_saving_and_loading_returns_the_same_bits(data):
    summaries = []
    for number in range(data.draw(st.integers(0, 4))):
        expert = data.draw(st.none() | st.integers(0, 300))
        layer = data.draw(st.none() | st.integers(0, 99))
        generator = torch.Generator().manual_seed(number)
        if data.draw(st.booleans()):
            place = WeightPlace("decoder", layer, "norm", f"n{number}", f"n{number}.weight", expert)
            values = torch.randn(data.draw(st.integers(0, 5)), generator=generator)
            summaries.append(summarize_norm(values.masked_fill(values > 1, float("nan")), place))
        else:
            place = WeightPlace("vision", layer, "gate_up", f"m{number}", f"m{number}.weight", expert)
            shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
            summaries.append(summarize_matrix(torch.randn(shape, generator=generator), place))
    kept = WeightSummaries(summaries)
    tensors, described = kept.to_tensors()
    stored = load(save(tensors)) if tensors else {}
    restored = WeightSummaries.from_tensors(stored, json.loads(json.dumps(described)))
    assert len(kept) == len(restored) == len(summaries)
    for before, *others in zip(summaries, kept, restored, strict=True):
        for after in others:
            for name in TENSORS:
                value, found = getattr(before, name), getattr(after, name)
                assert value.dtype == found.dtype
                assert value.numpy().tobytes() == found.numpy().tobytes()
            assert all(getattr(after, name) == getattr(before, name) for name in PLAIN)
    assert [item.layer for item in kept[-2:]] == [item.layer for item in summaries[-2:]]


def test_two_summaries_of_one_parameter_are_refused():
    summary = summarize_matrix(torch.ones(2, 2), PLACE)
    with pytest.raises(ValueError, match=r"^two summaries of layers.3.mlp.down_proj.weight$"):
        WeightSummaries([summary, summary]).to_tensors()
    halves = [replace(PLACE, rows=rows) for rows in ((0, 2), (2, 4))]
    tensors, _ = WeightSummaries(summarize_matrix(torch.ones(2, 2), half) for half in halves).to_tensors()
    assert f"{PLACE.parameter}[rows 2:4]/column_ratio" in tensors


def test_of_an_expert_the_ratios_that_a_rule_may_name_and_the_largest_are_kept():
    torch.manual_seed(0)
    matrix = torch.randn(60, 300)
    matrix[7, 33] = 40.0
    whole = summarize_matrix(matrix, PLACE)
    for sigma in (0.0, 2.0, 6.0, math.inf):
        lean = summarize_matrix(matrix, replace(PLACE, expert=4), sigma)
        for noun in ("column", "row"):
            ratios, index = getattr(whole, f"{noun}_ratio"), getattr(lean, f"{noun}_index")
            assert torch.equal(getattr(lean, f"{noun}_ratio"), ratios[index])
            threshold = ratios.double().mean() + sigma * ratios.double().std()
            expected = set((ratios.double() > threshold).nonzero().flatten().tolist())
            assert set(index.tolist()) == expected | set(torch.topk(ratios, 5).indices.tolist())
            assert getattr(lean, f"{noun}_figures") == getattr(whole, f"{noun}_figures")
        assert torch.equal(lean.column_extreme, whole.column_extreme[lean.column_index])
        assert torch.equal(lean.column_argmax, whole.column_argmax[lean.column_index])
    assert len(lean.column_ratio) == len(lean.row_ratio) == 5


def test_figures_are_those_of_all_ratios():
    ratios = torch.rand(101, generator=torch.Generator().manual_seed(0))
    figures = RatioFigures.of(ratios)
    numbers = ratios.tolist()
    assert figures.count == 101
    assert (figures.mean, figures.std) == pytest.approx(
        (statistics.fmean(numbers), statistics.stdev(numbers))
    )
    assert (figures.median, figures.largest) == (sorted(numbers)[50], max(numbers))
    assert figures.quantile_99 == sorted(numbers)[99]
    assert RatioFigures.of(torch.tensor([3.0])) == RatioFigures(1, 3.0, 0.0, 3.0, 3.0, 3.0)
