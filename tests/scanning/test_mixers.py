"""Models whose tokens are mixed without attention, in all layers or in some, against plain hooks."""

from __future__ import annotations

import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

import outlierscope
from outlierscope import cli
from outlierscope.reporting.summary import summarize
from tests.criteria.direct import massive_events
from tests.model.tiny import save
from tests.scanning.plain_stacks import VOCABULARY, plain_decoder, sequences_of, sharpened

ATTENTION = ("systematic_attention", "sink", "no_op_head", "value_drain")
NO_ATTENTION = "MambaModel has no attention: sinks and heads are not observed; its mixers are, at mixer_out"
RULE = {"absolute": 3.0, "ratio": 4.0, "keep": 0.9}
LENGTHS = (70, 64, 33, 70, 66, 70, 65, 70, 68, 64)


def mamba():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    return sharpened(MambaForCausalLM(config))


def jamba():
    """Layer 0 is a state-space mixer, layer 1 attends."""
    config = JambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        mamba_expand=2,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
    )
    return sharpened(JambaForCausalLM(config))


def scanned(model, given):
    return outlierscope.scan(
        outlierscope.wrap(model), given, length=70, batch_size=1, exact=True, thresholds={"massive": RULE}
    )


@pytest.fixture(scope="module")
def given():
    return sequences_of(LENGTHS)


@pytest.fixture(scope="module")
def pure(given):
    model = mamba()
    places = {("mixer_out", layer): (f"backbone.layers.{layer}.mixer", "output") for layer in range(2)} | {
        ("resid_post", layer): (f"backbone.layers.{layer}", "output") for layer in range(2)
    }
    return scanned(model, given), plain_decoder(model, places, given)


@pytest.fixture(scope="module")
def hybrid(given):
    model = jamba()
    places = {
        ("mixer_out", 0): ("model.layers.0.mamba", "output"),
        ("attn_out", 1): ("model.layers.1.self_attn", "output"),
        ("resid_post", 0): ("model.layers.0", "output"),
        ("resid_post", 1): ("model.layers.1", "output"),
    }
    return scanned(model, given), plain_decoder(model, places, given)


@pytest.mark.parametrize("kind", ["pure", "hybrid"])
def test_what_mixers_add_and_the_residual_stream(kind, request):
    scan, plain = request.getfixturevalue(kind)
    checked = [(name, layer) for name, layers in plain.sites.items() for layer in layers]
    assert len(checked) == 4
    for name, layer in checked:
        values = torch.cat(plain.sites[name][layer]).double()  # [tokens, d]
        moments = scan.stat(name, "moments", layer)
        assert moments.count == len(values) == sum(LENGTHS)
        torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.m2, ((values - values.mean(0)) ** 2).sum(0), rtol=1e-4, atol=1e-4)
        strongest = scan.stat(name, "extremes", layer).value.abs().amax(0)
        torch.testing.assert_close(strongest.double(), values.abs().amax(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["pure", "hybrid"])
def test_massive_events_of_the_residual_stream(kind, request):
    scan, plain = request.getfixturevalue(kind)
    events, _ = massive_events(plain, RULE["absolute"], RULE["ratio"], RULE["keep"])
    rows = [row for row in scan.findings.to_pylist() if row["criterion"] == "massive"]
    assert {(row["layer"], row["dim"], row["token_id"]): row["count"] for row in rows} == dict(events)
    assert events


def test_a_model_without_attention_says_so_once(pure):
    scan, _ = pure
    why = {row["what"]: row["why"] for row in scan.manifest["not_observed"]}
    assert why["attention"] == NO_ATTENTION
    assert {name: why[name] for name in ATTENTION} == dict.fromkeys(ATTENTION, NO_ATTENTION)
    assert "anatomy" not in why
    assert "decoder pattern" not in why
    summary = summarize(scan)
    assert summary.heads == [f"not judged: {NO_ATTENTION}"]
    assert summary.not_observed[0] == f"attention: {NO_ATTENTION}"


def test_a_hybrid_is_judged_where_it_attends(hybrid):
    scan, _ = hybrid
    why = {row["what"]: row for row in scan.manifest["not_observed"]}
    assert why["decoder pattern"]["layers"] == [0]
    assert why["decoder pattern"]["why"] == (
        "no attention weights were seen in it; what mixes tokens is mixer_out"
    )
    assert not {"attention", "anatomy", "sink", "value_drain"} & why.keys()
    # Every sequence of at least 64 tokens was judged.
    (rates,) = (
        scan.stat("pattern", stat.name, 1)
        for stat in scan.evidence.measurements.at(scan.evidence.anatomy.sites("pattern")[0])
        if stat.name.startswith("sink")
    )
    assert rates.sequences == sum(length >= 64 for length in LENGTHS)
    assert {row["layer"] for row in scan.findings.to_pylist() if row["kind"] == "attention"} <= {1}


def test_fail_on_a_sink_where_nothing_attends(tmp_path, monkeypatch, capsys):
    folder = save(mamba(), tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "the": 4, "old": 5, "sea": 6}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    options = ["--text", "the old sea " * 30, "--out", str(tmp_path / "scan"), "--fail-on", "sink"]
    monkeypatch.setattr(sys, "argv", ["outlierscope", "scan", str(folder), *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert f"--fail-on: sink could not be judged: {NO_ATTENTION}\n" in capsys.readouterr().err
    assert stop.value.code == 1


def test_what_is_left_out_by_sites_could_not_be_judged(given):
    scan = outlierscope.scan(outlierscope.wrap(mamba()), given, length=70, sites=("mixer_out",))
    why = {row["what"]: row["why"] for row in scan.manifest["not_observed"]}
    assert why["massive"] == "it looks at resid_post, which --sites or --layers leave out"


def test_a_hybrid_is_not_called_fine_for_what_its_mixers_read(hybrid):
    scan, _ = hybrid
    why = {row["what"]: row["why"] for row in scan.manifest["not_observed"]}
    assert why["int8_per_token"].startswith("what was observed is fine, but ")
