from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from outlierscope.corpus.images import ImageCorpus
from outlierscope.corpus.open import DEFAULT_LENGTH, open_corpus
from outlierscope.corpus.open_media import Sight
from outlierscope.corpus.text import TextCorpus
from outlierscope.errors import UserError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with one file of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("The old man went to the sea.")
    (tmp_path / "my.jsonl").write_text('{"text": "The old man."}\n{"text": "The sea.", "ids": [5, 6]}\n')
    (tmp_path / "ids.jsonl").write_text('{"text": [5, 6, 7]}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "my.csv").write_text("a,b\n")
    (tmp_path / "noextension").write_text("a b c")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "a.png").write_bytes(b"spoilt")
    return tmp_path


@pytest.fixture(scope="module")
def processor():
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 32, "width": 32})


def open_text(data=None, *, tokenizer, **choices):
    return open_corpus(data, kind="text", stack="encoder", tokenizer=tokenizer, **choices)


def open_pictures(data=None, *, processor, patch=16, positions=5, **choices):
    sight = Sight(processor, patch, positions) if processor else None
    return open_corpus(data, kind="image", stack="vision", sight=sight, **choices)


def test_readers_by_kind_of_data(place, minilm_tokenizer, processor):
    kinds = {
        "my.txt": "txt",
        place / "my.jsonl": "jsonl",
        "ids.jsonl": "jsonl",
        ("a list", "of texts"): "given",
        None: "default",
    }
    for data, kind in kinds.items():
        corpus = open_text(data, tokenizer=minilm_tokenizer)
        assert isinstance(corpus, TextCorpus)
        assert corpus.describe()["source"]["kind"] == kind
        assert corpus.length == DEFAULT_LENGTH
    assert open_text(text="Just this.", tokenizer=minilm_tokenizer).source.describe()["title"] == "--text"
    for data in ("pictures", place / "pictures" / "a.png", [Image.new("RGB", (9, 9))]):
        corpus = open_pictures(data, processor=processor)
        assert isinstance(corpus, ImageCorpus)
        assert corpus.grid.special == 1
        assert sum(batch.tokens for batch in corpus.batches()) == 5


def test_token_ids_need_no_tokenizer(place):
    corpus = open_text("ids.jsonl", tokenizer=None)
    assert [batch.token_ids.tolist() for batch in corpus.batches()] == [[[5, 6, 7]]]
    assert open_text([[1, 2]], tokenizer=None).estimated_tokens is None


def test_the_given_text_is_one_sequence(minilm_tokenizer):
    (batch,) = open_text(text="The old man went to the sea.", tokenizer=minilm_tokenizer).batches()
    assert batch.documents == ["--text[0]"]
    assert minilm_tokenizer.decode(batch.token_ids[0]) == "[CLS] the old man went to the sea. [SEP]"


