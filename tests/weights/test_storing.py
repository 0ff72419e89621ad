"""Summaries stored and restored, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from outlierscope.weights.storing import summaries_from_tensors, summaries_to_tensors
from outlierscope.weights.summary import WeightPlace, summarize_matrix, summarize_norm

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
    tensors, described = summaries_to_tensors(summaries)
    stored = load(save(tensors)) if tensors else {}
    restored = summaries_from_tensors(stored, json.loads(json.dumps(described)))
    assert len(restored) == len(summaries)
    for before, after in zip(summaries, restored, strict=True):
        for name, value in vars(before).items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == getattr(after, name).dtype
                assert value.numpy().tobytes() == getattr(after, name).numpy().tobytes()
            else:
                assert getattr(after, name) == value


def test_two_summaries_of_one_parameter_are_refused():
    summary = summarize_matrix(torch.ones(2, 2), PLACE)
    with pytest.raises(ValueError, match=r"^two summaries of layers.3.mlp.down_proj.weight$"):
        summaries_to_tensors([summary, summary])
