from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from outlierscope.corpus import hub
from outlierscope.corpus.hub import HubAddress, HubMedia, HubRows
from outlierscope.corpus.open import open_corpus
from outlierscope.corpus.pictures import upright_rgb
from outlierscope.corpus.recordings import mono_samples
from outlierscope.errors import UserError

load_dataset = datasets.load_dataset


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """The library streams from local files, in two shards, and the hub says at which commit it is."""
    for shard in range(2):
        rows = [{"text": f"Row {shard} {row} of the data set.", "n": row} for row in range(5)]
        (tmp_path / f"train-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def local(name, config, *, split, revision, streaming):
        assert (name, config, streaming) == ("me/mine", None, True)
        assert revision in ("commit1", "commit2")
        return load_dataset("json", data_dir=str(tmp_path), split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(hub, "resolve_revision", lambda name: "commit1")
    return tmp_path


def open_text(tokenizer, data="hub:me/mine:train", **choices):
    return open_corpus(
        data,
        kind="text",
        stack="encoder",
        tokenizer=tokenizer,
        **{"length": 8, "batch_size": 3} | choices,
    )


def test_rows_are_documents(hub_folder, minilm_tokenizer):
    corpus = open_text(minilm_tokenizer, length=16)
    batches = list(corpus.batches())
    names = [name for batch in batches for name in batch.documents]
    assert names == [f"me/mine:{row}" for row in range(10)]
    assert (
        minilm_tokenizer.decode(batches[2].token_ids[0], skip_special_tokens=True)
        == "row 1 1 of the data set."
    )
    source = corpus.describe()["source"]
    assert source == {
        "kind": "hub",
        "path": "hub:me/mine::train:text",
        "revision": "commit1",
        "column": "text",
    }


@pytest.mark.parametrize("start", range(8))
def test_a_cursor_goes_on_at_the_same_row(hub_folder, minilm_tokenizer, monkeypatch, start):
    whole = list(open_text(minilm_tokenizer).batches())
    assert len(whole) == 7  # two windows a row
    resumed = open_text(minilm_tokenizer)
    started = []
    since = resumed.source.since
    monkeypatch.setattr(resumed.source, "since", lambda row: started.append(row) or since(row))
    cursor = json.loads(json.dumps(whole[start - 1].cursor)) if start else None
    rest = list(resumed.batches(start, cursor))
    done = min(3 * start, 20)  # windows, two a row
    assert started == [max(0, (done + 1) // 2 - 1)]
    for one, other in zip(rest, whole[start:], strict=True):
        assert (one.number, one.documents, one.cursor) == (other.number, other.documents, other.cursor)
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.sequence_ids, other.sequence_ids)


def test_fingerprints_follow_commit_and_column(hub_folder, minilm_tokenizer, monkeypatch):
    first = open_text(minilm_tokenizer).fingerprint()
    assert open_text(minilm_tokenizer).fingerprint() == first
    monkeypatch.setattr(hub, "resolve_revision", lambda name: "commit2")
    assert open_text(minilm_tokenizer).fingerprint() != first


def test_errors(hub_folder, minilm_tokenizer, monkeypatch):
    cases = {
        "hub:me/mine": "hub:me/mine: a data set on the hub is given as hub:NAME:SPLIT, ",
        "hub:me/mine::train:": "hub:me/mine::train:: a data set on the hub is given as",
        "hub:me/mine::train:body": "hub:me/mine: no column 'body'; there are: text, n; choose one with --column",
        "hub:me/mine::train:n": "hub:me/mine: row 0: column 'n' holds a number, expected text or a list",
        "hub:me/mine:nosplit": "cannot read hub:me/mine (ValueError: Bad split: nosplit. Available splits:",
    }
    for data, message in cases.items():
        with pytest.raises(UserError) as caught:
            open_text(minilm_tokenizer, data)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(name):
        raise ConnectionError("Cannot reach it:\noffline mode is enabled")

    monkeypatch.setattr(hub, "resolve_revision", offline)
    with pytest.raises(UserError) as caught:
        open_text(minilm_tokenizer, "hub:no/such:train")
    assert str(caught.value) == (
        "cannot read hub:no/such (ConnectionError: Cannot reach it: offline mode is enabled); check the name, config, "
        "split and the network, or download it and give the file"
    )


def test_pictures_and_recordings(tmp_path, monkeypatch):
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(picture, "PNG")
    soundfile.write(sound, np.linspace(-0.5, 0.5, 160), 16000, format="WAV")
    rows = {
        "look": [{"bytes": picture.getvalue(), "path": None}] * 3,
        "hear": [{"bytes": sound.getvalue(), "path": None}] * 3,
    }
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({"look": file, "hear": file}))
    made = made.cast_column("look", datasets.Image()).cast_column("hear", datasets.Audio())
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: made.to_iterable_dataset())
    monkeypatch.setattr(hub, "resolve_revision", lambda name: "commit1")
    opened = HubRows(HubAddress.parse("hub:me/mine:train"))
    pictures, recordings = HubMedia(opened, "Image"), HubMedia(opened, "Audio")
    assert [item.name for item in pictures.items(1)] == ["row 1", "row 2"]
    assert np.asarray(upright_rgb(next(pictures.items()).content)).flatten().tolist() == list(range(48))
    assert len(mono_samples(next(recordings.items()).content, 16000)) == 160
    assert recordings.describe()["column"] == "hear"
    only = HubRows(HubAddress.parse("hub:me/mine:train"))
    only.rows = only.rows.select_columns("look")
    with pytest.raises(
        UserError, match="no column holds Audio; the columns are look, hear; name one as COLUMN"
    ):
        HubMedia(only, "Audio")
