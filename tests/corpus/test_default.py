from __future__ import annotations

import sys

import pytest

from outlierscope.corpus.default import PythonReference
from outlierscope.corpus.open import open_corpus
from outlierscope.errors import UserError


def test_it_is_running_text():
    (document,) = PythonReference()
    text = "".join(document.blocks)
    paragraphs = text.split("\n\n")
    assert len(text) > 200_000
    assert len(set(paragraphs)) == len(paragraphs) > 700
    assert not any(mark in text for mark in (">>>", "::=", "  "))
    letters = sum(character.isalpha() or character.isspace() for character in text)
    assert letters > 0.9 * len(text)
    assert text.count(". ") > 1000
    assert text.count(", ") > 1000


def test_it_gives_tens_of_thousands_of_tokens(minilm_tokenizer):
    corpus = open_corpus(kind="text", stack="encoder", tokenizer=minilm_tokenizer)
    batches = list(corpus.batches())
    assert sum(batch.tokens for batch in batches) > 45_000
    assert {len(batch.sequence_ids) for batch in batches[:-1]} == {8}
    source = corpus.describe()["source"]
    assert source["title"].startswith("prose of the Python language reference")
    assert source["python"] == ".".join(map(str, sys.version_info[:3]))


def test_it_is_the_same_every_time():
    assert PythonReference().fingerprint() == PythonReference().fingerprint()


def test_a_python_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(
        UserError, match=r"^this Python lacks pydoc_data.topics, the default text; give one with"
    ):
        list(PythonReference())
