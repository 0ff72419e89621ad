"""Residual streams that bare parameters add to, read through taps and held against plain arithmetic."""

import torch

from outlierscope.model.discovery.discover import discover
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps
from tests.model.families import GROUPED, TEXT, build


def read_layer(model, anatomy, layer, names):
    """Sites of one layer by name, on a few tokens."""
    sites = [Site("decoder", layer, name) for name in names]
    seen = {}
    inputs = {"input_ids": torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))}
    with torch.no_grad(), Taps(model, anatomy, sites, lambda site, t: seen.__setitem__(site, t.clone())):
        model(**inputs, use_cache=False)
    return [seen[anatomy.canonical(site)] for site in sites]


def test_a_bias_that_is_part_of_no_layer_is_added_to_the_branch():
    model = build("GPTNeoXJapaneseModel", TEXT | {"intermediate_multiple_size": 2})
    anatomy = discover(model)
    assert anatomy.proved, anatomy.reason
    first, last = (anatomy.tap(Site("decoder", layer, "attn_out")) for layer in (0, 1))
    assert first.offset_parameter is None
    assert last.offset_parameter == "layers.1.attention.dense_bias"
    assert last.scale_parameter is None
    written = []
    hook = model.layers[1].attention.dense.register_forward_hook(lambda _m, _a, out: written.append(out))
    before, branch, after = read_layer(model, anatomy, 1, ["resid_pre", "attn_out", "resid_mid"])
    hook.remove()
    assert torch.equal(branch, written[0] + model.layers[1].attention.dense_bias)
    assert (before + branch - after).abs().max() < 1e-5


def test_branch_and_stream_are_scaled_after_parameters_were_added():
    model = build("ZayaModel", GROUPED | {"head_dim": 8, "num_experts": 4, "vocab_size": 64})
    anatomy = discover(model)
    assert anatomy.proved, anatomy.reason
    for name, place in (("attn_out", "post_attention"), ("mlp_out", "post_mlp")):
        scaling = model.layers[1].get_submodule(f"{place}_residual_scale")
        prefix = f"layers.1.{place}_residual_scale.hidden_states_"
        tap = anatomy.tap(Site("decoder", 1, name))
        assert (tap.offset_parameter, tap.scale_parameter) == (f"{prefix}bias", f"{prefix}scale")
        passed = []
        hook = scaling.register_forward_hook(lambda _m, given, out, to=passed: to.append((*given, out)))
        (branch,) = read_layer(model, anatomy, 1, [name])
        hook.remove()
        hidden, residual, total = passed[0]
        expected = total - (residual + scaling.residual_bias) * scaling.residual_scale
        assert (branch - expected).abs().max() < 1e-5
        assert (
            branch - (hidden + scaling.hidden_states_bias) * scaling.hidden_states_scale
        ).abs().max() < 1e-6


def test_what_is_added_and_is_no_parameter_is_refused():
    model = build("LlamaModel", GROUPED)
    constant = torch.rand(model.config.hidden_size) + 0.5
    model.layers[1].register_forward_hook(lambda _module, _given, output: output + constant)
    anatomy = discover(model)
    assert anatomy.proved is False
    assert anatomy.reason == "decoder: layer 1: the output of layers.1 is no sum of what passed before it"
