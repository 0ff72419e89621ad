"""Quantized checkpoints: the weights that come out are computed here directly; what cannot be read is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.model import device
from outlierscope.reporting.summary import summarize
from tests.model.tiny import edit_config, edit_weights, save, tiny_llama

F8 = torch.float8_e4m3fn


def matrices(tensors):
    return [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]


def message(name, **options):
    with pytest.raises(UserError) as caught:
        osc.load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def quantized(folder, change, config):
    """A tiny Llama whose matrices ``change`` stores in another way; name -> the weight that this stands for."""
    save(tiny_llama(), folder)
    expected = {}

    def edit(tensors):
        for name in matrices(tensors):
            stored, plain = change(tensors.pop(name))
            stem = name.removesuffix("weight")
            tensors.update({f"{stem}{ending}": tensor for ending, tensor in stored.items()})
            expected[name] = plain

    edit_weights(folder, edit)
    edit_config(folder, quantization_config=config)
    return expected


def check(folder, expected, label, dtype="float32"):
    loaded = osc.load(folder, dtype=dtype)
    assert len(expected) == 14
    for name, parameter in tiny_llama().named_parameters():
        weight = expected.get(name, parameter).to(loaded.dtype)
        assert torch.equal(loaded.full.get_parameter(name), weight), name
    assert loaded.notes == {"newly_initialized": [], "unused": []}
    assert not hasattr(loaded.full.config, "quantization_config")
    assert loaded.describe()["origin"]["quantization"]["quantization"] == label
    return loaded


def fp8_blocks(weight):
    """fp8 with one float32 scale for each block of 16 x 16."""
    blocks = weight.reshape(weight.shape[0] // 16, 16, weight.shape[1] // 16, 16)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(F8)
    plain = (stored.float() * scale[:, None, :, None]).reshape(weight.shape)
    return {"weight": stored.reshape(weight.shape), "weight_scale_inv": scale}, plain


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_with_scales_of_blocks(tmp_path, dtype):
    loaded = check(tmp_path, quantized(tmp_path, fp8_blocks, FP8), "fp8", dtype)
    assert loaded.origin["quantization"]["stored"]["F8_E4M3"] == 14


def test_the_dtype_is_the_configs_or_bfloat16(tmp_path):
    quantized(tmp_path, fp8_blocks, FP8)
    assert osc.load(tmp_path).dtype == torch.float32
    edit_config(tmp_path, dtype=None)
    assert osc.load(tmp_path).dtype == torch.bfloat16


def compressed(kind, weights, **more):
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


def fp8_rows(weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(F8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def int8_rows(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def int4_groups(weight):
    """Groups of 16 along a row; eight numbers from -8 to 7, moved up by 8, in one int32, the first one lowest."""
    rows = weight.shape[0]
    groups = weight.reshape(rows, -1, 16)
    scale = groups.abs().amax(2) / 7
    whole = (groups / scale[..., None]).round().clamp(-8, 7)
    plain = (whole * scale[..., None]).reshape(weight.shape)
    nibbles = (whole.reshape(rows, -1, 8).long() + 8) << (4 * torch.arange(8))
    packed = nibbles.sum(2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}, plain


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (fp8_rows, compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})),
        (int8_rows, compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})),
        (
            int4_groups,
            compressed(
                "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
            ),
        ),
    ],
)
def test_compressed_tensors(tmp_path, change, config):
    check(tmp_path, quantized(tmp_path, change, config), f"compressed-tensors ({config['format']})")


def test_compressed_tensors_without_the_package(tmp_path, monkeypatch):
    config = compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})
    quantized(tmp_path, int8_rows, config)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    assert message(tmp_path) == (
        f"{tmp_path}: dequantizing compressed-tensors weights needs the package compressed_tensors; "
        "pip install 'outlierscope[quantized]'"
    )


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"load_in_8bit": True}, "bitsandbytes int8"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
    ],
)
def test_bitsandbytes(tmp_path, settings, label):
    save(tiny_llama(), tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=BitsAndBytesConfig(**settings)
    ).save_pretrained(tmp_path / "stored")
    stored = load_file(tmp_path / "stored" / "model.safetensors")
    expected = {}
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        shape = tiny_llama().get_parameter(name).shape
        if "load_in_8bit" in settings:
            plain = stored[name].float() * stored[name.replace("weight", "SCB")][:, None] / 127
        else:
            table, absmax = stored[f"{name}.quant_map"], stored[f"{name}.absmax"].float()
            nibbles = torch.stack([stored[name].flatten() >> 4, stored[name].flatten() & 15], 1).flatten()
            plain = (table[nibbles.long()].reshape(-1, 64) * absmax[:, None]).reshape(shape)
        expected[name] = plain
    loaded = osc.load(tmp_path / "stored", dtype="float32")
    assert len(expected) == 14
    for name, plain in expected.items():
        torch.testing.assert_close(loaded.full.get_parameter(name), plain, rtol=1e-6, atol=1e-7, msg=name)
    assert loaded.origin["quantization"]["quantization"] == label
    assert loaded.dtype == torch.float32


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64}
    folder = save(GptOssForCausalLM(GptOssConfig(**sizes, **heads, pad_token_id=0)), tmp_path)
    expected = {}

    def edit(tensors):
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = tensors.pop(name).shape
            # Two numbers a byte, the first one in the lower half; a power of two for every 32 of them.
            blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            scales = torch.randint(120, 130, (experts, rows, columns // 32), dtype=torch.uint8)
            values = FP4[torch.stack([blocks & 15, blocks >> 4], -1).long()].flatten(-2)
            plain = values * torch.exp2(scales.float() - 127)[..., None]
            expected[name] = plain.flatten(-2).transpose(1, 2)
            tensors.update({f"{name}_blocks": blocks, f"{name}_scales": scales})

    edit_weights(folder, edit)
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    loaded = osc.load(folder, dtype="float32")
    assert len(expected) == 2
    for name, plain in expected.items():
        assert torch.equal(loaded.full.get_parameter(name), plain), name
    assert loaded.origin["quantization"]["quantization"] == "mxfp4"


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "quanto", "modelopt", "unheard-of"])
def test_what_transformers_cannot_dequantize_is_refused_by_name(tmp_path, method):
    import transformers

    save(tiny_llama(), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    assert message(tmp_path) == (
        f"{tmp_path} is quantized with {method}, which transformers {transformers.__version__} cannot dequantize; "
        "scan the checkpoint that it was quantized from"
    )
    edit_config(tmp_path, quantization_config={"bits": 4})
    assert f"{tmp_path} is quantized with an unnamed method, which" in message(tmp_path)


def test_a_config_that_does_not_fit_the_weights(tmp_path):
    quantized(tmp_path, fp8_blocks, FP8 | {"activation_scheme": "odd"})
    assert message(tmp_path) == f"cannot load {tmp_path}: Activation scheme odd not supported"


def test_scales_that_no_config_explains(tmp_path):
    quantized(tmp_path, fp8_blocks, None)
    assert message(tmp_path) == (
        f"{tmp_path}: model.layers.0.mlp.down_proj.weight is quantized (F8_E4M3, with scales of its own), but "
        "config.json has no quantization_config that says how; scan the checkpoint that it was quantized from"
    )


def test_memory_counts_the_dequantized_weights(tmp_path, monkeypatch):
    quantized(tmp_path, fp8_blocks, FP8)
    stored = (tmp_path / "model.safetensors").stat().st_size
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemAvailable: {stored // 1024} kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    assert "GiB of memory for its weights" in message(tmp_path)


def test_the_scan_says_what_was_dequantized(tmp_path):
    quantized(tmp_path / "model", fp8_blocks, FP8)
    ids = [[1, *range(5, 40)]] * 4
    scan = osc.scan(osc.load(tmp_path / "model"), ids, tokens=100, length=32, out=tmp_path / "scan")
    assert "float32 dequantized from fp8" in summarize(scan).description
    written = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert written["model"]["origin"]["quantization"]["method"] == "fp8"
    assert summarize(osc.Scan.open(tmp_path / "scan")).description == summarize(scan).description
