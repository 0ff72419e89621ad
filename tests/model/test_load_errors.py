"""Loading: what is wrong is told in one line."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from huggingface_hub import constants

from outlierscope.errors import UserError
from outlierscope.model import device
from outlierscope.model.load import load
from tests.model.tiny import edit_config, edit_weights, save, tiny_bert, tiny_llama


def message(name, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) > 20
    return text


@pytest.fixture
def folder(tmp_path):
    return save(tiny_llama(), tmp_path / "model")


def test_no_such_model(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert message("someone/no-such-model") == (
        "no such model: someone/no-such-model is neither a folder here nor in the local Hugging Face cache, "
        "and HF_HUB_OFFLINE is set; unset it to download"
    )
    assert "no-such at revision 'v1' is neither" in message("no-such", revision="v1")
    assert message("./nowhere") == "no such folder: ./nowhere"
    assert message(tmp_path / "nowhere") == f"no such folder: {tmp_path / 'nowhere'}"
    assert message("what is this") == "no such folder: what is this"
    assert message("-x/y") == "no such model: -x/y is neither a folder here nor a valid hub id"


def test_no_network(monkeypatch):
    from huggingface_hub import errors

    def fail(*_arguments, **_options):
        raise errors.LocalEntryNotFoundError("Got: ConnectError\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert message("someone/model").endswith("and the hub cannot be reached; check the network")


def test_revision_of_a_folder(folder):
    assert message(folder, revision="main").endswith("is local; a revision applies to hub models only")


def test_files_instead_of_folders(tmp_path, folder):
    assert f"give the model's folder (with config.json) instead: {folder}" in message(
        folder / "model.safetensors"
    )
    (tmp_path / "model.xyz").write_bytes(b"")
    assert (
        "has an unknown file type; give a folder in Hugging Face format, a .gguf file or a hub id"
        in message(tmp_path / "model.xyz")
    )


def test_config(folder):
    config = folder / "config.json"
    edit_config(folder, model_type="nonsense")
    assert "has the unknown model_type 'nonsense'" in message(folder)
    edit_config(folder, model_type=None, architectures=None)
    assert message(folder).endswith("config.json names no model_type, so it is no model of transformers")
    config.write_text('{"model_type": "llama",\n')
    assert message(folder).startswith(f"{config} is not valid JSON: line 2, ")
    config.write_bytes(b"\xff\xfe\x00")
    assert message(folder) == f"{config} is not valid JSON: it is no UTF-8 text"
    config.write_text("[1]")
    assert message(folder) == f"{config} holds no JSON object"
    config.unlink()
    assert (
        message(folder) == f"{folder} has no config.json, so it is not a model folder in Hugging Face format"
    )


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 0}, {"hidden_size": "many"}, {"hidden_act": "no"}]
)
def test_nonsense_in_the_config(folder, changes):
    edit_config(folder, **changes)
    assert message(folder).startswith(f"cannot load {folder}: ")


def test_remote_code_is_refused(folder):
    edit_config(folder, model_type="own", architectures=["Own"], auto_map={"AutoModel": "modeling_own.Own"})
    assert message(folder) == (
        f"{folder} needs Python code of its own to run; if you trust it, "
        "allow that with --trust-remote-code (trust_remote_code=True)"
    )


def test_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "model.onnx")
    assert message(folder) == (
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin "
        "(it has model.onnx, which cannot be read)"
    )


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda raw: raw[:5], "is no safetensors file: it has 5 bytes"),
        (lambda raw: raw[: len(raw) - 100], "is truncated: tensor "),
        (lambda raw: raw[:200], "is truncated or no safetensors file: its header claims "),
        (lambda raw: struct.pack("<Q", 2**62) + raw[8:], "its header claims 4,611,686,018,427,387,904 bytes"),
        (lambda raw: raw[:8] + b"x" + raw[9:], "is corrupt: its header is no JSON object"),
        (lambda raw: raw[:8] + b"\xff" + raw[9:], "is corrupt: its header is no JSON object"),
        (
            lambda raw: raw.replace(b'"F32"', b'"F99"', 1),
            "is corrupt: its header has no sound entry for tensor ",
        ),
        (lambda raw: raw.replace(b'"F32"', b'"F16"', 1), " and dtype F16 cannot have "),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_broken_safetensors(folder, damage, expected):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    text = message(folder)
    assert text.startswith(str(path))
    assert expected in text


def test_overlapping_tensors(folder):
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")}
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 4)
    assert "is corrupt: tensors a and b overlap" in message(folder)


def test_shards(tmp_path):
    folder = save(tiny_llama(), tmp_path, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = sorted(set(content["weight_map"].values()))[0]
    (folder / first).rename(folder / "aside")
    assert f"weight files that model.safetensors.index.json names: {first}" in message(folder)
    (folder / "aside").rename(folder / first)
    promised = content["weight_map"] | {"model.extra": first}
    index.write_text(json.dumps({"weight_map": promised}))
    assert message(folder).endswith(
        "lacks tensors that model.safetensors.index.json places in it: model.extra"
    )
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "names a file outside of its folder for tensor a: '../../secret.safetensors'" in message(folder)
    index.write_text(json.dumps({"weight_map": []}))
    assert message(folder).endswith("has no weight_map from tensor names to files")


def test_missing_weights_of_the_backbone(folder):
    def drop(tensors):
        for name in [name for name in tensors if "down_proj" in name or "layers.1.self_attn" in name]:
            tensors["odd." + name] = tensors.pop(name)

    edit_weights(folder, drop)
    text = message(folder)
    assert text.startswith(
        f"{folder}: the checkpoint lacks 6 weights of the model: model.layers.0.mlp.down_proj.weight, "
    )
    assert "and 3 more; the checkpoint has names that the model has not: odd.model.layers.0" in text


def test_mismatched_sizes(folder):
    edit_config(folder, intermediate_size=100)
    text = message(folder)
    assert text.startswith(f"{folder}: weights do not match config.json: ")
    assert "model.layers.0.mlp.down_proj.weight is [32, 96] there and [32, 100] in the model" in text
    assert text.endswith("and 3 more")


def test_device_and_dtype(folder):
    assert message(folder, device="tpu") == "unknown device 'tpu'; choose auto, cpu, cuda or cuda:N"
    for odd in ("cuda:", "cuda:x", "cuda:-1", "cpu:0", ""):
        assert message(folder, device=odd).startswith(f"unknown device {odd!r}")
    assert message(folder, dtype="int8") == "unknown dtype 'int8'; choose auto, float32, bfloat16, float16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_cuda(folder):
    assert message(folder, device="cuda") == (
        "no device cuda here: PyTorch sees no CUDA device; use --device cpu"
    )


def test_too_little_memory(folder, tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9999999 kB\nMemAvailable:      64 kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    assert "GiB of memory for its weights, 0.0 GiB are available; try --dtype bfloat16" in message(folder)
    meminfo.write_text("MemAvailable: 9999999 kB\n")
    assert load(folder).full is not None
    monkeypatch.setattr(device, "MEMINFO", tmp_path / "absent")
    assert load(folder).full is not None


def test_memory_counts_the_dtype_that_is_asked_for(folder, tmp_path, monkeypatch):
    size = sum(item.numel() for item in tiny_llama().parameters()) * 4
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemAvailable: {size * 3 // 4 // 1024} kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    assert "GiB of memory for its weights" in message(folder)
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16


class Dangerous:
    def __reduce__(self):
        return (print, ("code of the pickle ran",))


@pytest.fixture
def pickled(tmp_path):
    model = tiny_bert()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict() | {"more": Dangerous()}, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_pickles_beyond_tensors_are_refused(pickled, capfd):
    text = message(pickled)
    assert "is a pickle that holds more than tensors, and loading it could run any code" in text
    assert "--allow-pickle (allow_pickle=True)" in text
    assert "code of the pickle ran" not in capfd.readouterr().out


def test_pickles_are_read_in_full_when_allowed(pickled, capfd):
    assert message(pickled, allow_pickle=True).endswith("holds no dictionary of tensors")
    assert "code of the pickle ran" in capfd.readouterr().out


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"PK\x03\x04 broken"])
def test_broken_pickles(pickled, raw):
    (pickled / "pytorch_model.bin").write_bytes(raw)
    assert message(pickled).startswith(str(pickled / "pytorch_model.bin"))


def test_stderr_is_tidy(folder, capfd):
    edit_weights(folder, lambda tensors: tensors.update(spare=torch.zeros(2)))
    assert load(folder).notes["unused"] == ["spare"]
    assert "LOAD REPORT" not in capfd.readouterr().err
