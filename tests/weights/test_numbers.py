"""Quantized weights with plain scales, against direct dequantization."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import save_file

from outlierscope.errors import UserError
from outlierscope.weights import summary as weights
from outlierscope.weights.checkpoint import open_checkpoint
from outlierscope.weights.summary import WeightPlace, summarize_matrix
from tests.model.tiny import edit_config, edit_weights, save, tiny_llama

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return save(tiny_llama(), tmp_path)


def read(folder, name=NAME):
    return [summary for _, summary in open_checkpoint(folder).summaries(0.0) if summary.stored == name]


def check(summary, weight):
    expected = summarize_matrix(weight.float(), WeightPlace("decoder", 1, "down", "", ""))
    assert torch.equal(summary.column_ratio, expected.column_ratio)
    assert torch.equal(summary.row_ratio, expected.row_ratio)
    assert torch.equal(summary.column_extreme, expected.column_extreme)
    assert summary.absmax == expected.absmax


def put(folder, quantized, scales, end="scale_inv", name=NAME):
    def replace(tensors):
        tensors[name] = quantized
        tensors[f"{name}_{end}"] = scales

    edit_weights(folder, replace)


def by_block(scales, block, shape):
    """Each scale spread over its block: [rows, columns]."""
    return torch.kron(scales.float(), torch.ones(block))[: shape[0], : shape[1]]


SHAPE = (32, 96)


@pytest.mark.parametrize("end", ["scale", "scale_inv"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize(
    ("scales", "block"),
    [
        ((), SHAPE),
        ((1,), SHAPE),
        ((32, 1), (1, 96)),
        ((32,), (1, 96)),
        ((32, 12), (1, 8)),
        ((1, 96), (32, 1)),
    ],
)
def test_per_tensor_per_row_and_per_group(folder, end, dtype, scales, block):
    torch.manual_seed(0)
    quantized = (50 * torch.randn(SHAPE)).clamp(-120, 120).to(dtype)
    factors = torch.rand(scales) + 0.1
    put(folder, quantized, factors, end)
    grid = factors.view(-1, 1) if factors.ndim < 2 else factors
    (summary,) = read(folder)
    check(summary, quantized.float() * by_block(grid, block, SHAPE))
    reasons = open_checkpoint(folder).describe()["notes"]["left_out"]
    assert reasons["scales, which the weights are multiplied by"]["count"] == 1


@pytest.mark.parametrize("told", ["weight_block_size", "block_structure", None])
@pytest.mark.parametrize("rows_per_read", [1, 1000])
def test_blocks_as_deepseek_stores_them(folder, monkeypatch, told, rows_per_read):
    """Blocks that do not divide the matrix: 128 x 128 where nothing is told, as in DeepSeek-V3."""
    block = (128, 128) if told is None else (10, 36)
    shape = (300, 200)
    edit_config(folder, hidden_size=300, intermediate_size=200, num_attention_heads=4, head_dim=8)
    if told == "weight_block_size":
        edit_config(folder, quantization_config={"quant_method": "fp8", told: list(block)})
    elif told:
        groups = {"group_0": {"weights": {told: list(block), "num_bits": 8}}}
        edit_config(
            folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": groups}
        )
    torch.manual_seed(1)
    quantized = torch.randn(shape).to(torch.float8_e4m3fn)
    grid = [-(-size // length) for size, length in zip(shape, block, strict=True)]
    scales = torch.rand(grid, dtype=torch.float32) + 0.01
    put(folder, quantized, scales)
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", rows_per_read * shape[1])
    expected = quantized.float() * by_block(scales, block, shape)
    (summary,) = read(folder)
    magnitude = expected.double().abs()
    torch.testing.assert_close(
        summary.column_ratio.double(), magnitude.amax(0) / magnitude.mean(0), rtol=1e-6, atol=0.0
    )
    assert torch.equal(summary.column_extreme, expected[summary.column_argmax, torch.arange(shape[1])])


@pytest.mark.parametrize("scales", [(3, 1, 1), (3,), (3, 4, 1), (3, 2, 3), (1,)])
def test_experts_in_one_tensor(tmp_path, scales):
    torch.manual_seed(2)
    name = "layers.0.mlp.experts.down_proj"
    quantized = torch.randn(3, 4, 6).to(torch.float8_e4m3fn)
    factors = torch.rand(scales) + 0.1
    save_file({name: quantized, f"{name}_scale_inv": factors}, tmp_path / "model.safetensors")
    found = [item for _, item in open_checkpoint(tmp_path / "model.safetensors").summaries(0.0)]
    assert [item.expert for item in found] == [0, 1, 2]
    for expert, summary in enumerate(found):
        grid = factors if scales == (1,) else factors[expert]
        grid = grid.reshape(1, 1) if grid.ndim < 2 else grid
        block = (4 // grid.shape[0], 6 // grid.shape[1])
        weight = quantized[expert].float() * by_block(grid, block, (4, 6))
        assert summary.absmax == float(weight.abs().max())


def test_powers_of_two_as_scales(folder):
    quantized = torch.randn(SHAPE).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.25, 8.0, 1.0]]).to(torch.float8_e8m0fnu)
    put(folder, quantized, scales, "scale")
    (summary,) = read(folder)
    check(summary, quantized.float() * by_block(scales, (32, 32), SHAPE))


def test_an_expert_of_its_own_within_a_joined_parameter(tmp_path):
    """Names and scales together: a quantized gate becomes a part of the loaded model's gate_up_proj."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 160, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": 64}
    more = {"num_local_experts": 2, "num_hidden_layers": 1, "num_key_value_heads": 2}
    folder = save(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **more)), tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    quantized, scales = torch.randn(32, 160).to(torch.float8_e4m3fn), torch.tensor([[0.5, 3.0]])
    put(folder, quantized, scales, name=name)
    (summary,) = read(folder, name)
    assert (summary.parameter, summary.expert, summary.role, summary.rows) == (
        "model.layers.0.mlp.experts.gate_up_proj",
        1,
        "up",
        (32, 64),
    )
    weight = quantized.float() * by_block(scales, (128, 128), (32, 160))
    assert torch.equal(summary.column_extreme, weight[summary.column_argmax, summary.column_index])
    assert summary.absmax == float(weight.abs().max())


