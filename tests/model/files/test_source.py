"""Hub models: which files are fetched."""

from __future__ import annotations

import fnmatch
import json
from unittest.mock import MagicMock

import pytest

from outlierscope.errors import UserError, first_line
from outlierscope.model.files.source import find_source


class Hub:
    """A stand-in for the hub: a repository's files, and the patterns that were asked for."""

    def __init__(self, cache, files):
        self.files, self.folder, self.fetched, self.revisions = files, cache / "c0ffee", [], []

    def snapshot_download(self, name, *, revision, allow_patterns, ignore_patterns=()):
        self.folder.mkdir(exist_ok=True)
        self.revisions.append(revision)
        for path, content in self.files.items():
            wanted = any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(path, pattern) for pattern in ignore_patterns):
                (self.folder / path).parent.mkdir(exist_ok=True)
                (self.folder / path).write_text(content)
                self.fetched.append(path)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    def make(**files):
        stand_in = Hub(tmp_path, {name.replace("__", "/"): content for name, content in files.items()})
        monkeypatch.setattr("huggingface_hub.snapshot_download", stand_in.snapshot_download)
        return stand_in

    return make


INDEX = json.dumps({"weight_map": {"a": "part-1", "b": "part-2"}})


@pytest.mark.parametrize(
    ("files", "fetched", "safetensors"),
    [
        (
            {"model.safetensors": "", "pytorch_model.bin": "", "onnx/model.safetensors": ""},
            {"model.safetensors"},
            True,
        ),
        ({"pytorch_model.bin": "", "tf_model.h5": ""}, {"pytorch_model.bin"}, False),
        (
            {"model.safetensors.index.json": INDEX, "part-1": "", "part-2": "", "part-3": ""},
            {"model.safetensors.index.json", "part-1", "part-2"},
            True,
        ),
        (
            {"pytorch_model.bin.index.json": INDEX, "part-1": "", "part-2": ""},
            {"pytorch_model.bin.index.json", "part-1", "part-2"},
            False,
        ),
    ],
)
def test_only_the_weights_that_are_needed_are_fetched(hub, files, fetched, safetensors):
    stand_in = hub(
        **{"config.json": "{}", "tokenizer.json": "{}", "modeling_own.py": "", "README.md": "", **files}
    )
    source = find_source("someone/model")
    assert set(stand_in.fetched) == {"config.json", "tokenizer.json", *fetched}
    assert source.safetensors == safetensors
    assert (source.revision, source.name) == ("c0ffee", "someone/model")


SENTENCE = json.dumps(
    [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
)


def test_the_transformer_in_a_subfolder_is_fetched(hub):
    within = {
        "config.json": "{}",
        "model.safetensors": "",
        "tokenizer.json": "{}",
        "onnx/model.safetensors": "",
    }
    stand_in = hub(
        **{"modules.json": SENTENCE, "1_Pooling/config.json": "{}"},
        **{f"0_Transformer/{name}": content for name, content in within.items()},
    )
    source = find_source("someone/model", revision="v1")
    assert source.folder == stand_in.folder / "0_Transformer"
    assert source.revision == "c0ffee"
    assert set(stand_in.fetched) == {
        "modules.json", *(f"0_Transformer/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json"))
    }  # fmt: skip


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_and_its_base_are_fetched(hub, tmp_path, weights):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "model.safetensors").write_text("")
    content = json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base), "revision": "v2"})
    stand_in = hub(**{"adapter_config.json": content, weights: "", "README.md": "", "optimizer.pt": ""})
    source = find_source("someone/adapter", revision="v1")
    assert set(stand_in.fetched) == {"adapter_config.json", weights}
    assert (source.folder, source.adapter, source.revision) == (base, stand_in.folder, "c0ffee")
    assert source.config == {"model_type": "llama"}


def test_the_base_of_an_adapter_may_be_on_the_hub(hub, tmp_path):
    stand_in = hub(**{"config.json": "{}", "model.safetensors": ""})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/base", "revision": "v2"})
    )
    source = find_source(adapter)
    assert stand_in.revisions[-1] == "v2"
    assert (source.folder, source.adapter, source.revision) == (stand_in.folder, adapter, None)
    assert source.origin["adapter"]["base"] == "someone/base"
    assert source.origin["adapter"]["base_revision"] == "c0ffee"


def test_code_is_fetched_only_where_it_is_trusted(hub):
    stand_in = hub(**{"config.json": "{}", "modeling_own.py": "", "model.safetensors": ""})
    find_source("someone/model", remote_code=True)
    assert "modeling_own.py" in stand_in.fetched


def test_a_repository_without_a_model(hub):
    hub(**{"README.md": ""})
    with pytest.raises(UserError, match=r"^someone/model has no config.json"):
        find_source("someone/model")


@pytest.fixture
def converted(monkeypatch, tmp_path):
    """Which .gguf files were to be converted; the conversion itself is tested elsewhere."""
    paths = []

    def convert(path, listener):
        paths.append(path)
        (tmp_path / "config.json").write_text("{}")
        return tmp_path, {"file": str(path)}

    monkeypatch.setattr("outlierscope.model.files.gguf_conversion.convert_gguf", convert)
    return paths


@pytest.mark.parametrize("file", ["a-Q4_K_M.gguf", "quantized/a-Q4_K_M.gguf"])
def test_a_gguf_file_of_a_repository(hub, converted, file):
    stand_in = hub(**{file: "", "README.md": "", "a-Q8_0.gguf": ""})
    source = find_source(f"someone/model:{file}", revision="v1")
    assert stand_in.fetched == [file]
    assert converted == [stand_in.folder / file]
    assert (source.name, source.revision) == (f"someone/model:{file}", "c0ffee")
    with pytest.raises(UserError, match=r"^someone/model has no file b.gguf$"):
        find_source("someone/model:b.gguf")


@pytest.mark.parametrize("online", [True, False])
def test_a_repository_with_one_gguf_file_only(hub, converted, monkeypatch, online):
    stand_in = hub(**{"README.md": "", "a.gguf": ""})
    if online:
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, revision: list(stand_in.files))
    else:
        find_source("someone/model:a.gguf")
        stand_in.fetched.clear()
    assert find_source("someone/model").revision == "c0ffee"
    assert stand_in.fetched[-1] == "a.gguf"
    assert converted[-1] == stand_in.folder / "a.gguf"


def test_a_repository_with_several_gguf_files(hub, monkeypatch):
    stand_in = hub(**{"README.md": "", "a-Q4_0.gguf": "", "a-Q8_0.gguf": ""})
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, revision: list(stand_in.files))
    with pytest.raises(UserError) as caught:
        find_source("someone/model")
    assert str(caught.value) == (
        "someone/model has 2 .gguf files (a-Q4_0.gguf, a-Q8_0.gguf); "
        "say which one, such as someone/model:a-Q4_0.gguf"
    )
    assert stand_in.fetched == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("GatedRepoError", "someone/model is gated: accept its terms"),
        (
            "RepositoryNotFoundError",
            "no such model: someone/model is neither a folder here nor a model on the hub",
        ),
        ("RevisionNotFoundError", "someone/model has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, expected):
    from huggingface_hub import errors

    def refuse(*_arguments, **_options):
        raise getattr(errors, error)("several\nlines", response=MagicMock())

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError) as caught:
        find_source("someone/model", revision="v9")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_first_line():
    assert first_line(ValueError("\n  one \n two")) == "one"
    assert first_line(ValueError()) == "ValueError"
