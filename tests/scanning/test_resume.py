"""An interrupted scan that goes on must end with the very bits of one that was never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.scanning import forward
from outlierscope.scanning.scan import EXAMPLES, FINDINGS, MANIFEST, REPORT, STATS, WEIGHTS
from outlierscope.stats.extremes import Extremes
from tests.model.tiny import save, tiny_llama

TOKENS = 6_700
SETTINGS = {
    "tokens": TOKENS,
    "length": 96,
    "batch_size": 8,
    # The first 64 sequences are batches 0 to 7: of those after them 9 and 12 are dear, the others cheap.
    "sample_every": 3,
    # Between them they have every kind of statistic.
    "sites": ("attn_in", "mlp_post", "resid_post"),
    "thresholds": {"six_sigma": {"sigma": 3.0}, "systematic_attention": {"shortest": 32, "ratio": 0.02}},
}
EARLY, CHEAP, DEAR = 1, 8, 9
AFTER = 4_300
"""Tokens of about 9 batches."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose token 5 is massive at dim 3, so that rare events are counted as well."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 3] = 2000.0
    return save(model, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return osc.load(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sequences of 30 to 90 token ids, so that batches are padded."""
    path = tmp_path_factory.mktemp("data") / "ids.jsonl"
    generator = torch.Generator().manual_seed(0)
    with path.open("w") as file:
        for number in range(130):
            ids = torch.randint(3, 64, (30 + number * 17 % 61,), generator=generator)
            file.write(json.dumps({"ids": ids.tolist()}) + "\n")
    return path


def scan(model, data, out, *, saves=True, **options):
    """Saves after every batch, or only at both ends, which is quicker."""
    seconds = 0 if saves else 3600
    return osc.scan(model, data, column="ids", out=out, seconds_between_saves=seconds, **options, **SETTINGS)


def resume(model, data, out):
    return scan(model, data, out, saves=False, resume=True)


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    return scan(model, data, tmp_path_factory.mktemp("whole") / "scan", saves=False)


def assert_same(first, second):
    assert first.findings.equals(second.findings)
    left, right = first.evidence.measurements.state(), second.evidence.measurements.state()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(
            tensor.view(torch.uint8) if tensor.ndim else tensor,
            right[name].view(torch.uint8) if right[name].ndim else right[name],
        ), name
    for name in (STATS, WEIGHTS, EXAMPLES, FINDINGS):
        assert first.manifest["files"][name] == second.manifest["files"][name], name
    assert first.manifest["read"] | {"seconds": 0} == second.manifest["read"] | {"seconds": 0}
    assert not (second.folder / "resume").exists()


class Killed(BaseException):
    """Stands for the end of the process: nothing in the project catches it."""


@contextmanager
def death_at_a_write(beginning, moment, occurrence=1):
    """The writing of a file whose name begins so ends the process.

    Every write ends with moving the file to its place; before that it lies there under a temporary name.
    """
    replace = Path.replace
    left = occurrence

    def deadly(self, target):
        nonlocal left
        left -= Path(target).name.startswith(beginning)
        if left or moment == "after":
            replace(self, target)
        if not left:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", deadly)
        with pytest.raises(Killed):
            yield


def test_the_kills_have_dear_and_cheap_batches_after_them(whole):
    read = whole.manifest["read"]
    dear = [batch for batch in range(read["batches"]) if batch < 8 or batch % 3 == 0]
    assert read["sampled_batches"] == len(dear) < read["batches"]
    assert CHEAP not in dear
    assert DEAR in dear
    assert read["batches"] >= DEAR + 5
    criteria = set(whole.findings.column("criterion").to_pylist())
    assert {"massive", "six_sigma", "systematic_attention"} <= criteria, "the bits must depend on something"


@pytest.mark.parametrize("batch", [EARLY, CHEAP, DEAR])
def test_killed_during_a_forward_pass(model, data, whole, tmp_path, monkeypatch, batch):
    out = tmp_path / "scan"
    with monkeypatch.context() as patch:
        take = forward.TappedModel._take
        calls = 0

        def die(self, seen):
            nonlocal calls
            take(self, seen)
            calls += self._batch.number == batch
            if calls == 4:  # in the middle of the pass
                raise Killed

        patch.setattr(forward.TappedModel, "_take", die)
        with pytest.raises(Killed):
            scan(model, data, out)
    assert not (out / MANIFEST).exists()
    with pytest.raises(UserError, match="holds an unfinished scan; go on with --resume"):
        scan(model, data, out)
    assert_same(whole, resume(model, data, out))


@pytest.mark.parametrize("batch", [EARLY, CHEAP])
def test_interrupted_while_a_batch_is_taken_in(model, data, whole, tmp_path, monkeypatch, batch):
    """By then some statistics have the batch and others do not: that state must never be saved."""
    out = tmp_path / "scan"
    sites = sum(stat.name == "moments" for _, stat in whole.evidence.measurements)
    with monkeypatch.context() as patch:
        take = forward.TappedModel._take
        calls = 0

        def strike(self, seen):
            raise KeyboardInterrupt

        def interrupt(self, seen):
            nonlocal calls
            calls += self._batch.number == batch
            if calls == sites // 2:
                patch.setattr(Extremes, "update", strike)  # the site's moments have it already
            take(self, seen)

        patch.setattr(forward.TappedModel, "_take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scan(model, data, out)
    cursor = json.loads((out / "resume" / "cursor.json").read_text())
    assert cursor["progress"]["batches"] == batch
    assert_same(whole, resume(model, data, out))


def test_interrupted_between_saves(model, data, whole, tmp_path, monkeypatch):
    """Ctrl-C saves what is whole, though the last regular save is long ago; that state goes on as well."""
    out = tmp_path / "scan"
    with monkeypatch.context() as patch:
        observe = forward.TappedModel.observe

        def interrupt(self, batch, measurements):
            if batch.number == CHEAP:
                raise KeyboardInterrupt
            return observe(self, batch, measurements)

        patch.setattr(forward.TappedModel, "observe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scan(model, data, out, saves=False)
    assert json.loads((out / "resume" / "cursor.json").read_text())["progress"]["batches"] == CHEAP
    assert_same(whole, resume(model, data, out))


@pytest.mark.parametrize(
    ("name", "occurrence", "moment"),
    [
        # The state after 0 batches is the first write of all.
        ("state-", 1, "before"),
        ("cursor.json", 1, "before"),
        ("cursor.json", 1, "after"),
        ("state-", 2, "before"),
        ("cursor.json", 2, "before"),
        (f"state-{CHEAP + 1:08d}", 1, "before"),
        ("cursor.json", DEAR + 2, "after"),
    ],
)
def test_killed_around_a_save(model, data, whole, tmp_path, name, occurrence, moment):
    out = tmp_path / "scan"
    with death_at_a_write(name, moment, occurrence):
        scan(model, data, out)
    resumable = (out / "resume" / "cursor.json").exists()
    assert resumable == (occurrence > 1 or moment == "after" or name.startswith("state-0"))
    assert_same(whole, scan(model, data, out, saves=False, resume=resumable))


@pytest.fixture(scope="module")
def read_through(model, data, tmp_path_factory):
    """Folder of a scan that was killed when all batches were read and nothing else was written."""
    out = tmp_path_factory.mktemp("read") / "scan"

    def die(*_arguments, **_options):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(osc.Scan, "save", die)
        with pytest.raises(Killed):
            scan(model, data, out)
    return out


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        # In the order in which they are written: before one is after the one above.
        *((name, "before") for name in ("state-", "cursor.json", STATS, WEIGHTS, EXAMPLES, FINDINGS, REPORT)),
        (MANIFEST, "before"),
        (MANIFEST, "after"),
    ],
)
def test_killed_around_a_write_at_the_end(model, data, whole, read_through, tmp_path, name, moment):
    """After the manifest itself the scan is whole, and only the saved state is still to be discarded."""
    out = shutil.copytree(read_through, tmp_path / "scan")
    with death_at_a_write(name, moment):
        resume(model, data, out)
    if (name, moment) == (MANIFEST, "after"):
        assert osc.Scan.open(out).findings.equals(whole.findings)
        with pytest.raises(UserError, match="already holds a scan"):
            scan(model, data, out)
    else:
        with pytest.raises(UserError, match="the scan in it is unfinished, go on with --resume"):
            osc.Scan.open(out)
    assert_same(whole, resume(model, data, out))


@pytest.mark.parametrize("removed", [1, 2])
def test_killed_while_the_saved_state_is_discarded(
    model, data, whole, read_through, tmp_path, monkeypatch, removed
):
    out = shutil.copytree(read_through, tmp_path / "scan")
    with monkeypatch.context() as patch:
        unlink = Path.unlink
        left = removed

        def die(self, **options):
            nonlocal left
            unlink(self, **options)
            left -= self.parent.name == "resume" and (out / MANIFEST).exists()
            if not left:
                raise Killed

        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            resume(model, data, out)
    opened = osc.Scan.open(out)
    assert opened.findings.equals(whole.findings)
    assert (removed == 2) == (not any((out / "resume").iterdir()))


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_what_a_kill_leaves_half_written_is_removed(model, data, whole, read_through, tmp_path, way):
    out = shutil.copytree(read_through, tmp_path / "scan")
    with death_at_a_write(STATS, "before"):
        resume(model, data, out)
    assert {path.name for path in out.iterdir()} > {"resume"}, "a temporary file"
    if way == "resume":
        resume(model, data, out)
    else:
        osc.scan(model, data, column="ids", out=out, overwrite=True, tokens=400)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_an_old_scan_is_not_taken_for_the_new_one(model, data, whole, tmp_path):
    """Killed while it is replaced, the folder holds files of both."""
    out = shutil.copytree(whole.folder, tmp_path / "scan")
    with death_at_a_write(FINDINGS, "after"):
        osc.scan(model, data, column="ids", out=out, overwrite=True, tokens=400, only=("activation",))
    with pytest.raises(UserError, match="is not a scan folder: the scan in it is unfinished"):
        osc.Scan.open(out)


def test_killed_for_real(folder, data, whole, tmp_path):
    out = tmp_path / "scan"
    code = textwrap.dedent(f"""
        import time
        import torch

        def tell(stage, done, total):
            print(stage, done, flush=True)
            time.sleep(0.1 * (done >= {AFTER}))  # leaves time to be killed before it is through

        torch.set_num_threads({torch.get_num_threads()})
        import outlierscope as osc
        model = osc.load({str(folder)!r})
        osc.scan(model, {str(data)!r}, column="ids", out={str(out)!r}, seconds_between_saves=0,
                 listener=tell, **{SETTINGS!r})
    """)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith("scan ") and int(line.split()[1]) >= AFTER:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    cursor = json.loads((out / "resume" / "cursor.json").read_text())
    assert cursor["progress"]["batches"] >= 8, (
        "the first 64 sequences, on all of which everything is computed"
    )
    assert_same(whole, resume(osc.load(folder), data, out))


def test_resuming_under_other_settings_is_refused(model, data, tmp_path):
    out = tmp_path / "scan"
    with death_at_a_write("cursor.json", "after", 2):
        scan(model, data, out)
    with pytest.raises(
        UserError,
        match=r"cannot resume .*: tokens was 6700 and is 6701 now; use the same settings, or --overwrite",
    ):
        osc.scan(model, data, column="ids", out=out, resume=True, **SETTINGS | {"tokens": TOKENS + 1})
    state = out / "resume" / json.loads((out / "resume" / "cursor.json").read_text())["file"]
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="is missing or damaged; start again with --overwrite"):
        resume(model, data, out)


def test_nothing_to_resume(model, data, tmp_path):
    with pytest.raises(UserError, match=r"nothing to resume in .*; start without --resume"):
        resume(model, data, tmp_path / "scan")
    assert not Path(tmp_path / "scan").exists()
