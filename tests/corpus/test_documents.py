from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outlierscope.corpus import document, documents
from outlierscope.corpus.documents import Document, JsonLines, Parquet, TextFile, file_fingerprint
from outlierscope.errors import UserError


def contents(source):
    return [
        (document.name, "".join(document.blocks) if document.token_ids is None else document.token_ids)
        for document in source
    ]


def error_of(source):
    with pytest.raises(UserError) as caught:
        contents(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_file_is_one_document_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_CHARACTERS", 5)
    path = tmp_path / "my.txt"
    path.write_bytes("\ufeffOne é\r\n\r\ntwo 字.".encode())
    (document,) = TextFile(path)
    blocks = list(document.blocks)
    assert len(blocks) > 2
    assert "".join(blocks) == "One é\n\ntwo 字."
    assert contents(TextFile(path)) == contents(TextFile(path))


def test_text_in_another_encoding(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9 au lait".encode("latin-1"))
    assert error_of(TextFile(path)) == (
        f"{path}: not UTF-8 text (byte 0xe9: invalid continuation byte); convert it to UTF-8 first"
    )


def test_json_lines_hold_texts_and_token_ids(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"text": "One."}\n\n{"text": [3, 4]}\r\n{"text": null}\n{"text": "four", "more": 1}')
    assert contents(JsonLines(path)) == [
        ("my.jsonl:1", "One."),
        ("my.jsonl:3", [3, 4]),
        ("my.jsonl:4", ""),
        ("my.jsonl:5", "four"),
    ]
    path.write_text('\ufeff{"text": "a", "body": "b"}', encoding="utf-8")
    assert contents(JsonLines(path, ["body"])) == [("my.jsonl:1", "b")]


GOOD = '{"text": "fine"}\n'
BROKEN_LINES = {
    '{"text": "cut off': "my.jsonl:2: broken JSON (Unterminated string starting at); every line must",
    "nonsense": "my.jsonl:2: broken JSON (Expecting value); every line must hold one object",
    "[" * 100_000: "my.jsonl:2: broken JSON (nested too deeply); every line must hold one object",
    '["a"]': "my.jsonl:2: holds a list of other things; every line must hold one JSON object",
    "3": "my.jsonl:2: holds a number; every line must hold one JSON object",
    '{"body": "a", "title": "b"}': (
        "my.jsonl:2: no column 'text'; there are: body, title; choose one with --column"
    ),
    "{}": "my.jsonl:2: no column 'text'; there are: none; choose one with --column",
    '{"text": 3.5}': "my.jsonl:2: field 'text' holds a number, expected text or a list of token ids",
    '{"text": true}': "my.jsonl:2: field 'text' holds a truth value, expected text or a list of token ids",
    '{"text": ["a", "b"]}': "my.jsonl:2: field 'text' holds a list of other things, expected text or a list",
    '{"text": {"a": 1}}': "my.jsonl:2: field 'text' holds an object, expected text or a list of token ids",
}


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: line[:12])
def test_broken_json_lines_are_told_with_their_number(tmp_path, line):
    path = tmp_path / "my.jsonl"
    path.write_text(GOOD + line + "\n" + GOOD)
    assert BROKEN_LINES[line] in error_of(JsonLines(path))


def test_json_lines_in_another_encoding(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_bytes(GOOD.encode() + b'{"text": "\xff"}')
    assert "my.jsonl:2: not UTF-8 text (byte 0xff: invalid start byte)" in error_of(JsonLines(path))


COLUMNS = {
    "string": pa.array(["One.", None, "three"]),
    "large_string": pa.array(["One.", None, "three"], pa.large_string()),
    "dictionary": pa.array(["One.", None, "three"]).dictionary_encode(),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_parquet_columns_of_text(tmp_path, column):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"text": column, "other": [1, 2, 3]}), path, row_group_size=2)
    assert contents(Parquet(path)) == [
        ("my.parquet:1", "One."),
        ("my.parquet:2", ""),
        ("my.parquet:3", "three"),
    ]
    assert Parquet(path).characters > 0


def test_parquet_columns_of_token_ids(tmp_path):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"ids": pa.array([[1, 2, 3], [], [4]], pa.list_(pa.int32()))}), path)
    source = Parquet(path, ["ids"])
    assert contents(source) == [("my.parquet:1", [1, 2, 3]), ("my.parquet:2", []), ("my.parquet:3", [4])]
    assert source.characters is None


def test_parquet_errors(tmp_path):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1.5]}), path)
    with pytest.raises(UserError, match="no column 'text'; there are: body, n; choose one with --column"):
        Parquet(path)
    with pytest.raises(UserError, match="column 'n' holds double, expected text or lists of token ids"):
        Parquet(path, ["n"])
    path.write_bytes(b"PAR1 and nonsense")
    with pytest.raises(UserError, match=r"my.parquet: not a readable parquet file \("):
        Parquet(path)


def test_damaged_parquet_pages(tmp_path):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(5000)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:4000] = bytes(3800)
    path.write_bytes(content)
    assert "my.parquet: damaged after row 0 (" in error_of(Parquet(path))


def test_fingerprints_follow_the_content(tmp_path, monkeypatch):
    path = tmp_path / "my.txt"
    seen = set()
    for text in ("one", "two", "one "):
        path.write_text(text)
        seen.add(TextFile(path).fingerprint())
    assert len(seen) == 3


def test_of_very_large_files_both_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "HASHED_BYTES", 20)
    monkeypatch.setattr(documents, "SAMPLED_BYTES", 4)
    path = tmp_path / "my.txt"
    prints = []
    for text in ("head" + "x" * 20 + "tail", "head" + "y" * 20 + "tail", "Head" + "x" * 20 + "tail",
                 "head" + "x" * 20 + "tails"):  # fmt: skip
        path.write_text(text)
        prints.append(file_fingerprint(path))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_descriptions_are_plain_values(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text(GOOD)
    assert json.loads(json.dumps(JsonLines(path).describe())) == {
        "kind": "jsonl",
        "path": str(path),
        "column": "text",
    }


def test_cells_of_other_kinds():
    assert document.cell_document(None, "a", "b") == Document("a", ("",))
    with pytest.raises(UserError, match=r"^place holds a bytes, expected text"):
        document.cell_document(b"a", "name", "place")
