"""Where a scan goes when no folder is named."""

from pathlib import Path

import pytest

from outlierscope.cli import default_folder


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, "runs/demo"),
        ("bert-base-uncased", "runs/bert-base-uncased"),
        ("owner/name", "runs/owner--name"),
    ],
)
def test_names(model, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_folder(model, again=False) == Path(expected)


def test_folders_give_their_own_name(tmp_path, monkeypatch):
    inside = tmp_path / "checkpoint" / "last"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert default_folder(".", again=False) == Path("runs/last")
    assert default_folder("..", again=False) == Path("runs/checkpoint")


def test_a_finished_scan_is_not_in_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "scan.json").write_text("{}")
    assert default_folder(None, again=False) == Path("runs/demo-3")
    assert default_folder(None, again=True) == Path("runs/demo")
