"""Hub models: which files are fetched."""

from __future__ import annotations

import fnmatch
import json
from unittest.mock import MagicMock

import pytest

from outlierscope.errors import UserError
from outlierscope.model.files.source import find_source, first_line


class Hub:
    """A stand-in for the hub: a repository's files, and the patterns that were asked for."""

    def __init__(self, cache, files):
        self.files, self.folder, self.fetched = files, cache / "c0ffee", []

    def snapshot_download(self, name, *, revision, allow_patterns, ignore_patterns):
        self.folder.mkdir(exist_ok=True)
        for path, content in self.files.items():
            wanted = any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(path, pattern) for pattern in ignore_patterns):
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
    assert (source.safetensors, source.pickle) == (safetensors, not safetensors)
    assert (source.revision, source.name) == ("c0ffee", "someone/model")


def test_code_is_fetched_only_where_it_is_trusted(hub):
    stand_in = hub(**{"config.json": "{}", "modeling_own.py": "", "model.safetensors": ""})
    find_source("someone/model", remote_code=True)
    assert "modeling_own.py" in stand_in.fetched


def test_a_repository_without_a_model(hub):
    hub(**{"README.md": ""})
    with pytest.raises(UserError, match=r"^someone/model has no config.json"):
        find_source("someone/model")


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
