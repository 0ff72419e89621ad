import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from outlierscope.errors import UserError
from outlierscope.scanning import store


def test_bytes_are_written_whole_and_hashed(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    assert (
        store.write_bytes(path, b"content") == hashlib.sha256(b"content").hexdigest() == store.checksum(path)
    )
    assert path.read_bytes() == b"content"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.write_bytes(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device; free some space"):
        store.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_for_real():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which this system lacks")
    with pytest.raises(UserError, match="cannot write"):
        store.write_bytes(Path("/dev/full/folder/file"), b"x")


def test_json_has_no_numbers_that_json_lacks(tmp_path):
    store.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, 2)}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": [1, 2]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is broken"), ("[1]", "is broken: not a JSON object"), (None, "cannot read")],
)
def test_broken_json(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        store.read_json(path)


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {"a.b/c": torch.randn(3, 4, dtype=torch.float64).T, "n": torch.tensor(3)}
    store.write_tensors(tmp_path / "x.safetensors", tensors)
    names, get = store.read_tensors(tmp_path / "x.safetensors")
    assert sorted(names) == ["a.b/c", "n"]
    assert all(torch.equal(get(name), tensors[name]) for name in names)


def test_broken_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot read"):
        store.read_tensors(path)
