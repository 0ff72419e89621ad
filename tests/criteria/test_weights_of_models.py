"""weight_row and super_weight_candidate on real models, against the weights themselves and plain hooks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import outlierscope
from outlierscope.criteria.super_weight import SuperWeightCandidate
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.settings import ScanSettings
from tests.criteria.attention_evidence import findings
from tests.criteria.direct import VIT, Direct, Run, peaks


def direct_rows(tensors, sigma):
    """(parameter, row) -> (how many std its ratio is off, the ratio), for the matrices of all blocks."""
    expected = {}
    for name, weight in tensors.items():
        if ".layer" not in name or weight.ndim != 2:
            continue
        magnitude = np.abs(weight.double().numpy())
        ratio = magnitude.max(1) / magnitude.mean(1)
        off = (ratio - ratio.mean()) / ratio.std(ddof=1)
        expected |= {(name, int(row)): (off[row], ratio[row]) for row in (off > sigma).nonzero()[0]}
    return expected


def check_rows(rows, expected):
    assert {(row["parameter"], row["row"]) for row in rows} == expected.keys()
    for row in rows:
        figures = (row["score"], json.loads(row["extra"])["ratio"])
        assert figures == pytest.approx(expected[row["parameter"], row["row"]], rel=1e-4)
        assert row["dim"] is None
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


@pytest.fixture(scope="module")
def vit(shared_model, shared_data):
    """ViT-tiny on 8 pictures, in two batches."""
    folder = shared_model("vit-tiny-patch16-224")
    model, data = outlierscope.load(folder), shared_data("images")
    thresholds = {"weight_row": {"sigma": 4.0}}
    settings = ScanSettings(tokens=8 * 197, batch_size=4, only=("weight",), thresholds=thresholds)
    batches = list(corpus_for(model, settings, data).batches())
    plain = AutoModelForImageClassification.from_pretrained(folder).eval()
    scan = outlierscope.scan(model, data, settings=settings)
    return Run(scan, Direct(plain.vit, VIT, batches), plain, batches, thresholds)


def test_super_weight_candidate_of_vit(vit):
    (row,) = vit.rows("super_weight_candidate")
    assert (row["layer"], row["row"], row["dim"]) == (7, 41, 417)
    assert row["parameter"] == "vit.layers.7.mlp.fc2.weight"


@pytest.mark.parametrize(("magnitude", "layers"), [(50.0, [7]), (5.0, [0, 6, 7, 11])])
def test_super_weight_candidates_of_vit_against_hooks(vit, magnitude, layers):
    there = peaks(vit.direct, ("mlp_post", "mlp_out"))
    rows, refused = findings(SuperWeightCandidate(magnitude), vit.scan.evidence)
    assert not refused
    smaller = {
        layer: min(abs(there["mlp_post", layer].value), abs(there["mlp_out", layer].value))
        for layer in range(12)
    }
    assert [layer for layer in range(12) if smaller[layer] > magnitude] == layers
    assert [row.layer for row in rows] == sorted(layers, key=lambda layer: -smaller[layer])
    for row in rows:
        read, written = there["mlp_post", row.layer], there["mlp_out", row.layer]
        assert (row.value, row.sequence, row.position, row.dim) == read
        assert (row.row, row.extra["output"], row.score) == (written.dim, written.value, smaller[row.layer])
        assert row.extra["same_token"] == (read[1:3] == written[1:3])
        weight = vit.plain.vit.layers[row.layer].mlp.fc2.weight.detach()  # [out, in]
        if int(weight[:, read.dim].abs().argmax()) == written.dim:
            assert row.extra["weight"] == float(weight[written.dim, read.dim])
        else:
            assert "weight" not in row.extra


def test_weight_rows_of_vit(vit):
    expected = direct_rows(vit.plain.state_dict(), vit.thresholds["weight_row"]["sigma"])
    assert expected
    check_rows(vit.rows("weight_row"), expected)
    sites = {
        "q_proj": "q",
        "k_proj": "k",
        "v_proj": "v",
        "o_proj": "attn_out",
        "fc1": "mlp_up",
        "fc2": "mlp_out",
    }
    for row in vit.rows("weight_row"):
        assert row["site"] == sites[row["parameter"].split(".")[-2]]
        assert row["layer"] == int(row["parameter"].split(".")[2])


@pytest.mark.parametrize("sigma", [6.0, 3.0])
def test_weight_rows_of_minilm_from_its_files(minilm_folder, sigma):
    settings = ScanSettings(only=("weight",), thresholds={"weight_row": {"sigma": sigma}})
    scan = outlierscope.scan_weights(minilm_folder, settings)
    expected = direct_rows(load_file(minilm_folder / "model.safetensors"), sigma)
    assert expected
    check_rows([row for row in scan.findings.to_pylist() if row["criterion"] == "weight_row"], expected)