@pytest.mark.parametrize(
    ("length", "max_length", "expected"),
    [
        (None, None, 512),
        (None, 128, 128),
        (None, 4096, 512),
        (64, 128, 64),
        (128, 128, 128),
        (1000, None, 1000),
    ],
)
def test_length(minilm_tokenizer, length, max_length, expected):
    corpus = open_text(tokenizer=minilm_tokenizer, length=length, max_length=max_length)
    assert corpus.length == expected
    (batch, *_) = corpus.batches()
    assert batch.token_ids.shape == (max(1, 4096 // expected), expected)


def test_sampling_of_every_batch(minilm_tokenizer):
    corpus = open_text(tokenizer=minilm_tokenizer, length=64, batch_size=8, sample_every=1)
    assert all(batch.dear for batch in corpus.batches())
    corpus = open_text(tokenizer=minilm_tokenizer, length=64, batch_size=8)
    assert [b.number for b in corpus.batches() if b.dear][:10] == [0, 1, 2, 3, 4, 5, 6, 7, 32, 64]


TEXT_ERRORS = [
    ("missing.txt", {}, "no such file or folder: missing.txt"),
    ("x" * 5000 + ".txt", {}, "no such file or folder: xxx"),
    (
        "my.csv",
        {},
        "my.csv: unknown file type '.csv'; known are .txt, .jsonl, .parquet and folders of pictures or recordings",
    ),
    ("noextension", {}, "noextension: unknown file type ''; known are"),
    ("empty.txt", {}, "empty.txt holds only white space; give a file with text in it"),
    ("blank.txt", {}, "blank.txt holds only white space; give a file with text in it"),
    ("empty.jsonl", {}, "empty.jsonl is empty; give a file with text in it"),
    ("broken.jsonl", {}, "broken.jsonl:1: broken JSON (Expecting value); every line must hold one object"),
    (
        "my.jsonl",
        {"column": "body"},
        "my.jsonl:1: no column 'body'; there are: text; choose one with --column",
    ),
    (
        "my.txt",
        {"column": "body"},
        "--column body: only .jsonl and .parquet files and data sets have columns",
    ),
    (None, {"column": "body"}, "--column body: only .jsonl and .parquet files and data sets have columns"),
    ("pictures", {}, "pictures is a folder, and this model reads text; give one of .txt, .jsonl, .parquet"),
    (
        "pictures/a.png",
        {},
        "pictures/a.png is a picture, and this model reads text; give one of .txt, .jsonl",
    ),
    ("hub:wikitext", {}, "hub:wikitext: a data set on the hub is given as hub:NAME:SPLIT, hub:NAME:CONFIG"),
    ("my.txt", {"text": "a"}, "--text and --data exclude each other; give one of them"),
    (None, {"text": " "}, "--text holds only white space; give"),
    (
        "my.txt",
        {"length": 513, "max_length": 512},
        "--length 513 is more than the model's 512 positions; give",
    ),
    ("my.txt", {"length": 3}, "--length 3 leaves no room for text; at least 4 is needed here"),
    ("my.txt", {"length": 0}, "--length 0: must be a whole number of at least 1"),
    ("my.txt", {"tokens": -5}, "--tokens -5: must be a whole number of at least 1"),
    ("my.txt", {"tokens": 1.5}, "--tokens 1.5: must be a whole number of at least 1"),
    ("my.txt", {"batch_size": 0}, "--batch 0: must be a whole number of at least 1"),
    ("my.txt", {"sample_every": True}, "--sample-every True: must be a whole number of at least 1"),
    ([], {}, "texts is empty; give"),
    (
        [3],
        {},
        "texts[0] is a int; expected str, a sequence of token ids, or a mapping with input_ids or text",
    ),
    ("ids.jsonl", {"vocabulary_size": 7}, "ids.jsonl:1 holds the token id 7, but the model knows 7 tokens;"),
    (
        None,
        {"kind": "unknown"},
        "this model reads unknown input; only text, images and audio can be scanned",
    ),
    ("a.wav", {}, "a.wav is a recording, and this model reads text; give one of .txt, .jsonl, .parquet"),
    (None, {"kind": "audio"}, "this model comes without the feature extractor that recordings need"),
    (None, {"kind": "audio", "text": "a"}, "--text is for text models, and this model reads audio"),
    (
        "my.txt",
        {"tokenizer": None, "processor_problem": "no tokenizer.json"},
        "my.txt is text, but this model comes without a tokenizer (no tokenizer.json); give token ids",
    ),
    (
        None,
        {"tokenizer": None},
        "Python language reference is text, but this model comes without a tokenizer;",
    ),
    (
        "my.jsonl",
        {"tokenizer": None},
        "my.jsonl:1 is text, but this model comes without a tokenizer; give token",
    ),
]


@pytest.mark.parametrize(("data", "choices", "message"), TEXT_ERRORS)
def test_errors_of_text(place, minilm_tokenizer, data, choices, message):
    with pytest.raises(UserError) as caught:
        open_corpus(data, **{"kind": "text", "stack": "encoder", "tokenizer": minilm_tokenizer} | choices)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


IMAGE_ERRORS = [
    (None, {}, "this model reads images, and there is no default set; give a folder with --data FOLDER"),
    ("nowhere", {}, "no such file or folder: nowhere"),
    ("nothing", {}, "nothing: a folder without pictures (.jpg, .jpeg, .png, .webp"),
    ("my.txt", {}, "my.txt is no picture, and this model reads images; give a folder with --data FOLDER"),
    (
        "spoilt",
        {},
        "none of the 1 pictures can be decoded (a.png: not a picture, or of an unknown kind)",
    ),
    (None, {"text": "a"}, "--text is for text models, and this model reads images"),
    ("pictures", {"length": 512}, "--length is for text models, and this model reads images"),
    ("pictures", {"bos": True}, "--bos is for text models, and this model reads images"),
    (
        "pictures",
        {"patch": None},
        "this model's config names no patch_size; only image encoders with patches",
    ),
    (
        "pictures",
        {"positions": 3},
        "the model has 3 positions, fewer than the 2 x 2 patches of its pictures;",
    ),
    (["nowhere.png"], {}, "pictures[0]: no such file: nowhere.png"),
    ("pictures", {"processor": None}, "this model comes without the image processor that pictures need"),
]


@pytest.mark.parametrize(("data", "choices", "message"), IMAGE_ERRORS)
def test_errors_of_images(place, processor, data, choices, message):
    with pytest.raises(UserError) as caught:
        open_pictures(data, **{"processor": processor} | choices)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_opening_text_imports_neither_pillow_nor_pyarrow():
    code = (
        "import sys; from outlierscope.corpus.open import open_corpus;"
        "open_corpus([[1, 2, 3]], kind='text', stack='decoder');"
        "print([name for name in ('PIL', 'pyarrow', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