def test_without_scales_eight_bit_floats_are_what_they_say(folder):
    quantized = torch.randn(SHAPE).to(torch.float8_e4m3fn)
    edit_weights(folder, lambda tensors: tensors.__setitem__(NAME, quantized))
    check(read(folder)[0], quantized)


def reasons_with(folder, **tensors):
    edit_weights(
        folder, lambda all_tensors: all_tensors.update({NAME + end: item for end, item in tensors.items()})
    )
    assert read(folder) == []
    return open_checkpoint(folder).parts.left_out[NAME]


def test_what_is_not_understood_is_left_out_with_its_reason(folder):
    integers = torch.ones(SHAPE, dtype=torch.int8)
    assert reasons_with(folder, **{"": integers}) == "stored as I8, so packed or quantized"
    told = reasons_with(folder, _scale=torch.ones(5, 7))
    assert told == "quantized, with scales that are not understood (F32, 5 x 7)"
    told = reasons_with(folder, _scale=torch.ones(32, 1), _zero_point=torch.ones(32, 1, dtype=torch.int8))
    assert told == "quantized with zero points, which are not read"
    packed = torch.ones(32, 48, dtype=torch.uint8)
    assert reasons_with(folder, **{"": packed}) == "stored as U8, so packed or quantized"


def test_a_packed_checkpoint_is_refused_in_one_line(tmp_path):
    tensors = {
        "model.layers.0.self_attn.q_proj.qweight": torch.ones(4, 32, dtype=torch.int32),
        "model.layers.0.self_attn.q_proj.scales": torch.ones(1, 32, dtype=torch.float16),
        "model.layers.0.input_layernorm.weight": torch.ones(32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: its weight matrices are stored as I32, so packed or quantized, which are no numbers to look at; "
        "scan the checkpoint that it was quantized from"
    )
