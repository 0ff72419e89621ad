"""Mixtures of experts: what they read and write together against plain hooks, each expert's weights against its slice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

import outlierscope
from outlierscope.criteria.formats import Int8PerTensor, Verdict, format_verdicts
from tests.criteria.direct import massive_events
from tests.scanning.plain_stacks import VOCABULARY, plain_decoder, sequences_of, sharpened

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
MASSIVE = {"absolute": 4.0, "ratio": 4.0, "keep": 0.9}
SIGMA, WEIGHT_SIGMA = 3.0, 4.5
LENGTHS = (40, 33, 25, 40, 18)
EXPERTS = "model.layers.{}.mlp.experts.{}"


def mixtral():
    """Parameters are [experts, out, in]."""
    return planted(sharpened(MixtralForCausalLM(MixtralConfig(**SIZES))), transposed=False)


def gpt_oss():
    """Parameters are [experts, in, out]."""
    return planted(sharpened(GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8))), transposed=True)


PLANTED = {
    # (role, expert) -> row, column of W [out, in] with an entry far above all others
    ("gate_up_proj", 2): (81, 7),
    ("down_proj", 3): (11, 45),
}


def planted(model, *, transposed):
    for (name, expert), (row, column) in PLANTED.items():
        parameter = model.get_parameter(EXPERTS.format(1, name)).data[expert]
        (parameter.T if transposed else parameter)[row, column] = -30.0
    return model


def routed(layer):
    return {
        ("mlp_in", layer): (f"model.layers.{layer}.post_attention_layernorm", "output"),
        ("mlp_out", layer): (f"model.layers.{layer}.mlp", "output"),
        ("resid_post", layer): (f"model.layers.{layer}", "output"),
    }


@pytest.fixture(scope="module", params=[(mixtral, False), (gpt_oss, True)], ids=["out_in", "in_out"])
def run(request):
    make, transposed = request.param
    model, given = make(), sequences_of(LENGTHS)
    thresholds = {
        "massive": MASSIVE,
        "six_sigma": {"sigma": SIGMA},
        "weight_column": {"sigma": WEIGHT_SIGMA},
        "weight_row": {"sigma": WEIGHT_SIGMA},
    }
    scan = outlierscope.scan(
        outlierscope.wrap(model), given, length=40, batch_size=2, exact=True, thresholds=thresholds
    )
    return scan, plain_decoder(model, routed(0) | routed(1), given), model, transposed


def rows(scan, criterion):
    return [row for row in scan.findings.to_pylist() if row["criterion"] == criterion]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["mlp_in", "mlp_out"])
def test_what_all_experts_read_and_write_together(run, name, layer):
    scan, plain, _, _ = run
    values = torch.cat(plain.sites[name][layer]).double()  # [tokens, d]
    moments = scan.stat(name, "moments", layer)
    assert moments.count == len(values) == sum(LENGTHS)
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.m2, ((values - values.mean(0)) ** 2).sum(0), rtol=1e-4, atol=1e-4)
    strongest = scan.stat(name, "extremes", layer).value.abs().amax(0)
    torch.testing.assert_close(strongest.double(), values.abs().amax(0), rtol=1e-4, atol=1e-5)


def test_massive_events(run):
    scan, plain, _, _ = run
    events, _ = massive_events(plain, *MASSIVE.values())
    found = {(row["layer"], row["dim"], row["token_id"]): row["count"] for row in rows(scan, "massive")}
    assert found == dict(events)
    assert found


def test_six_sigma_events_of_the_routed_sum(run):
    """A value further than so many standard deviations from the mean of its sequence's tensor."""
    scan, plain, _, _ = run
    expected = Counter()
    for layer in (0, 1):
        for values in plain.sites["mlp_out"][layer]:
            exact = values.double()
            far = (exact - exact.mean()).abs() > SIGMA * exact.std()
            expected.update((layer, dim) for dim in far.nonzero()[:, 1].tolist())
    found = Counter()
    for row in rows(scan, "six_sigma"):
        if row["site"] == "mlp_out":
            found[row["layer"], row["dim"]] += row["count"]
    assert found == expected
    assert found


