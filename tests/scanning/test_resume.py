"""An interrupted scan that goes on must end with the very bits of one that was never interrupted."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.scanning import forward, progress, store

TOKENS = 6_000


@pytest.fixture(scope="module")
def model(shared_model):
    return osc.load(shared_model("stories260k"))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    sentence = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park!\n"
    )
    path.write_text("".join(sentence.replace("Lily", f"Lily{number}") for number in range(400)))
    return path


def scan(model, text_file, out, **options):
    return osc.scan(
        model, text_file, tokens=TOKENS, length=128, batch_size=4, out=out, seconds_between_saves=0, **options
    )


@pytest.fixture(scope="module")
def whole(model, text_file, tmp_path_factory):
    return scan(model, text_file, tmp_path_factory.mktemp("whole") / "scan")


def assert_same(first, second):
    assert first.findings.equals(second.findings)
    left, right = first.evidence.measurements.state(), second.evidence.measurements.state()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(
            tensor.view(torch.uint8) if tensor.ndim else tensor,
            right[name].view(torch.uint8) if tensor.ndim else right[name],
        ), name


class Killed(BaseException):
    """Stands for the end of the process: nothing in the project catches it."""


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_killed_during_a_forward_pass(model, text_file, whole, tmp_path, monkeypatch, batch):
    out = tmp_path / "scan"
    with monkeypatch.context() as patch:
        update = forward.TappedModel._update
        calls = 0

        def die(self, site, seen):
            nonlocal calls
            update(self, site, seen)
            calls += self._batch.number == batch
            if calls == 20:  # in the middle of the pass
                raise Killed

        patch.setattr(forward.TappedModel, "_update", die)
        with pytest.raises(Killed):
            scan(model, text_file, out)
    assert not (out / "scan.json").exists()
    with pytest.raises(UserError, match="holds an unfinished scan; go on with --resume"):
        scan(model, text_file, out)
    assert_same(whole, scan(model, text_file, out, resume=True))
    assert not (out / "resume").exists()


@pytest.mark.parametrize("nth", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_a_write(model, text_file, whole, tmp_path, monkeypatch, nth, moment):
    out = tmp_path / "scan"
    count = 0
    write = store.write_bytes

    def die(path, content):
        nonlocal count
        count += 1
        if count == nth + 1 and moment == "before":
            raise Killed
        digest = write(path, content)
        if count == nth + 1:
            raise Killed
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", die)
        with pytest.raises(Killed):
            scan(model, text_file, out)
    resumable = (out / "resume" / "cursor.json").exists()
    assert_same(whole, scan(model, text_file, out, resume=resumable))


def test_killed_for_real(shared_model, text_file, whole, tmp_path):
    out = tmp_path / "scan"
    code = textwrap.dedent(f"""
        import torch
        torch.set_num_threads({torch.get_num_threads()})
        import outlierscope as osc
        model = osc.load({str(shared_model("stories260k"))!r})
        osc.scan(model, {str(text_file)!r}, tokens={TOKENS}, length=128, batch_size=4, out={str(out)!r},
                 seconds_between_saves=0, listener=lambda stage, done, total: print(stage, done, flush=True))
    """)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith("scan ") and int(line.split()[1]) >= 2_000:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "scan.json").exists()
    resumed = scan(osc.load(shared_model("stories260k")), text_file, out, resume=True)
    assert_same(whole, resumed)


def test_resuming_under_other_settings_is_refused(model, text_file, tmp_path, monkeypatch):
    out = tmp_path / "scan"
    saves = 0
    save = progress.save_progress

    def die_after(*arguments):
        nonlocal saves
        save(*arguments)
        saves += 1
        if saves == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("outlierscope.scanning.run.save_progress", die_after)
        with pytest.raises(Killed):
            scan(model, text_file, out)
    with pytest.raises(
        UserError,
        match=r"cannot resume .*: tokens was 6000 and is 6001 now; use the same settings, or --overwrite",
    ):
        osc.scan(model, text_file, tokens=TOKENS + 1, length=128, batch_size=4, out=out, resume=True)
    state = next((out / "resume").glob("state-*"))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="is missing or damaged; start again with --overwrite"):
        scan(model, text_file, out, resume=True)


def test_nothing_to_resume(model, text_file, tmp_path):
    with pytest.raises(UserError, match=r"nothing to resume in .*; start without --resume"):
        scan(model, text_file, tmp_path / "scan", resume=True)
    assert not Path(tmp_path / "scan").exists()
