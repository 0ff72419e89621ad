"""Activation and format criteria on real models, against plain hooks and ``output_hidden_states``."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

import outlierscope
from outlierscope.criteria.linear_inputs import rank_inputs
from tests.criteria.direct import LINEAR_INPUTS, check_range, massive_events


def test_the_hooks_see_what_output_hidden_states_gives(run):
    with torch.no_grad():
        hidden = run.plain(**run.batches[0].inputs, output_hidden_states=True).hidden_states
    assert torch.equal(torch.stack(run.direct.sites["embed"][None][: len(hidden[0])]), hidden[0])
    # The last of hidden_states comes after the final norm in decoders.
    for layer in range(len(hidden) - 2):
        assert torch.equal(
            torch.stack(run.direct.sites["resid_post"][layer][: len(hidden[0])]), hidden[layer + 1]
        )


def test_six_sigma(run):
    direct = run.direct
    expected = {}
    tokens = Counter()
    for site in ("mlp_out", "resid_post"):
        for layer, sequences in direct.sites[site].items():
            for number, values in enumerate(sequences):
                x = values.double()
                distance = (x - x.mean()).abs() / x.std()
                for place, dim in (distance > 6).nonzero().tolist():
                    row = expected.setdefault((site, layer, dim), {"count": 0, "value": 0.0, "score": 0.0})
                    row["count"] += 1
                    tokens[site, layer, dim, int(direct.token_ids[number][place])] += 1
                    if abs(values[place, dim]) > abs(row["value"]):
                        row["value"], row["score"] = float(values[place, dim]), float(distance[place, dim])
                        row["place"] = (number, place)
    found = {(row["site"], row["layer"], row["dim"]): row for row in run.rows("six_sigma")}
    assert expected
    assert found.keys() == expected.keys()
    total = sum(len(values) for values in direct.sites["mlp_out"][0])
    for key, row in found.items():
        assert row["count"] == expected[key]["count"]
        assert row["value"] == pytest.approx(expected[key]["value"], rel=1e-5)
        assert row["score"] == pytest.approx(expected[key]["score"], rel=1e-5)
        assert (row["sequence"], row["position"]) == expected[key]["place"]
        assert row["share_tokens"] == pytest.approx(row["count"] / total)
        most = json.loads(row["extra"])["top_tokens"]
        for token in most:
            assert tokens[(*key, token["token_id"])] == token["count"]


def test_massive(run):
    events, carried = massive_events(run.direct, **run.thresholds["massive"])
    assert events
    assert carried
    rows = run.rows("massive")
    assert {(row["layer"], row["dim"], row["token_id"]): row["count"] for row in rows} == dict(events)
    found = {(row["layer"], row["dim"], row["token_id"]): json.loads(row["extra"])["carried"] for row in rows}
    assert {key: count for key, count in found.items() if count} == dict(carried)


@pytest.mark.parametrize("site", ["resid_post", "mlp_post"])
def test_systematic_activation(run, site):
    ratio = run.thresholds["systematic_activation"]["ratio"]
    expected, scores = Counter(), {}
    for layer, sequences in run.direct.sites[site].items():
        for values in sequences:
            magnitude = values.double().abs()
            mean = magnitude.mean()
            for place in (magnitude.amax(1) > ratio * mean).nonzero():
                dim = int(magnitude[place].argmax())
                expected[layer, dim] += 1
                peak = float(magnitude[place, dim])
                if peak > scores.get((layer, dim), (0.0, 0.0))[0]:
                    scores[layer, dim] = (peak, peak / float(mean))
    assert expected
    rows = [row for row in run.rows("systematic_activation") if row["site"] == site]
    assert {(row["layer"], row["dim"]): row["count"] for row in rows} == dict(expected)
    for row in rows:
        assert row["score"] == pytest.approx(scores[row["layer"], row["dim"]][1], rel=1e-5)


def test_extreme_neuron(run):
    share = run.thresholds["extreme_neuron"]["share"]
    vectors = torch.cat([torch.cat(sequences) for sequences in run.direct.sites["resid_post"].values()])
    expected = {}
    for end, best in (("argmax", vectors.argmax(1)), ("argmin", vectors.argmin(1))):
        shares = torch.bincount(best).double() / len(vectors)
        flagged = (shares >= share).nonzero().flatten().tolist()
        assert flagged
        expected |= {(end, dim): float(shares[dim]) for dim in flagged}
    rows = run.rows("extreme_neuron")
    assert {(json.loads(row["extra"])["end"], row["dim"]): row["score"] for row in rows} == pytest.approx(
        expected
    )


@pytest.mark.parametrize("sites", [("attn_in", "mlp_in"), ("z",), ("mlp_post",)], ids=" and ".join)
def test_int8_feature(run, sites):
    thresholds = run.thresholds["int8_feature"]
    magnitude, share = thresholds["magnitude"], thresholds["position_share"]
    inputs = [
        [torch.cat(run.direct.sites[site][layer]).abs() >= magnitude for site in sites]
        for layer in sorted(run.direct.sites[sites[0]])
    ]
    flags = torch.stack([torch.stack(layer) for layer in inputs])  # [L, sites, N, d]
    # A layer is affected when any of its inputs is; positions count over all inputs of all layers.
    layers = flags.any(2).any(1).double().mean(0)  # [d]
    positions = flags.double().mean((0, 1, 2))  # [d]
    flagged = ((layers >= thresholds["layer_share"]) & (positions >= share)).nonzero().flatten().tolist()
    assert flagged
    rows = {row["dim"]: row for row in run.rows("int8_feature") if row["site"] in sites}
    assert sorted(rows) == flagged
    for dim, row in rows.items():
        assert row["score"] == pytest.approx(float(positions[dim]))
        assert row["count"] == int(flags[..., dim].sum())
        affected = flags[..., dim].any(2).any(1).nonzero().flatten().tolist()
        assert json.loads(row["extra"])["layers"] == affected


@pytest.mark.parametrize("criterion", ["float16", "bfloat16", "fp8_e4m3_unscaled", "fp8_e5m2_unscaled"])
def test_ranges(run, criterion):
    rows = check_range(run, criterion)
    everything = len(run.direct.sites["z"]) * 8
    assert 0 < rows < everything


@pytest.mark.parametrize("scheme", ["int8_per_tensor", "int8_per_token", "int8_per_channel", "fp8_e4m3"])
def test_predicted_noise_of_recorded_tensors(run, scheme):
    compared = set()
    for item in rank_inputs(run.scan.evidence, scheme):
        site, layer = item.site.name, item.site.layer
        x = torch.cat(run.direct.sites[site][layer])
        if scheme == "fp8_e4m3":
            scale = x.abs().max() / 448
            rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale
        else:
            axis = {"int8_per_tensor": (0, 1), "int8_per_token": 1, "int8_per_channel": 0}[scheme]
            step = x.abs().amax(axis, keepdim=True) / 127
            rounded = (x / step).round() * step
        noise = float((rounded - x).double().square().mean())
        signal = float(x.double().square().mean())
        tolerance = 0.2 if scheme == "int8_per_tensor" else 1.0
        assert item.signal == pytest.approx(signal, rel=5e-3), str(item.site)
        assert 10 * math.log10(item.noise / noise) == pytest.approx(0, abs=tolerance), str(item.site)
        assert item.sqnr == pytest.approx(10 * math.log10(signal / noise), abs=tolerance), str(item.site)
        compared.add((site, layer))
    layers = run.direct.sites["z"]
    assert compared == {(site, layer) for site in LINEAR_INPUTS for layer in layers}


def test_minilm_dims_at_cls_and_full_stop(minilm_folder):
    scan = outlierscope.scan(outlierscope.load(minilm_folder), tokens=2048, length=256, only=("activation",))
    six_sigma = [row for row in scan.findings.to_pylist() if row["criterion"] == "six_sigma"]
    rows = {(row["site"], row["layer"], row["dim"]): row for row in six_sigma}
    assert rows["mlp_out", 0, 99]["token"] == "[CLS]"
    assert rows["mlp_out", 0, 99]["head"] is None
    assert rows["resid_post", 0, 63]["token"] == "."
    tops = [token["token"] for token in json.loads(rows["resid_post", 0, 63]["extra"])["top_tokens"]]
    assert "." in tops[:3]


def test_stories_is_a_healthy_control(shared_model, shared_data):
    model = outlierscope.load(shared_model("stories260k"))
    scan = outlierscope.scan(
        model, shared_data("text", "bronte.txt"), tokens=6_400, length=64, only=("activation", "format")
    )
    healthy = ("massive", "systematic_activation", "float16", "bfloat16")
    assert not [row for row in scan.findings.to_pylist() if row["criterion"] in healthy]


def test_vit_dim_41(shared_model, shared_data):
    model = outlierscope.load(shared_model("vit-tiny-patch16-224"))
    scan = outlierscope.scan(model, shared_data("images"), tokens=197 * 8, only=("activation",))
    massive = [row for row in scan.findings.to_pylist() if row["criterion"] == "massive"]
    assert {row["dim"] for row in massive} >= {41}
    assert min(row["layer"] for row in massive if row["dim"] == 41) == 7
