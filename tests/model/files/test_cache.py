"""Kept folders: made once, whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from outlierscope.errors import UserError
from outlierscope.model.files import cache
from outlierscope.model.files.cache import cache_folder, kept_folder


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OUTLIERSCOPE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "outlierscope"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "outlierscope"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "outlierscope"
    monkeypatch.setenv("OUTLIERSCOPE_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


class Maker:
    def __init__(self, error=None):
        self.calls, self.error = 0, error

    def __call__(self, folder):
        self.calls += 1
        assert list(folder.iterdir()) == []
        (folder / "weights").write_text("1234")
        if self.error:
            raise self.error
        return {"number": self.calls}


def test_a_folder_is_made_once(tmp_path):
    make, folder = Maker(), tmp_path / "cache" / "kept"
    assert kept_folder(folder, make) == {"number": 1}
    assert kept_folder(folder, make) == {"number": 1}
    assert make.calls == 1
    assert (folder / "weights").read_text() == "1234"


@pytest.mark.parametrize("damage", ["lost", "short", "no record"])
def test_a_damaged_folder_is_made_again(tmp_path, damage):
    make, folder = Maker(), tmp_path / "kept"
    kept_folder(folder, make)
    if damage == "lost":
        (folder / "weights").unlink()
    elif damage == "short":
        (folder / "weights").write_text("12")
    else:
        (folder / cache.RECORD).unlink()
    assert kept_folder(folder, make) == {"number": 2}
    assert (folder / "weights").read_text() == "1234"


@pytest.mark.parametrize("error", [UserError("not a model"), KeyboardInterrupt(), ValueError("odd")])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    folder = tmp_path / "kept"
    with pytest.raises(type(error)):
        kept_folder(folder, Maker(error))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert kept_folder(folder, Maker()) == {"number": 1}


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIERSCOPE_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        kept_folder(tmp_path / "kept", Maker(OSError(28, "No space left on device")))
    assert str(caught.value) == (
        f"cannot write to the cache folder {tmp_path}: No space left on device; free some space, "
        "or name another folder with the environment variable OUTLIERSCOPE_CACHE"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        kept_folder(tmp_path / "file" / "kept", Maker())


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from outlierscope.model.files.cache import kept_folder

    folder, stop = Path(sys.argv[1]), sys.argv[2] == "stop"

    def make(unfinished):
        with open(folder.parent / "calls", "a") as file:
            file.write("x")
        (unfinished / "half").write_text("")
        print("making", flush=True)
        time.sleep(60 if stop else 0.5)
        (unfinished / "half").rename(unfinished / "whole")
        return {}

    kept_folder(folder, make)
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == ["whole"]
""")


def start(folder, what):
    environment = os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[3])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), what],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def test_two_processes_at_once_make_it_once(tmp_path):
    processes = [start(tmp_path / "kept", "go on") for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_what_a_kill_leaves_is_never_used(tmp_path):
    process = start(tmp_path / "kept", "stop")
    assert process.stdout.readline() == "making\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "kept.unfinished" / "half").exists()
    assert not (tmp_path / "kept").exists()
    assert start(tmp_path / "kept", "go on").wait() == 0
    assert not (tmp_path / "kept.unfinished").exists()
    assert (tmp_path / "calls").read_text() == "xx"


def test_the_record_says_how_it_was_made(tmp_path):
    kept_folder(tmp_path / "kept", Maker())
    content = json.loads((tmp_path / "kept" / cache.RECORD).read_text())
    assert content == {"made": {"number": 1}, "sizes": {"weights": 4}}
