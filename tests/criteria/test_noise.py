"""Predicted quantization noise against direct fake quantization."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.criteria.noise import (
    FLOAT16,
    FP8_E4M3,
    FP8_E5M2,
    Magnitudes,
    decibel,
    float_noise,
    per_channel_noise,
    per_token_noise,
    rounding_error,
    uniform_noise,
)
from outlierscope.stats.histogram import bin_edges
from outlierscope.stats.sequence_magnitudes import BINS, magnitude_bins


def histogram(values):
    counts = torch.bincount(magnitude_bins(values.float().flatten()), minlength=BINS)
    return Magnitudes.of(counts, bin_edges())


def streams():
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(500, 64, generator=generator)
    heavy = normal * torch.exp(1.5 * torch.randn(500, 64, generator=generator))
    sparse = normal.clamp(min=0) * (torch.rand(500, 64, generator=generator) < 0.1)
    spiked = normal.clone()
    spiked[::10, 3] = 200 + 100 * torch.rand(50, generator=generator)
    return {"normal": normal, "heavy": heavy, "sparse": sparse, "spiked": spiked}


@pytest.mark.parametrize("name", streams())
@pytest.mark.parametrize("levels", [7, 127])
def test_per_tensor_noise(name, levels):
    x = streams()[name]
    step = float(x.abs().max()) / levels
    direct = float(((x / step).round() * step - x).double().square().mean())
    assert uniform_noise(histogram(x), step) == pytest.approx(direct, rel=0.03)


@pytest.mark.parametrize("name", streams())
def test_fp8_noise_with_a_scale(name):
    x = streams()[name]
    scale = float(x.abs().max()) / FP8_E4M3.largest
    direct = (x / scale).to(torch.float8_e4m3fn).float() * scale
    predicted = float_noise(histogram(x), FP8_E4M3, scale)
    assert predicted == pytest.approx(float((direct - x).double().square().mean()), rel=0.05)


def test_e5m2_noise_without_a_scale():
    x = streams()["heavy"]
    direct = x.to(torch.float8_e5m2).float()
    predicted = float_noise(histogram(x), FP8_E5M2)
    assert predicted == pytest.approx(float((direct - x).double().square().mean()), rel=0.05)


def test_a_cast_beyond_the_end_is_clipped():
    x = torch.full((10,), 1000.0)
    assert float_noise(histogram(x), FP8_E4M3) == pytest.approx((1000 - 448) ** 2, rel=0.02)
    assert torch.finfo(torch.float8_e4m3fn).max == FP8_E4M3.largest
    assert torch.finfo(torch.float8_e5m2).max == FP8_E5M2.largest
    assert torch.finfo(torch.float16).max == FLOAT16.largest


def test_float_underflow():
    x = torch.full((10,), 2.0**-12)
    assert float_noise(histogram(x), FP8_E4M3) == pytest.approx(2.0**-24, rel=0.02)


@pytest.mark.parametrize("name", ["normal", "heavy", "spiked"])
def test_per_token_noise_within_one_decibel(name):
    x = streams()[name]
    absmax = x.abs().amax(1, keepdim=True)
    step = absmax / 127
    direct = float(((x / step).round() * step - x).double().square().mean())
    predicted = per_token_noise(histogram(x), histogram(absmax))
    assert abs(decibel(1.0, predicted) - decibel(1.0, direct)) < 1.0


def test_per_channel_noise():
    x = streams()["spiked"] * torch.logspace(-3, 3, 64)
    absmax = x.abs().amax(0)
    step = absmax / 127
    direct = float(((x / step).round() * step - x).double().square().mean())
    predicted = per_channel_noise(absmax, x.double().square().mean(0))
    assert abs(decibel(1.0, predicted) - decibel(1.0, direct)) < 1.0


@given(st.floats(1e-6, 1e4), st.floats(1e-3, 1e3), st.floats(1.004, 1.02))
@settings(max_examples=60, deadline=None)
def test_error_of_one_bin_is_the_mean_over_it(lower, relative_step, ratio):
    step = lower * relative_step
    edges = torch.tensor([lower, lower * ratio], dtype=torch.float64)
    points = torch.linspace(float(edges[0]), float(edges[1]), 20_001, dtype=torch.float64)
    direct = float(((points / step).round() * step - points).square().mean())
    predicted = float(rounding_error(edges[:1], edges[1:], step))
    assert predicted == pytest.approx(direct, rel=0.02, abs=1e-9 * step**2)


def test_extreme_ratios_of_range_and_values_stay_exact():
    """Values a million times below the step are lost whole, without cancellation."""
    x = torch.full((100,), 1e-6)
    assert uniform_noise(histogram(x), 1.0) == pytest.approx(1e-12, rel=0.01)
    assert uniform_noise(histogram(torch.zeros(5)), 1.0) < 1e-60
    assert uniform_noise(histogram(x), 0.0) == 0.0


def test_decibel():
    assert decibel(100.0, 1.0) == pytest.approx(20.0)
    assert decibel(1.0, 0.0) == math.inf
    assert decibel(0.0, 1.0) == -math.inf
