"""A scan of weights alone: it finds what is planted, as a scan of the loaded model does, in little memory."""

import json
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.reporting.summary import summarize
from outlierscope.weights.summaries import TENSORS
from tests.model.tiny import edit_weights, save, tiny_llama

COLUMN = ("model.layers.1.mlp.down_proj.weight", 42, 7, -2.0)
"""Parameter, column, row and value of the entry that makes its column stand out."""

ROW = ("model.layers.2.mlp.up_proj.weight", 50, 3, 1.5)
"""Parameter, row, column and value; as its columns are too few to be judged, only the row stands out."""

NORM, DIM = "model.layers.{}.post_attention_layernorm.weight", 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    def plant(tensors):
        for name, tensor in tensors.items():
            if "layernorm" in name:
                tensor += 0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        tensors[COLUMN[0]][COLUMN[2], COLUMN[1]] = COLUMN[3]
        tensors[ROW[0]][ROW[1], ROW[2]] = ROW[3]
        for layer in range(4):
            tensors[NORM.format(layer)][DIM] = 3.0 + layer

    folder = save(tiny_llama(layers=5), tmp_path_factory.mktemp("checkpoint") / "tiny")
    edit_weights(folder, plant)
    return folder


@pytest.fixture(scope="module")
def scan(checkpoint, tmp_path_factory):
    return osc.scan_weights(checkpoint, out=tmp_path_factory.mktemp("scan") / "folder")


def rows(scan, criterion, *columns):
    table = scan.findings.to_pylist()
    return [tuple(row[name] for name in columns) for row in table if row["criterion"] == criterion]


def direct(checkpoint, along, sigma=6.0):
    """Columns (``along`` 0) or rows (1) with r above mean + 6 std of their matrix: (parameter, index) -> score."""
    found = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if ".layers." not in name or tensor.ndim != 2:
            continue
        magnitude = tensor.double().abs()
        ratio = magnitude.amax(along) / magnitude.mean(along)
        score = (ratio - ratio.mean()) / ratio.std()
        found |= {
            (name, index): float(score[index]) for index in (score > sigma).nonzero().flatten().tolist()
        }
    return found


def test_planted_outliers_are_found_and_nothing_else(scan, checkpoint):
    columns = rows(scan, "weight_column", "parameter", "dim", "row", "value", "layer", "site")
    assert columns == [(*COLUMN, 1, "mlp_post")]
    assert rows(scan, "weight_row", "parameter", "row", "layer") == [(*ROW[:2], 2)]
    (norm,) = rows(scan, "norm_weight", "parameter", "dim", "layer", "value", "count")
    assert norm[1:2] + norm[4:] == (DIM, 4)
    assert norm[0] == NORM.format(norm[2])
    assert norm[3] == 3.0 + norm[2]


@pytest.mark.parametrize(
    ("criterion", "index", "along"), [("weight_column", "dim", 0), ("weight_row", "row", 1)]
)
def test_scores_are_those_of_the_whole_matrix(scan, checkpoint, criterion, index, along):
    found = {
        (name, place): score for name, place, score in rows(scan, criterion, "parameter", index, "score")
    }
    assert found == pytest.approx(direct(checkpoint, along), rel=1e-5)


def test_the_loaded_model_has_the_same_findings(scan, checkpoint):
    ids = [list(range(3, 43))]
    loaded = osc.scan(osc.load(checkpoint), ids, tokens=40, only=("activation", "weight"))
    same = ("stack", "layer", "site", "module", "parameter", "dim", "row", "value", "score", "count", "rule")
    for criterion in ("weight_column", "weight_row", "norm_weight"):
        found = rows(scan, criterion, *same)
        assert found
        assert found == rows(loaded, criterion, *same)


def test_an_opened_scan_is_the_same(scan):
    opened = osc.Scan.open(scan.folder)
    assert opened.findings.equals(scan.findings)
    assert opened.manifest == scan.manifest
    assert len(opened.evidence.weights) == len(scan.evidence.weights) == 5 * (7 + 2) + 1
    for first, second in zip(opened.evidence.weights, scan.evidence.weights, strict=True):
        assert (first.parameter, first.role, first.layer) == (second.parameter, second.role, second.layer)
        assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)
    assert opened.manifest["read"]["tensors"] == len(scan.evidence.weights)
    assert opened.manifest["anatomy"]["proved"] is None
    assert opened.report().read_text().count("down_proj") > 0


