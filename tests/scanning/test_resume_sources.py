"""Scans of streams and archives go on from their cursor, and end with the bits of an uninterrupted scan."""

from __future__ import annotations

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

import outlierscope as osc
from outlierscope.corpus import hub
from outlierscope.corpus.hub import HubRows
from outlierscope.corpus.tar import TarMembers
from outlierscope.errors import UserError
from outlierscope.scanning import forward
from outlierscope.scanning.scan import EXAMPLES, FINDINGS, STATS
from tests.model.tiny import tiny_bert

INTERRUPTED = 4
SETTINGS = {"tokens": 100_000, "batch_size": 3, "thresholds": {"six_sigma": {"sigma": 3.0}}}


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Token ids on a pretended hub: 20 rows of 20 to 45 tokens, some of them two windows of at most 40."""
    rng = np.random.default_rng(0)
    rows = [{"text": rng.integers(3, 64, 20 + 7 * row % 26).tolist()} for row in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_dataset = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_, **__: load_dataset("json", data_dir=str(tmp_path), split="train", streaming=True),
    )
    monkeypatch.setattr(hub, "resolve_revision", lambda name: "commit1")
    return osc.wrap(tiny_bert()), "hub:me/mine:train", (HubRows, "cells")


@pytest.fixture
def archive(tmp_path):
    """Twenty pictures, the sixth of them broken."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    path = tmp_path / "pictures.tar"
    with tarfile.open(path, "w") as file:
        for seed in range(20):
            content = io.BytesIO()
            values = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(content, "PNG")
            data = b"broken" if seed == 5 else content.getvalue()
            member = tarfile.TarInfo(f"{seed}.png")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return osc.wrap(model, processor), path, (TarMembers, "items")


def interrupt(model, data, out):
    observe = forward.TappedModel.observe

    def interrupted(self, batch, measurements):
        if batch.number == INTERRUPTED:
            raise KeyboardInterrupt
        return observe(self, batch, measurements)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward.TappedModel, "observe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            osc.scan(model, data, out=out, **SETTINGS)


@pytest.mark.parametrize("source", ["stream", "archive"])
def test_an_interrupted_scan_goes_on_at_the_same_place(request, source, tmp_path, monkeypatch):
    model, data, (reader, method) = request.getfixturevalue(source)
    whole = osc.scan(model, data, out=tmp_path / "whole", **SETTINGS)
    assert whole.manifest["read"]["batches"] > INTERRUPTED + 1
    assert whole.findings.num_rows

    out = tmp_path / "cut"
    interrupt(model, data, out)

    starts = []
    read = getattr(reader, method)

    def spy(self, *arguments):
        starts.append(next((item for item in arguments if isinstance(item, int)), 0))
        return read(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reader, method, spy)
        resumed = osc.scan(model, data, out=out, resume=True, **SETTINGS)
    assert max(starts) >= 8, "what lies before the cursor is not handed out again"
    assert resumed.findings.equals(whole.findings)
    for name in (STATS, EXAMPLES, FINDINGS):
        assert resumed.manifest["files"][name] == whole.manifest["files"][name], name
    assert resumed.manifest["corpus"] == whole.manifest["corpus"]
    assert resumed.manifest["read"] | {"seconds": 0} == whole.manifest["read"] | {"seconds": 0}


def test_a_data_set_that_moved_on_is_not_resumed(stream, tmp_path, monkeypatch):
    model, data, _ = stream
    interrupt(model, data, tmp_path / "cut")
    monkeypatch.setattr(hub, "resolve_revision", lambda name: "commit2")
    with pytest.raises(UserError, match=r"cannot resume .*: corpus was '\w+' and is '\w+' now; use the same"):
        osc.scan(model, data, out=tmp_path / "cut", resume=True, **SETTINGS)
