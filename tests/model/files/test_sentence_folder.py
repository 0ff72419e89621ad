"""Folders of sentence-transformers: the transformer is found, its limit is kept to, and what else there is is told."""

from __future__ import annotations

import json
import shutil

import pytest

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.model.files.source import find_source
from outlierscope.reporting.summary import summarize
from tests.model.tiny import save, tiny_bert

KINDS = ["Transformer", "Pooling", "Dense", "Normalize"]


def sentence_model(folder, subfolder="", limit=20, kinds=KINDS, limits="sentence_bert_config.json"):
    """A tiny BERT as sentence-transformers keeps it."""
    save(tiny_bert(), folder / subfolder)
    (folder / subfolder / limits).write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
    modules = []
    for number, kind in enumerate(kinds):
        path = subfolder if kind == "Transformer" else f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        if kind != "Transformer":
            (folder / path).mkdir()
            (folder / path / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def message(folder):
    with pytest.raises(UserError) as caught:
        find_source(folder)
    return str(caught.value)


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
def test_the_transformer_is_found(tmp_path, subfolder):
    folder = sentence_model(tmp_path, subfolder)
    loaded = osc.load(folder)
    assert loaded.fingerprint() == osc.wrap(tiny_bert()).fingerprint()
    assert (loaded.name, loaded.source) == (str(folder), str(folder / subfolder))
    assert loaded.origin["sentence_transformers"] == {
        "transformer": subfolder or ".",
        "max_seq_length": 20,
        "not_scanned": ["Pooling", "Dense", "Normalize"],
    }


def test_the_other_modules_are_listed_as_not_observed(tmp_path):
    folder = sentence_model(tmp_path)
    row = {
        "what": "Pooling, Dense, Normalize",
        "why": "modules of sentence-transformers after the transformer; not scanned",
    }
    scan = osc.scan(osc.load(folder), [[*range(5, 60)]], tokens=40)
    assert row in scan.manifest["not_observed"]
    assert row in osc.scan_weights(folder).manifest["not_observed"]
    assert any(line.startswith("Pooling, Dense, Normalize: ") for line in summarize(scan).not_observed)
    assert (
        "windows end where sentence-transformers cuts texts; --length for longer ones" in summarize(scan).read
    )
    plain = osc.scan(osc.wrap(tiny_bert()), [[*range(5, 60)]], tokens=40)
    assert not any("Pooling" in row["what"] for row in plain.manifest["not_observed"])


@pytest.mark.parametrize(("limit", "length"), [(20, 20), (None, 40), (1000, 40), (0, 40)])
def test_windows_are_no_longer_than_the_texts_that_the_model_is_used_on(tmp_path, limit, length):
    loaded = osc.load(sentence_model(tmp_path, limit=limit))
    assert loaded.max_length == 40
    ids = [[*range(5, 60)]] * 2
    assert osc.scan(loaded, ids, tokens=80).manifest["read"]["longest"] == length
    assert osc.scan(loaded, ids, tokens=80, length=30).manifest["read"]["longest"] == 30


def test_older_names_of_the_file_with_the_limit(tmp_path):
    folder = sentence_model(tmp_path, limits="sentence_distilbert_config.json", limit=33)
    assert osc.load(folder).usual_length == 33


def test_the_real_one(minilm_folder):
    loaded = osc.load(minilm_folder)
    assert (loaded.max_length, loaded.usual_length) == (512, 256)
    assert loaded.origin["sentence_transformers"]["not_scanned"] == ["Pooling", "Normalize"]


def test_what_is_wrong_with_it(tmp_path):
    folder = sentence_model(tmp_path / "a", "0_Transformer")
    modules = folder / "modules.json"
    shutil.rmtree(folder / "0_Transformer")
    assert message(folder) == f"{folder} lacks the folder 0_Transformer that its modules.json names"
    modules.write_text(modules.read_text().replace("0_Transformer", "../elsewhere"))
    assert message(folder) == f"{modules} names a folder outside of its own: '../elsewhere'"
    for text in ("{", "[1]", '{"a": 1}', "5"):
        modules.write_text(text)
        assert message(folder) == f"{modules} lists no modules of sentence-transformers"
    words = sentence_model(tmp_path / "b", kinds=["StaticEmbedding", "Normalize"])
    assert message(words) == (
        f"{words} is a sentence-transformers model without a Transformer (its modules: StaticEmbedding, Normalize)"
    )