def test_thresholds_count_and_other_kinds_are_refused(checkpoint):
    settings = osc.ScanSettings(only=("weight",), thresholds={"weight_column": {"sigma": 9.9}})
    strict = osc.scan_weights(checkpoint, settings)
    assert not rows(strict, "weight_column", "dim"), "no number of 96 is further than 9.7 std from their mean"
    assert rows(strict, "weight_row", "row")
    with pytest.raises(UserError, match="a checkpoint's files show weights only, not activation, weight"):
        osc.scan_weights(checkpoint, osc.ScanSettings(only=("activation", "weight")))


def test_a_folder_that_holds_a_scan_is_kept(scan, checkpoint):
    with pytest.raises(UserError, match="already holds a scan; choose another --out"):
        osc.scan_weights(checkpoint, out=scan.folder)
    assert osc.Scan.open(osc.scan_weights(checkpoint, out=scan.folder, overwrite=True).folder)


SHARDS, HIDDEN, INNER, BFLOAT16 = 3, 4096, 8192, 2
PLANTED = (5, 77, 3.0)
"""Row, column and value in the down projection of each layer."""


def write_large_checkpoint(folder):
    """Shards of zeros with a few rows of numbers: sparse files, so that nothing large is made or written."""
    down, up = [HIDDEN, INNER], [INNER, HIDDEN]
    size = HIDDEN * INNER * BFLOAT16
    numbers = 0.02 * torch.randn(64, INNER, generator=torch.Generator().manual_seed(0))
    numbers[PLANTED[:2]] = PLANTED[2]
    content = numbers.bfloat16().view(torch.uint8).numpy().tobytes()
    places = {}
    for layer in range(SHARDS):
        names = [f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("down", "up")]
        entries = {
            name: {"dtype": "BF16", "shape": shape, "data_offsets": [index * size, (index + 1) * size]}
            for index, (name, shape) in enumerate(zip(names, (down, up), strict=True))
        }
        header = json.dumps(entries).encode()
        path = folder / f"model-{layer}.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + content)
            file.truncate(8 + len(header) + 2 * size)
        places |= dict.fromkeys(names, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN}))
    return SHARDS * 2 * size


def test_a_large_checkpoint_needs_little_memory(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc/self/status, which this system lacks")
    size = write_large_checkpoint(tmp_path)
    # VmHWM and not ru_maxrss, which a process inherits from the one that started it.
    code = textwrap.dedent(f"""
        import json, re, torch
        import outlierscope.scanning.weights as weights
        import transformers.models.llama.modeling_llama  # what the names need, as code and not as weights
        from pathlib import Path

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

        (torch.randn(512, 512) @ torch.randn(512, 512)).abs().amax(0)
        before = peak()
        scan = weights.scan_weights({str(tmp_path)!r}, out={str(tmp_path / "scan")!r})
        after = peak()
        held = torch.ones({size // 4}, dtype=torch.uint8)
        print(json.dumps({{"needed": after - before, "of_a_quarter": peak() - after}}))
    """)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["needed"] + measured["of_a_quarter"] >= size // 4, "the measure sees what is held"
    assert measured["needed"] < 0.4 * size, f"{measured['needed']:,} of {size:,} bytes"
    scan = osc.Scan.open(tmp_path / "scan")
    strongest = [
        (row["layer"], row["row"], row["dim"], row["value"])
        for row in scan.findings.to_pylist()
        if row["criterion"] == "weight_column" and json.loads(row["extra"])["rank"] == 1
    ]
    assert sorted(strongest) == [(layer, *PLANTED) for layer in range(SHARDS)]


def test_what_was_not_seen_is_told(checkpoint, scan, tmp_path):
    told = {row["what"]: row["why"] for row in scan.manifest["not_observed"]}
    assert "names of the loaded model" not in told
    path = tmp_path / "part.safetensors"
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {"model.layers.0.mlp.router.weight": torch.ones(4, 32)}, path)
    alone = osc.scan_weights(path)
    told = {row["what"]: row["why"] for row in alone.manifest["not_observed"]}
    assert told["names of the loaded model"] == "a single file does not tell the model"
    assert told["1 tensor (model.layers.0.mlp.router.weight)"] == "its name tells no role"
    summary = summarize(alone)
    assert summary.description.startswith("weights without a config, ")
    assert summary.next == [
        "outlierscope scan FOLDER    of the whole model, with its config.json: activation, attention, format"
    ]


def test_progress_counts_bytes(checkpoint):
    seen = []
    osc.scan_weights(checkpoint, listener=lambda stage, done, total: seen.append((stage, done, total)))
    reading = [(done, total) for stage, done, total in seen if stage == "reading the weights"]
    tensors = load_file(checkpoint / "model.safetensors")
    total = sum(
        tensor.numel() * tensor.itemsize
        for name, tensor in tensors.items()
        if ".layers." in name or "norm" in name
    )
    assert reading[-1] == (total, total)
    assert [done for done, _ in reading] == sorted(done for done, _ in reading)
