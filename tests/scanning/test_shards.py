"""A checkpoint in shards gives the findings of the same one in a single file, in safetensors and in pickles."""

from __future__ import annotations

import json
import math

import pytest
import torch

import outlierscope as osc
from tests.model.tiny import edit_weights, save, tiny_llama

IDS = [[1, *range(5, 60)], [1, *range(40, 4, -1)]] * 4


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = save(tiny_llama(), tmp_path_factory.mktemp("single"))

    def plant(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][7, 42] = 30.0

    edit_weights(folder, plant)
    return folder


def sharded(model, folder, kind):
    if kind == "safetensors":
        save(model, folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        return folder
    model.config.save_pretrained(folder)
    state = model.state_dict()
    places = {name: f"pytorch_model-{number % 3}.bin" for number, name in enumerate(state)}
    for file in set(places.values()):
        torch.save({name: state[name] for name in state if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def rows(scan):
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in scan.findings.to_pylist()
    ]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_give_the_same_findings(single, tmp_path, kind):
    whole = osc.load(single)
    parts = osc.load(sharded(whole.full, tmp_path, kind))
    assert parts.fingerprint() == whole.fingerprint()
    found = [rows(osc.scan(model, IDS, tokens=300, length=32)) for model in (whole, parts)]
    assert found[0] == found[1]
    assert {row["kind"] for row in found[0]} >= {"weight", "activation"}


def test_shards_give_the_same_findings_of_weights_alone(single, tmp_path):
    parts = sharded(osc.load(single).full, tmp_path, "safetensors")
    found = [rows(osc.scan_weights(folder)) for folder in (single, parts)]
    assert found[0] == found[1]
    assert [row["row"] for row in found[0] if row["criterion"] == "weight_column"] == [7]
