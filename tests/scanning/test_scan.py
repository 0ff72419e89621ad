"""The scan folder and the Python interface."""

import json

import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.scanning.findings import SCHEMA
from outlierscope.scanning.store import checksum
from tests.model.tiny import tiny_bert, tiny_gpt2, tiny_llama

TEXTS = [
    "Once upon a time, there was a cat. " * 20,
    "The dog said: hello! " * 30,
    "One day they went out. " * 25,
]

KEYS = [
    "format",
    "state",
    "written",
    "model",
    "corpus",
    "settings",
    "criteria",
    "module_prefix",
    "anatomy",
    "self_check",
    "read",
    "nonfinite",
    "not_observed",
    "identity",
    "files",
]
"""Keys of scan.json, in the order of docs/schema.md."""


@pytest.fixture(scope="module")
def model(shared_model):
    return osc.load(shared_model("stories260k"))


@pytest.fixture(scope="module")
def scan(model, tmp_path_factory):
    return osc.scan(model, TEXTS, tokens=1000, length=128, out=tmp_path_factory.mktemp("scan") / "folder")


@pytest.fixture(scope="module", params=["stories260k", tiny_llama, tiny_bert, tiny_gpt2])
def any_scan(request, tmp_path_factory):
    """Of a real model and texts, or of a random one without a tokenizer and lists of token ids."""
    if request.param == "stories260k":
        return request.getfixturevalue("scan")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 64, (length,), generator=generator).tolist() for length in (30, 17, 30, 24) * 3]
    out = tmp_path_factory.mktemp("tiny") / "folder"
    # A low threshold, so that there are findings.
    return osc.scan(
        osc.wrap(request.param()), ids, tokens=280, out=out, thresholds={"six_sigma": {"sigma": 3.0}}
    )


def test_folder_holds_what_the_schema_says(any_scan):
    names = {path.name for path in any_scan.folder.iterdir()}
    assert names == {
        "scan.json",
        "findings.parquet",
        "stats-00000.safetensors",
        "stats-weights.safetensors",
        "examples-00000.safetensors",
        "report.html",
    }
    manifest = json.loads((any_scan.folder / "scan.json").read_text())
    assert list(manifest) == KEYS
    assert manifest["state"] == "complete"
    assert manifest["files"] == {name: checksum(any_scan.folder / name) for name in names - {"scan.json"}}
    assert manifest["anatomy"]["proved"] is True
    assert manifest["read"]["tokens"] == any_scan.evidence.corpus.tokens >= 280
    assert manifest["self_check"]["fast"] <= 2e-6
    assert manifest["model"]["fingerprint"]
    decoding = [row["what"] for row in manifest["not_observed"]][-1] == "generation"
    assert decoding == ("decoder" in manifest["anatomy"]["stacks"])  # encoders write nothing themselves
    findings = parquet.read_table(any_scan.folder / "findings.parquet")
    assert findings.schema.equals(SCHEMA)
    assert findings.num_rows > 0
    with safe_open(any_scan.folder / "stats-00000.safetensors", "pt") as file:
        stored = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    assert stored == {f"{site}.{stat.name}" for site, stat in any_scan.evidence.measurements}
    with safe_open(any_scan.folder / "examples-00000.safetensors", "pt") as file:
        offsets, ids = file.get_tensor("offsets"), file.get_tensor("ids")
        assert {"ids", "offsets", "sequences"} <= set(file.keys())
    assert int(offsets[-1]) == len(ids)


def test_opened_scan_equals_the_written_one(any_scan):
    opened = osc.Scan.open(any_scan.folder)
    assert opened.findings.equals(any_scan.findings)
    first, second = opened.evidence.measurements.state(), any_scan.evidence.measurements.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert opened.evidence.anatomy == any_scan.evidence.anatomy
    assert [item.parameter for item in opened.evidence.weights] == [
        item.parameter for item in any_scan.evidence.weights
    ]
    assert opened.examples.keys() == any_scan.examples.keys()
    (stack,) = opened.evidence.anatomy.stacks.values()
    last = len(stack.layers) - 1
    assert torch.equal(
        opened.stat("resid_post", "moments", layer=last - 1).mean,
        any_scan.stat("resid_pre", "moments", layer=last).mean,
    ), "resid_pre of a block is resid_post of the one before"