def slices(model, transposed):
    """(parameter, expert) -> W [out, in], for every layer."""
    return {
        (name, expert): (stored.T if transposed else stored).detach().double()
        for name in (
            EXPERTS.format(layer, part) for layer in (0, 1) for part in ("gate_up_proj", "down_proj")
        )
        for expert, stored in enumerate(model.get_parameter(name))
    }


def ratios(weight, axis):
    return weight.abs().amax(axis) / weight.abs().mean(axis)


def test_summaries_of_each_expert(run):
    scan, _, model, transposed = run
    of_experts = {
        (summary.parameter, summary.expert): summary
        for summary in scan.evidence.weights
        if summary.expert is not None
    }
    direct = slices(model, transposed)
    assert of_experts.keys() == direct.keys()
    for key, weight in direct.items():
        summary = of_experts[key]
        assert summary.role == key[0].rpartition(".")[2].removesuffix("_proj")
        for figures, axis in ((summary.column_figures, 0), (summary.row_figures, 1)):
            expected = ratios(weight, axis)
            assert figures.count == len(expected)
            assert figures.mean == pytest.approx(float(expected.mean()), rel=1e-5)
            assert figures.std == pytest.approx(float(expected.std()), rel=1e-4)


@pytest.mark.parametrize(("criterion", "axis"), [("weight_column", 0), ("weight_row", 1)])
def test_weight_findings_name_the_expert(run, criterion, axis):
    scan, _, model, transposed = run
    expected = {}
    for (name, expert), weight in slices(model, transposed).items():
        found = ratios(weight, axis)
        for index in (found > found.mean() + WEIGHT_SIGMA * found.std()).nonzero()[:, 0].tolist():
            expected[name, expert, index] = float((found[index] - found.mean()) / found.std())
    there = {
        (row["parameter"], row["expert"], row["dim" if axis == 0 else "row"]): row
        for row in rows(scan, criterion)
        if row["expert"] is not None
    }
    assert {key: row["score"] for key, row in there.items()} == pytest.approx(expected, rel=1e-3)
    for (name, expert), (row, column) in PLANTED.items():
        finding = there[EXPERTS.format(1, name), expert, column if axis == 0 else row]
        assert finding["layer"] == 1
        if axis == 0:
            assert (finding["row"], finding["value"]) == (row, -30.0)
            assert finding["site"] == {"gate_up_proj": "mlp_in", "down_proj": "mlp_post"}[name]


def test_what_single_experts_read_is_listed_with_its_reason(run):
    scan, _, _, _ = run
    why = "each expert of the mixture sees tokens of its own"
    (row,) = [row for row in scan.manifest["not_observed"] if row["why"] == why]
    stack, _, sites = row["what"].partition(" ")
    assert stack == "decoder"
    assert sorted(sites.split(", ")) == ["mlp_act", "mlp_gate", "mlp_post", "mlp_up"]
    assert row["layers"] == [0, 1]


def test_no_rounding_format_is_called_fine_unless_all_its_inputs_were_seen():
    scan = outlierscope.scan(outlierscope.wrap(mixtral()), sequences_of([40] * 10), length=40, exact=True)
    verdicts = {
        verdict.format: verdict for verdict in format_verdicts(scan.evidence) if isinstance(verdict, Verdict)
    }
    assert verdicts["float16"].word == "fine"
    assert "int8_per_tensor" not in verdicts
    why = {row["what"]: row["why"] for row in scan.manifest["not_observed"]}
    assert why["int8_per_tensor"] == (
        "what was observed is fine, but mlp_post of layer 0 is not (each expert of the mixture sees tokens of its own)"
    )
    strict = Int8PerTensor(fails=1e-6).verdict(scan.evidence)
    assert isinstance(strict, Verdict)
    assert strict.word == "fails"
