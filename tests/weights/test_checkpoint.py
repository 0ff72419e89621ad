"""Weights straight from files: the same as from the loaded model, in little memory."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from outlierscope.errors import UserError
from outlierscope.model.load import load
from outlierscope.weights import summary as weights
from outlierscope.weights.checkpoint import Checkpoint, open_checkpoint
from outlierscope.weights.loaded import summarize_weights
from outlierscope.weights.summary import BLOCK_ELEMENTS, WeightPlace, summarize_matrix
from tests.model.tiny import edit_config, edit_weights, save, tiny_bert, tiny_gpt2, tiny_llama


def summaries(source, kept_sigma=0.0):
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    return [summary for _, summary in checkpoint.summaries(kept_sigma)]


def same_tensors(first, second):
    names = ("column_ratio", "row_ratio", "column_argmax", "column_extreme", "values")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert, tiny_gpt2])
def test_names_tell_what_data_flow_proves(tmp_path, make):
    folder = save(make(), tmp_path)
    proved = {summary.parameter: summary for summary in summarize_weights(load(folder))}
    read = {summary.parameter: summary for summary in summaries(folder)}
    assert len(proved) > 10
    # The norm of BERT's embeddings is in no block and no final norm.
    assert set(read) - set(proved) <= {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
    assert set(proved) <= set(read)
    for name, summary in proved.items():
        assert (read[name].role, read[name].layer, read[name].module) == (
            summary.role,
            summary.layer,
            summary.module,
        )
        assert read[name].stack == summary.stack
        assert same_tensors(read[name], summary), name


def test_real_model(minilm_folder):
    tensors = load_file(minilm_folder / "model.safetensors")
    found = {summary.parameter: summary for summary in summaries(minilm_folder)}
    assert {summary.role for summary in found.values()} == {"q", "k", "v", "o", "up", "down", "norm"}
    assert len(found) == 6 * (6 + 4) + 2
    for name, summary in found.items():
        if summary.role == "norm":
            assert torch.equal(summary.values, tensors[name])
            continue
        magnitude = tensors[name].double().abs()
        expected = magnitude.amax(0) / magnitude.mean(0)
        torch.testing.assert_close(summary.column_ratio.double(), expected, rtol=1e-6, atol=0.0)


def test_shards_give_what_one_file_gives(tmp_path):
    whole = open_checkpoint(save(tiny_llama(), tmp_path / "whole"))
    cut = open_checkpoint(save(tiny_llama(), tmp_path / "cut", max_shard_size="20KB"))
    assert cut.describe()["files"] > 3
    by_name = {summary.parameter: summary for summary in summaries(cut)}
    for summary in summaries(whole):
        assert same_tensors(by_name[summary.parameter], summary)
    assert whole.fingerprint() == cut.fingerprint()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_dtypes(tmp_path, dtype):
    torch.manual_seed(0)
    weight = torch.randn(48, 64).to(dtype)
    save_file({"layers.0.mlp.down_proj.weight": weight}, tmp_path / "model.safetensors")
    (summary,) = summaries(tmp_path / "model.safetensors")
    place = WeightPlace("decoder", 0, "down", "layers.0.mlp.down_proj", "layers.0.mlp.down_proj.weight")
    assert same_tensors(summary, summarize_matrix(weight.float(), place))


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    big = torch.randn(3000, 2000, dtype=torch.bfloat16)
    experts = torch.randn(5, 700, 900, dtype=torch.bfloat16)
    tensors = {"layers.0.mlp.down_proj.weight": big, "layers.0.mlp.experts.up_proj": experts}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    found = summaries(checkpoint)
    assert 0 < checkpoint.largest_block <= BLOCK_ELEMENTS * 2
    assert [summary.expert for summary in found if summary.role == "up"] == [0, 1, 2, 3, 4]
    for summary in found:
        whole = big if summary.expert is None else experts[summary.expert]
        place = WeightPlace("decoder", 0, summary.role, summary.module, summary.parameter, summary.expert)
        assert same_tensors(summary, summarize_matrix(whole, place))


def test_blocks_of_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1)
    checkpoint = open_checkpoint(save(tiny_gpt2(), tmp_path))
    blockwise = {summary.parameter: summary for summary in summaries(checkpoint)}
    assert checkpoint.largest_block == 32 * 4 * 4
    monkeypatch.undo()
    for summary in summaries(tmp_path):
        torch.testing.assert_close(blockwise[summary.parameter].column_ratio, summary.column_ratio)
        assert torch.equal(blockwise[summary.parameter].column_argmax, summary.column_argmax)


def transposed(checkpoint):
    return {part.entry.name: part.transposed for part in checkpoint.parts.found}


def test_orientation_from_shapes_and_siblings(tmp_path):
    folder = save(tiny_gpt2(), tmp_path / "gpt2")
    for known in (folder, folder / "model.safetensors"):  # the kinds of the model's modules, and shapes alone
        checkpoint = open_checkpoint(known)
        found = transposed(checkpoint)
        matrices = [how for name, how in found.items() if "attn" in name or "mlp" in name]
        assert matrices == [True] * 8
        assert checkpoint.parts.orientation_assumed == []
    checkpoint = open_checkpoint(save(tiny_llama(), tmp_path / "llama"))
    assert not any(transposed(checkpoint).values())
    assert checkpoint.parts.orientation_assumed == []


def test_orientation_that_cannot_be_told_is_said(tmp_path):
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    tensors = {f"model.layers.0.self_attn.{name}.weight": torch.randn(32, 32) for name in names}
    save_file(tensors | {"model.layers.0.norm.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert sorted(checkpoint.describe()["notes"]["orientation_assumed"]) == sorted(tensors)


def test_what_is_left_out_is_listed_with_its_reason(tmp_path):
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(32, 16),
        "model.layers.0.self_attn.q_proj.bias": torch.randn(32),
        "model.layers.0.self_attn.k_proj.weight": torch.zeros(4, 4, dtype=torch.int8),
        "model.layers.0.mlp.gate.weight": torch.randn(4, 16),
        "model.embed_tokens.weight": torch.randn(64, 16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.parts.left_out == {
        "model.layers.0.self_attn.q_proj.bias": "bias or scalar",
        "model.layers.0.self_attn.k_proj.weight": "stored as I8, so packed or quantized",
        "model.layers.0.mlp.gate.weight": "its name tells no role",
        "model.embed_tokens.weight": "outside of the blocks",
    }
    left_out = checkpoint.describe()["notes"]["left_out"]
    assert left_out["its name tells no role"] == {"count": 1, "some": "model.layers.0.mlp.gate.weight"}


def test_stacks_whose_names_do_not_tell_them(tmp_path):
    folder = save(tiny_llama(), tmp_path)
    assert {summary.stack for summary in summaries(folder)} == {"decoder"}
    edit_config(folder, architectures=["DistilBertForMaskedLM"])
    assert {summary.stack for summary in summaries(folder)} == {"encoder"}
    edit_config(folder, image_size=32, vocab_size=None)
    assert {summary.stack for summary in summaries(folder)} == {"vision"}


def test_fingerprint_sees_changed_weights(tmp_path):
    folder = save(tiny_llama(), tmp_path)
    before = open_checkpoint(folder).fingerprint()
    edit_weights(folder, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].mul_(2))
    assert open_checkpoint(folder).fingerprint() != before


def message(name):
    with pytest.raises(UserError) as caught:
        summaries(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors(tmp_path):
    folder = save(tiny_llama(), tmp_path / "model")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-8])
    assert "is truncated: tensor" in message(folder)
    assert "is truncated: tensor" in message(path)
    path.write_bytes(struct.pack("<Q", 2**40) + raw[8:])
    assert "its header claims 1,099,511,627,776 bytes" in message(folder)
    save_file({"some.thing": torch.ones(2, 2)}, path)
    assert message(folder).startswith(
        f"{folder}: no name of its 1 tensors tells a weight matrix of a block; "
    )
    path.unlink()
    assert "neither model.safetensors nor pytorch_model.bin" in message(folder)
    torch.save({}, folder / "pytorch_model.bin")
    assert "has its weights in pickles only" in message(folder)
    assert message(tmp_path / "nowhere") == f"no such folder: {tmp_path / 'nowhere'}"


def test_a_file_that_shrinks_meanwhile(tmp_path):
    path = save(tiny_llama(), tmp_path) / "model.safetensors"
    checkpoint = open_checkpoint(tmp_path)
    with path.open("r+b") as file:
        file.truncate(checkpoint.entries[3].begin)
    with pytest.raises(UserError, match=r"ends within tensor .*; was it changed meanwhile\?$"):
        summaries(checkpoint)


def test_describe_is_plain(tmp_path):
    described = open_checkpoint(save(tiny_llama(), tmp_path)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["parameters"] == sum(item.numel() for item in tiny_llama().parameters())
    assert (described["class"], described["dtype"]) == ("LlamaForCausalLM", "F32")


@pytest.mark.slow
def test_gemma(gemma_folder):
    tensors = load_file(gemma_folder / "model.safetensors")
    checkpoint = open_checkpoint(gemma_folder)
    found = {summary.parameter: summary for summary in summaries(checkpoint)}
    roles = [summary.role for summary in found.values()]
    assert {role: roles.count(role) for role in set(roles)} == {
        **dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 18),
        "norm": 18 * 6 + 1,
    }
    assert checkpoint.describe()["notes"]["orientation_assumed"] == []
    for name, summary in found.items():
        if summary.role != "norm":
            magnitude = tensors[name].double().abs()
            for ratio, dim in ((summary.column_ratio, 0), (summary.row_ratio, 1)):
                torch.testing.assert_close(
                    ratio.double(), magnitude.amax(dim) / magnitude.mean(dim), rtol=1e-6, atol=0.0
                )
    proved = {
        summary.parameter: summary for summary in summarize_weights(load(gemma_folder, dtype="float32"))
    }
    assert set(proved) == set(found)
    for name, summary in proved.items():
        assert (summary.role, summary.layer, summary.stack) == (
            found[name].role,
            found[name].layer,
            "decoder",
        )
        assert same_tensors(summary, found[name]), name