def test_a_scan_tells_what_it_has(scan):
    with pytest.raises(KeyError, match=r"no 'entropy' at decoder.3.resid_post; measured there: .*moments"):
        scan.stat("resid_post", "entropy", layer=3)
    assert "stories260k" in repr(scan)
    assert list(scan.findings.to_pandas().columns)[:3] == ["criterion", "kind", "stack"]


def test_folder_of_another_scan_is_refused(model, scan):
    with pytest.raises(
        UserError, match="already holds a scan; choose another --out, or replace it with --overwrite"
    ):
        osc.scan(model, TEXTS, tokens=300, out=scan.folder)
    with pytest.raises(UserError, match="already holds a scan"):
        scan.save(scan.folder)


def test_out_that_is_a_file(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file; name a folder"):
        osc.scan(model, TEXTS, out=tmp_path / "file")


def test_damaged_folder(model, tmp_path):
    folder = osc.scan(model, TEXTS, tokens=300, length=64, out=tmp_path / "scan").folder
    path = folder / "findings.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"findings\.parquet is missing or does not match its checksum; scan again"
    ):
        osc.Scan.open(folder)
    (folder / "scan.json").write_text("{")
    with pytest.raises(UserError, match=r"scan\.json is broken"):
        osc.Scan.open(folder)


def test_report_is_rewritten_with_its_checksum(scan):
    before = (scan.folder / "report.html").read_text()
    osc.Scan.open(scan.folder).report()
    assert (scan.folder / "report.html").read_text() == before
    osc.Scan.open(scan.folder)


def test_two_runs_give_the_same_bits(model, scan):
    again = osc.scan(model, TEXTS, tokens=1000, length=128)
    assert again.findings.equals(scan.findings)
    first, second = again.evidence.measurements.state(), scan.evidence.measurements.state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_text_leaves_none(model, tmp_path):
    scan = osc.scan(model, ["Xylophone zebra quartz. " * 40], tokens=400, out=tmp_path / "s")
    secret = osc.ScanSettings(tokens=400, text=False)
    quiet = osc.scan(model, ["Xylophone zebra quartz. " * 40], settings=secret, out=tmp_path / "quiet")
    assert any(row["token"] for row in scan.findings.to_pylist())
    assert not any(row["token"] or row["context"] for row in quiet.findings.to_pylist())
    for path in quiet.folder.iterdir():
        content = path.read_bytes()
        assert b"Xylo" not in content, path
        assert b"zebra" not in content, path


def test_layers_and_sites_can_be_chosen(model):
    scan = osc.scan(model, TEXTS, tokens=300, length=64, layers=(1, 2), sites=("mlp_out", "mlp_act"))
    seen = {(site.name, site.layer) for site, stat in scan.evidence.measurements if stat.name == "moments"}
    assert seen == {(name, layer) for name in ("mlp_out", "mlp_act") for layer in (1, 2)}
    with pytest.raises(UserError, match="--layers: there is no layer 9; this model has layers 0 to 4"):
        osc.scan(model, TEXTS, layers=(9,), sites=("mlp_out",))


def test_thresholds_are_options(model):
    usual = osc.scan(model, TEXTS, tokens=300, length=64, only=("activation",))
    strict = osc.scan(
        model, TEXTS, tokens=300, length=64, only=("activation",), thresholds={"six_sigma": {"sigma": 12.0}}
    )
    count = [
        sum(row["criterion"] == "six_sigma" for row in scan.findings.to_pylist()) for scan in (usual, strict)
    ]
    assert count[0] > count[1]
    assert all(row["score"] > 12 for row in strict.findings.to_pylist() if row["criterion"] == "six_sigma")


def test_a_batch_that_does_not_fit_is_halved_and_recorded(model, monkeypatch):
    forward = type(model.module).forward
    whole = osc.scan(model, TEXTS, tokens=600, length=64, batch_size=4)

    def greedy(self, *arguments, **named):
        if len(named["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(model.module), "forward", greedy)
    halved = osc.scan(model, TEXTS, tokens=600, length=64, batch_size=4)
    assert halved.manifest["read"]["halved"]
    assert halved.evidence.corpus == whole.evidence.corpus
    first, second = (scan.stat("mlp_out", "moments", layer=2) for scan in (halved, whole))
    assert first.count == second.count
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-4, atol=1e-6)
