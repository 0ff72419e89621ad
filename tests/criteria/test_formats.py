"""Verdicts on number formats, on planted values."""

from __future__ import annotations

import math

import pytest
import torch

from outlierscope.criteria.formats import (
    Bfloat16,
    Float16,
    Fp8E4m3,
    Fp8E4m3Unscaled,
    Fp8E5m2Unscaled,
    Int8PerChannel,
    Int8PerTensor,
    Int8PerToken,
    damage_per_layer,
    format_verdicts,
)
from outlierscope.criteria.linear_inputs import rank_inputs
from outlierscope.model.sites import LINEAR_INPUTS

from .streams import at, evidence_of, make_batch

CRITERIA = [
    Float16(),
    Bfloat16(),
    Int8PerTensor(),
    Int8PerToken(),
    Int8PerChannel(),
    Fp8E4m3(),
    Fp8E4m3Unscaled(),
    Fp8E5m2Unscaled(),
]


def stream(change=None, sequences=8, layers=2):
    """Ordinary values everywhere, changed at will; the first token of a sequence is of class ``initial``."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        at(layer, name): [torch.randn(sequences, 64, 32, generator=generator)]
        for layer in range(layers)
        for name in (*LINEAR_INPUTS, "resid_post")
    }
    if change:
        change({site: values[0] for site, values in tensors.items()})
    token_ids = torch.full((sequences, 64), 5)
    token_ids[:, 0] = 1
    classes = torch.full((sequences, 64), 4, dtype=torch.uint8)
    classes[:, 0] = 0
    return evidence_of(CRITERIA, [make_batch(token_ids, classes)], tensors, head_dim=8, heads=4)


def words(evidence):
    return {verdict.format: verdict.word for verdict in format_verdicts(evidence)}


def test_ordinary_values_fit_every_format():
    evidence = stream()
    assert set(words(evidence).values()) == {"fine"}
    assert all(list(criterion.findings(evidence)) == [] for criterion in CRITERIA)


def test_a_residual_of_100000_fails_in_float16_and_is_harmless_for_int8():
    def change(tensors):
        tensors[at(1, "resid_post")][:, 0, 7] = -100_000.0

    evidence = stream(change)
    found = words(evidence)
    assert found.pop("float16") == "fails"
    assert set(found.values()) == {"fine"}
    (row,) = Float16().findings(evidence)
    assert (row.layer, row.site, row.dim, row.value) == (1, "resid_post", 7, -100_000.0)
    assert (row.token_id, row.token_class, row.position) == (1, "initial", 0)
    assert row.score == pytest.approx(100_000 / 65_504)
    assert row.module == "layers.1"
    assert row.extra["word"] == "fails"
    assert row.extra["predicted"] is True


def test_within_the_headroom_is_at_risk():
    def change(tensors):
        tensors[at(0, "mlp_post")][0, 3, 1] = 20_000.0

    verdict = Float16().verdict(stream(change))
    assert verdict.word == "at risk"
    assert verdict.figure == pytest.approx(20_000 / 65_504)
    assert Float16(headroom=2.0).verdict(stream(change)).word == "fine"


def test_values_that_were_not_finite_already_fail():
    def change(tensors):
        tensors[at(0, "resid_post")][2, 5, 1] = math.inf

    evidence = stream(change)
    assert Float16().verdict(evidence).word == "fails"
    (row,) = Float16().findings(evidence)
    assert row.extra["nonfinite_tokens"] == 1


def test_int8_names_the_input_and_whose_tokens_set_its_range():
    def change(tensors):
        tensors[at(0, "mlp_post")][:, 0, 9] = 400.0
        tensors[at(1, "z")][:, :, 20] *= 20.0

    evidence = stream(change)
    found = words(evidence)
    assert found["int8_per_tensor"] == "fails"
    # Dim 9 keeps its own range, in which its ordinary values are lost, and nothing else is.
    assert found["int8_per_channel"] == "at risk"
    verdict = Int8PerTensor().verdict(evidence)
    row = verdict.causes[0]
    assert (row.layer, row.site, row.dim, row.token_class) == (0, "mlp_post", 9, "initial")
    assert row.module == "layers.0.down_proj"
    assert row.extra["modules"] == ["layers.0.down_proj"]
    assert row.extra["step"] == pytest.approx(400 / 127)
    assert row.extra["range_without_class"]["initial"] < 6
    assert row.extra["range_without_class"]["other"] == 400.0
    assert verdict.share >= 0.8
    # Every token but the first has a narrow range of its own.
    assert Int8PerToken().verdict(evidence).figure < verdict.figure / 10
    ranking = rank_inputs(evidence, "int8_per_tensor")
    assert [str(item.site) for item in ranking[:2]] == ["decoder.0.mlp_post", "decoder.1.z"]
    assert verdict.figure == pytest.approx(sum(item.damage for item in ranking) / 2)


def test_head_of_the_dim_that_sets_the_range_of_z():
    def change(tensors):
        tensors[at(1, "z")][:, 5, 20] = 300.0

    row = Int8PerTensor().verdict(stream(change)).causes[0]
    assert (row.site, row.dim, row.head) == ("z", 20, 2)


@pytest.mark.parametrize("scheme", ["int8_per_tensor", "int8_per_token", "int8_per_channel", "fp8_e4m3"])
def test_signal_to_noise_ratio_against_direct_fake_quantization(scheme):
    def change(tensors):
        for site, values in tensors.items():
            values *= torch.exp(0.3 * torch.randn(32, generator=torch.Generator().manual_seed(site.layer)))
            values[:, 0, 3] = 60.0

    kept = {}
    evidence = stream(lambda tensors: (change(tensors), kept.update(tensors)))
    for item in rank_inputs(evidence, scheme):
        x = kept[item.site].flatten(0, 1)
        if scheme == "fp8_e4m3":
            scale = x.abs().max() / 448
            rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale
        else:
            axis = {"int8_per_tensor": (0, 1), "int8_per_token": 1, "int8_per_channel": 0}[scheme]
            step = x.abs().amax(axis, keepdim=True) / 127
            rounded = (x / step).round() * step
        direct = 10 * math.log10(float(x.double().square().mean() / (rounded - x).double().square().mean()))
        assert item.sqnr == pytest.approx(direct, abs=1.0), str(item.site)


def test_unscaled_fp8_looks_at_linear_inputs_only():
    def change(tensors):
        tensors[at(0, "resid_post")][0, 0, 0] = 1000.0
        tensors[at(1, "mlp_in")][0, 2, 4] = 500.0

    evidence = stream(change)
    verdict = Fp8E4m3Unscaled().verdict(evidence)
    assert verdict.word == "fails"
    assert [(row.layer, row.site) for row in verdict.causes] == [(1, "mlp_in")]
    assert Fp8E5m2Unscaled().verdict(evidence).word == "fine"


def test_short_data_give_no_word_except_a_failure():
    refused = format_verdicts(stream(sequences=2))
    assert {item.reason for item in refused} == {"not enough data: 128 tokens, 256 needed"}

    def change(tensors):
        tensors[at(0, "resid_post")][0, 0, 0] = 1e6

    assert Float16().verdict(stream(change, sequences=2)).word == "fails"


def test_constant_zero_input_has_no_damage():
    def change(tensors):
        tensors[at(0, "z")].zero_()

    ranking = rank_inputs(stream(change), "int8_per_tensor")
    assert ranking[-1].damage == 0.0
    assert str(ranking[-1].site) == "decoder.0.z"
    assert damage_per_layer([]) == 0.0
