"""Blocks with more, other or scaled branches: on real weights, all that is added makes up the residual stream."""

import pytest
import torch

from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.sites import Site
from tests.model.discovery.test_discover import assert_near, read_sites
from tests.model.families import GROUPED, TEXT, build

ADDED = ("attn_out", "cross_out", "mixer_out", "mlp_out", "side_out", "side_out_2", "side_out_3")
MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "mamba_expand": 2}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CONFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_depthwise_kernel_size": 3,
    "position_embeddings_type": None,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 8),
    "conv_stride": (8, 8),
    "vocab_size": 32,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("model", "config", "stack", "branches"),
    [
        (
            "JambaModel",
            GROUPED | MAMBA | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            "decoder",
            [{"mixer_out", "mlp_out"}, {"attn_out", "mlp_out"}],
        ),
        (
            "Qwen3NextModel",
            GROUPED | LINEAR_ATTENTION,
            "decoder",
            [{"mixer_out", "mlp_out"}, {"attn_out", "mlp_out"}],
        ),
        ("T5Model", T5, "decoder", [{"attn_out", "cross_out", "mlp_out"}] * 2),
        ("DogeModel", GROUPED | {"keep_window_size": 8}, "decoder", [{"attn_out", "mlp_out"}] * 2),
        ("MixtralModel", GROUPED | {"num_local_experts": 4}, "decoder", [{"attn_out", "mlp_out"}] * 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_branches_add_makes_up_the_residual_stream(model, config, stack, branches):
    model = build(model, config)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    inputs = example_inputs(model, seed=3)
    for layer, expected in zip(anatomy.stacks[stack].layers, branches, strict=True):
        names = {name for name in ADDED if anatomy.has(Site(stack, layer.index, name))}
        assert names == expected
        assert layer.layout == "pre-norm"
        seen = read_sites(
            model,
            anatomy,
            [
                Site(stack, layer.index, name)
                for name in ("resid_pre", "resid_mid", *sorted(names), "resid_post")
            ],
            inputs,
        )
        by_name = {site.name: tensor for site, tensor in seen.items()}
        first = by_name["mixer_out"] if "mixer_out" in names else by_name["attn_out"]
        if type(model).__name__ == "DogeModel":  # scales what it carries on, dim by dim
            scales = [
                model.layers[layer.index].input_residual,
                model.layers[layer.index].post_attention_residual,
            ]
        else:
            scales = [1.0, 1.0]
        with torch.no_grad():
            assert_near(by_name["resid_mid"], scales[0] * by_name["resid_pre"] + first)
            whole = scales[1] * by_name["resid_mid"] + by_name["mlp_out"]
            assert_near(by_name["resid_post"], whole + by_name.get("cross_out", 0.0))


def test_mixers_and_attention_are_told_apart():
    model = build(
        "JambaModel", GROUPED | MAMBA | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
    )
    mixer, attending = discover(model).stacks["decoder"].layers
    assert mixer.attention is None
    assert mixer.missing["pattern"] == "no attention weights were seen in it; what mixes tokens is mixer_out"
    assert mixer.taps["mixer_out"].module == "layers.0.mamba.out_proj"
    assert attending.attention.module == "layers.1.self_attn"
    assert "pattern" not in attending.missing


@pytest.mark.parametrize(("model", "config"), [("BartModel", BART), ("T5Model", T5)])
def test_cross_attention_is_told_by_where_its_keys_come_from(model, config):
    anatomy = discover(build(model, config))
    assert all(layer.cross_attention is None for layer in anatomy.stacks["encoder"].layers)
    for layer in anatomy.stacks["decoder"].layers:
        assert layer.attention.causal
        assert not layer.cross_attention.causal
        assert layer.attention.module != layer.cross_attention.module
        roles = [matrix.role for matrix in layer.matrices if matrix.role != "norm"]
        assert roles == ["q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o", "up", "down"]
        assert {"resid_mid", "resid_cross", "cross_z", "cross_out"} <= layer.taps.keys()


def test_a_conformer_has_a_second_mlp_and_a_convolution():
    model = build("Wav2Vec2ConformerModel", CONFORMER)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    layer = anatomy.stacks["audio"].layers[1]
    assert layer.layout == "pre-norm and last norm"
    factors = {name: layer.taps[name].factor for name in ("side_out", "attn_out", "mixer_out", "mlp_out")}
    assert factors == pytest.approx({"side_out": 0.5, "attn_out": 1, "mixer_out": 1, "mlp_out": 0.5})
    assert "ffn1" in layer.taps["side_out"].module
    assert "conv" in layer.taps["mixer_out"].module


def test_a_block_may_begin_with_a_norm_of_the_residual_stream_itself():
    config = GROUPED | {"num_local_experts": 2, "layer_types": ["full_attention"] * 2, "head_dim": 8}
    model = build("MiniMaxModel", config)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    identities = anatomy.stacks["decoder"].layers[0].identities
    assert "first_norm(resid_pre) = resid_pre" in identities


MVP = BART | {"max_position_embeddings": 64, "use_prompt": False}
FSMT = {
    "langs": ["en", "de"],
    "src_vocab_size": 100,
    "tgt_vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def test_both_attentions_of_a_decoder_that_returns_its_weights_are_seen():
    anatomy = discover(build("MvpModel", MVP))
    assert anatomy.proved is True, anatomy.reason
    for layer in anatomy.stacks["decoder"].layers:
        assert (layer.attention.route, layer.cross_attention.route) == ("returned", "returned")
        assert layer.attention.module.endswith("self_attn")
        assert layer.cross_attention.module.endswith("encoder_attn")


def test_attention_whose_weights_are_not_seen_is_a_mixer_and_a_cross_branch():
    """It keeps hidden states as [T, B, d] and hands no weights out in the usual shape."""
    anatomy = discover(build("FSMTModel", FSMT))
    assert anatomy.proved is True, anatomy.reason
    layer = anatomy.stacks["decoder"].layers[1]
    assert "self_attn" in layer.taps["mixer_out"].module
    assert "encoder_attn" in layer.taps["cross_out"].module
    assert "fc2" in layer.taps["mlp_out"].module
    assert (
        layer.missing["cross_pattern"] == "no attention weights were seen that bring what another stack holds"
    )


def roles(layer):
    return {
        (matrix.role, matrix.parameter, matrix.transposed)
        for matrix in layer.matrices
        if matrix.role != "norm"
    }


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        (
            "MixtralModel",
            GROUPED | {"num_local_experts": 4, "intermediate_size": 24},
            {
                ("gate_up", "layers.1.mlp.experts.gate_up_proj", False),
                ("down", "layers.1.mlp.experts.down_proj", False),
            },
        ),
        (
            "GptOssModel",
            GROUPED | {"num_local_experts": 4, "intermediate_size": 24, "head_dim": 8},
            {
                ("gate_up", "layers.1.mlp.experts.gate_up_proj", True),
                ("down", "layers.1.mlp.experts.down_proj", True),
            },
        ),
        (
            "Llama4TextModel",
            GROUPED
            | {"num_local_experts": 4, "intermediate_size": 24, "intermediate_size_mlp": 40, "head_dim": 8},
            {
                ("gate", "layers.1.feed_forward.shared_expert.gate_proj.weight", False),
                ("up", "layers.1.feed_forward.shared_expert.up_proj.weight", False),
                ("down", "layers.1.feed_forward.shared_expert.down_proj.weight", False),
                ("gate_up", "layers.1.feed_forward.experts.gate_up_proj", True),
                ("down", "layers.1.feed_forward.experts.down_proj", True),
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_experts_in_one_parameter_have_roles(model, config, expected):
    anatomy = discover(build(model, config))
    assert anatomy.proved is True, anatomy.reason
    layer = anatomy.stacks["decoder"].layers[1]
    assert {matrix for matrix in roles(layer) if "self_attn" not in matrix[1]} == expected
    assert layer.missing["mlp_post"] == "each expert of the mixture sees tokens of its own"


def test_what_experts_read_is_the_norm_before_them():
    model = build("MixtralModel", GROUPED | {"num_local_experts": 4})
    anatomy = discover(model)
    inputs = example_inputs(model, seed=5)
    site, before = Site("decoder", 1, "mlp_in"), Site("decoder", 1, "resid_mid")
    seen = read_sites(model, anatomy, [site, before], inputs)
    with torch.no_grad():
        assert_near(seen[site], model.layers[1].post_attention_layernorm(seen[before]))


def test_what_low_rank_projections_read_is_the_norm_before_the_first_of_them():
    config = GROUPED | {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    config |= {"v_head_dim": 8, "first_k_dense_replace": 2, "num_key_value_heads": 4}
    model = build("DeepseekV3Model", config)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    site, before = Site("decoder", 1, "attn_in"), Site("decoder", 1, "resid_pre")
    seen = read_sites(model, anatomy, [site, before], example_inputs(model, seed=5))
    with torch.no_grad():
        assert_near(seen[site], model.layers[1].input_layernorm(seen[before]))


def test_attention_that_is_made_of_two_is_observed_as_a_mixer():
    anatomy = discover(build("DiffLlamaModel", GROUPED))
    assert anatomy.proved is True, anatomy.reason
    for layer in anatomy.stacks["decoder"].layers:
        assert layer.attention is None
        assert layer.missing["pattern"].startswith(
            "it attends 2 times, and only one attention has a place in a block"
        )
        assert "self_attn" in layer.taps["mixer_out"].module


@pytest.mark.parametrize(
    ("model", "config", "stack"),
    [
        ("MambaModel", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}, "decoder"),
        ("FNetModel", TEXT, "encoder"),
    ],
)
def test_a_model_without_attention_is_observed_at_its_mixers(model, config, stack):
    model = build(model, config)
    anatomy = discover(model)
    assert anatomy.proved is None
    assert anatomy.reason == (
        f"{type(model).__name__} has no attention: sinks and heads are not observed; "
        "its mixers are, at mixer_out"
    )
    assert list(anatomy.stacks) == [stack]
    inputs = example_inputs(model, seed=2)
    for layer in anatomy.stacks[stack].layers:
        assert layer.attention is None
        sites = [Site(stack, layer.index, name) for name in ("resid_pre", "mixer_out", "resid_post")]
        before, mixed, after = read_sites(model, anatomy, sites, inputs).values()
        if stack == "decoder":
            assert_near(after, before + mixed)
        else:
            assert mixed.shape == after.shape


def test_attention_in_windows_that_returns_nothing_readable_is_a_mixer_beside_the_decoder():
    """Longformer's kind pads its windows; its weights are no distribution over all keys."""
    sizes = {
        "attention_window": 8,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    }
    config = {key: value for key, value in BART.items() if key != "max_position_embeddings"} | sizes
    anatomy = discover(build("LEDModel", config))
    assert anatomy.proved is True, anatomy.reason
    assert set(anatomy.stacks) == {"encoder", "decoder"}
    for layer in anatomy.stacks["encoder"].layers:
        assert layer.taps.keys() >= {"mixer_out", "mlp_out", "resid_mid"}
