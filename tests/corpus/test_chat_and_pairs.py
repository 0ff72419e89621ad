from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from outlierscope.corpus.open import open_corpus
from outlierscope.errors import UserError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}{{ raise_exception('Roles are user and assistant') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)
TALK = [
    {"role": "user", "content": "What was the sea like?"},
    {"role": "assistant", "content": "It was calm."},
]


@pytest.fixture
def chat_tokenizer(gemma_like_tokenizer, monkeypatch):
    """One that puts <bos> before every text, and whose template writes it as well."""
    monkeypatch.setattr(gemma_like_tokenizer, "chat_template", TEMPLATE, raising=False)
    return gemma_like_tokenizer


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_chat(data, tokenizer, **choices):
    return open_corpus(
        data, kind="text", stack="decoder", causal=True, tokenizer=tokenizer, **{"chat": True} | choices
    )


def test_a_conversation_has_the_template_s_tokens_and_one_bos(tmp_path, chat_tokenizer):
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": TALK[:1]})
    pq.write_table(pa.table({"messages": [TALK, TALK[:1]]}), tmp_path / "a.parquet")
    text = "<bos>user: What was the sea like?\nassistant: It was calm.\n"
    expected = chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert expected.count(chat_tokenizer.bos_token_id) == 1
    for data in (path, tmp_path / "a.parquet", [TALK, TALK[:1]]):
        corpus = open_chat(data, chat_tokenizer)
        (batch,) = corpus.batches()
        assert batch.token_ids[0, : len(expected)].tolist() == expected
        assert (batch.token_ids == chat_tokenizer.bos_token_id).sum(1).tolist() == [1, 1]
        assert corpus.describe()["chat"] is True


def test_the_template_counts_in_the_fingerprint(tmp_path, chat_tokenizer, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK})
    first = open_chat(path, chat_tokenizer).fingerprint()
    assert open_chat(path, chat_tokenizer).fingerprint() == first
    monkeypatch.setattr(chat_tokenizer, "chat_template", TEMPLATE + "end")
    assert open_chat(path, chat_tokenizer).fingerprint() != first


MALFORMED = [
    ("text", "holds a text, expected a list of messages"),
    ([], "holds an empty list, expected a list of messages"),
    (None, "holds nothing, expected a list of messages"),
    ([TALK[0], 3], ": message 1 is a number, expected an object"),
    ([{"content": "a"}], ": message 0 lacks 'role', expected a text there"),
    ([{"role": "user", "content": 5}], ": message 0 has a number as 'content', expected a text there"),
    (
        [{"role": "system", "content": "a"}],
        ": the chat template refuses this conversation (Roles are user and assistant)",
    ),
]


@pytest.mark.parametrize(("messages", "message"), MALFORMED)
def test_malformed_messages_are_told_with_their_line(tmp_path, chat_tokenizer, messages, message):
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": messages})
    with pytest.raises(UserError) as caught:
        list(open_chat(path, chat_tokenizer, length=16).batches())
    space = "" if message.startswith(":") else " "
    assert str(caught.value) == f"{path}:2: field 'messages'{space}{message}"


def test_where_there_is_no_chat(tmp_path, chat_tokenizer, minilm_tokenizer):
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK})
    (tmp_path / "a.txt").write_text("some text")
    cases = [
        (tmp_path / "a.txt", chat_tokenizer, {}, "--chat: only .jsonl and .parquet files and data sets hold"),
        (
            None,
            chat_tokenizer,
            {},
            "--chat: only .jsonl and .parquet files and data sets hold conversations;",
        ),
        (
            path,
            minilm_tokenizer,
            {},
            "--chat: this model's tokenizer has no chat template; leave the option out",
        ),
        (path, None, {}, "--chat needs the model's tokenizer, and this model comes without one"),
        (
            path,
            chat_tokenizer,
            {"bos": True},
            "--bos/--no-bos: with --chat the chat template says which special",
        ),
        (
            path,
            chat_tokenizer,
            {"column": "talk"},
            f"{path}:1: no column 'talk'; there are: messages; choose one",
        ),
    ]
    for data, tokenizer, choices, message in cases:
        with pytest.raises(UserError) as caught:
            open_chat(data, tokenizer, **choices)
        assert str(caught.value).startswith(message)


def open_pairs(data, tokenizer, **choices):
    return open_corpus(
        data,
        kind="text",
        stack="encoder",
        tokenizer=tokenizer,
        **{"column": "first,second", "batch_size": 2} | choices,
    )


ROWS = [
    {"first": "The sea was calm.", "second": "A boy was waiting."},
    {"first": "Nobody knew why.", "second": "He had a lamp, three boats and twelve nets."},
    {"first": "The end.", "second": "Of it."},
]


def test_pairs_are_what_the_tokenizer_makes_of_them(tmp_path, minilm_tokenizer):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for data in (jsonl(tmp_path / "a.jsonl", *ROWS), tmp_path / "a.parquet"):
        batches = list(open_pairs(data, minilm_tokenizer).batches())
        assert [len(batch.documents) for batch in batches] == [2, 1]  # one record a window
        for start, batch in zip((0, 2), batches, strict=True):
            firsts, seconds = zip(*[row.values() for row in ROWS[start : start + 2]], strict=True)
            expected = minilm_tokenizer(list(firsts), list(seconds), padding=True, return_tensors="pt")
            for name in ("input_ids", "token_type_ids"):
                assert torch.equal(batch.inputs[name], expected[name])
            assert torch.equal(batch.real, expected["attention_mask"].bool())
        assert minilm_tokenizer.decode(batches[1].token_ids[0]) == "[CLS] the end. [SEP] of it. [SEP]"


def test_long_pairs_are_cut_and_restarts_change_nothing(tmp_path, minilm_tokenizer):
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    corpus = open_pairs(path, minilm_tokenizer, length=12, batch_size=1)
    whole = list(corpus.batches())
    assert corpus.describe()["pairs_cut"] == 2
    ids = whole[1].token_ids[0].tolist()
    assert len(ids) == 12
    assert [ids[0], ids[-1], ids.count(102)] == [101, 102, 2]
    resumed = open_pairs(path, minilm_tokenizer, length=12, batch_size=1)
    for one, other in zip(resumed.batches(1, whole[0].cursor), whole[1:], strict=True):
        assert torch.equal(one.inputs["token_type_ids"], other.inputs["token_type_ids"])
        assert torch.equal(one.token_ids, other.token_ids)


def test_errors_of_pairs(tmp_path, minilm_tokenizer):
    path = jsonl(tmp_path / "a.jsonl", *ROWS[:1], {"first": "a", "second": 5})
    cases = [
        ({}, f"{path}:2: field 'first,second' holds a number, expected two texts"),
        ({"column": "first,third"}, f"{path}:1: no column 'third'; there are: first, second; choose one"),
        ({"column": "a,b,c"}, "--column a,b,c: name one column, or two with a comma between them"),
        ({"length": 4}, "--length 4 leaves no room for a pair; at least 5 is needed here"),
        ({"tokenizer": None}, "a.jsonl:1 is text, but this model comes without a tokenizer"),
    ]
    for choices, message in cases:
        with pytest.raises(UserError) as caught:
            list(open_pairs(path, **{"tokenizer": minilm_tokenizer} | choices).batches())
        assert str(caught.value).startswith(message)


def test_columns_count_in_the_fingerprint(tmp_path, minilm_tokenizer):
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    prints = {
        open_pairs(path, minilm_tokenizer, column=column).fingerprint()
        for column in ("first,second", "second,first", "first")
    }
    assert len(prints) == 3
