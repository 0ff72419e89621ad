"""Roles from names: a table of real names of many families."""

from __future__ import annotations

import pytest

from outlierscope.model.files.tensor_names import read_tensor_name

MATRICES = """
decoder 3 q          model.layers.3.self_attn.q_proj.weight
decoder 3 o          model.layers.3.self_attn.o_proj.weight
decoder 3 gate       model.layers.3.mlp.gate_proj.weight
decoder 3 down       model.layers.3.mlp.down_proj.weight
decoder 0 gate_up    model.layers.0.mlp.gate_up_proj.weight
decoder 0 qkv        model.layers.0.self_attn.qkv_proj.weight
encoder 5 q          bert.encoder.layer.5.attention.self.query.weight
encoder 5 o          bert.encoder.layer.5.attention.output.dense.weight
encoder 5 up         bert.encoder.layer.5.intermediate.dense.weight
encoder 5 down       bert.encoder.layer.5.output.dense.weight
none    2 qkv        transformer.h.2.attn.c_attn.weight
none    2 o          transformer.h.2.attn.c_proj.weight
none    2 up         transformer.h.2.mlp.c_fc.weight
none    2 down       transformer.h.2.mlp.c_proj.weight
none    7 qkv        gpt_neox.layers.7.attention.query_key_value.weight
none    7 o          gpt_neox.layers.7.attention.dense.weight
none    7 up         gpt_neox.layers.7.mlp.dense_h_to_4h.weight
none    7 down       gpt_neox.layers.7.mlp.dense_4h_to_h.weight
none    1 qkv        transformer.h.1.self_attention.query_key_value.weight
none    1 o          transformer.h.1.self_attention.dense.weight
none    4 v          transformer.layer.4.attention.v_lin.weight
none    4 o          transformer.layer.4.attention.out_lin.weight
none    4 up         transformer.layer.4.ffn.lin1.weight
none    4 down       transformer.layer.4.ffn.lin2.weight
decoder 9 up         model.decoder.layers.9.fc1.weight
decoder 9 down       model.decoder.layers.9.fc2.weight
decoder 9 o          model.decoder.layers.9.self_attn.out_proj.weight
decoder 9 k          model.decoder.layers.9.encoder_attn.k_proj.weight
encoder 1 q          encoder.block.1.layer.0.SelfAttention.q.weight
encoder 1 o          encoder.block.1.layer.0.SelfAttention.o.weight
encoder 1 up         encoder.block.1.layer.1.DenseReluDense.wi.weight
encoder 1 gate       encoder.block.1.layer.1.DenseReluDense.wi_0.weight
encoder 1 up         encoder.block.1.layer.1.DenseReluDense.wi_1.weight
encoder 1 down       encoder.block.1.layer.1.DenseReluDense.wo.weight
decoder 2 k          decoder.block.2.layer.1.EncDecAttention.k.weight
none    8 gate_up    model.layers.8.mlp.Wi.weight
encoder 1 up         wav2vec2.encoder.layers.1.feed_forward.intermediate_dense.weight
encoder 1 down       wav2vec2.encoder.layers.1.feed_forward.output_dense.weight
none    8 down       model.layers.8.mlp.Wo.weight
none    8 o          model.layers.8.attn.Wo.weight
none    8 qkv        model.layers.8.attn.Wqkv.weight
vision  6 q          vit.encoder.layer.6.attention.attention.query.weight
vision  6 down       vit.encoder.layer.6.output.dense.weight
vision  6 o          vision_model.encoder.layers.6.self_attn.out_proj.weight
vision  6 qkv        visual.blocks.6.attn.qkv.weight
vision  6 o          visual.blocks.6.attn.proj.weight
encoder 0 q          encoder.layer.0.attention.attn.q.weight
encoder 0 up         albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight
encoder 0 down       albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight
none    3 up         transformer.h.3.mlp.fc_in.weight
none    3 down       transformer.h.3.mlp.fc_out.weight
"""


@pytest.mark.parametrize("line", MATRICES.strip().splitlines())
def test_matrices(line):
    stack, layer, role, name = line.split()
    found = read_tensor_name(name, 2)
    assert (found.role, found.layer) == (role, int(layer))
    assert found.stack in (None, stack)
    assert found.module == name.removesuffix(".weight")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.input_layernorm.weight", 3),
        ("model.layers.3.post_attention_layernorm.weight", 3),
        ("encoder.layer.4.attention.output.LayerNorm.gamma", 4),
        ("encoder.layer.4.attention.output.LayerNorm.beta", 4),
        ("transformer.h.2.ln_1.bias", 2),
        ("encoder.block.1.layer.0.layer_norm.weight", 1),
        ("vision_model.encoder.layers.6.layer_norm2.bias", 6),
        ("transformer.layer.4.sa_layer_norm.weight", 4),
        ("model.layers.3.self_attn.q_norm.weight", 3),
        ("transformer.ln_f.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_norms(name, layer):
    found = read_tensor_name(name, 1)
    assert (found.role, found.layer) == ("norm", layer)


def test_experts():
    found = read_tensor_name("model.layers.3.block_sparse_moe.experts.17.w2.weight", 2)
    assert (found.role, found.layer, found.expert) == ("down", 3, 17)
    fused = read_tensor_name("model.layers.3.mlp.experts.gate_up_proj", 3)
    assert (fused.role, fused.layer, fused.expert) == ("gate_up", 3, None)
    assert read_tensor_name("model.layers.3.mlp.shared_expert.down_proj.weight", 2).role == "down"


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("model.layers.3.mlp.gate.weight", 2),  # a router
        ("model.layers.3.mixer.in_proj.weight", 2),  # a state-space mixer
        ("model.layers.3.mixer.out_proj.weight", 2),
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", 2),
        ("model.layers.3.self_attn.q_proj.bias", 1),
        ("transformer.layer.0.rel_attn.q", 3),
        ("model.embed_tokens.weight", 2),
        ("lm_head.weight", 2),
        ("model.layers.3.self_attn.rotary_emb.inv_freq", 1),
    ],
)
def test_no_role(name, dimensions):
    assert read_tensor_name(name, dimensions).role is None
