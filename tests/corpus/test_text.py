from __future__ import annotations

import json
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.corpus.batch import TEXT_CLASSES
from outlierscope.corpus.batching import Sampling
from outlierscope.corpus.context_text import context_text
from outlierscope.corpus.documents import TextFile
from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.corpus.text import TextCorpus
from outlierscope.corpus.tokenization import encode
from outlierscope.errors import UserError
from tests.corpus.conftest import SENTENCES


def corpus(items, tokenizer=None, **choices):
    choices = {"stack": "decoder", "causal": True, "length": 16, "batch_size": 3} | choices
    return TextCorpus(GivenDocuments(items), tokenizer, **choices)


def rows(batches):
    """(document, ids) of every sequence, from ``real`` and ``token_ids``."""
    return [
        (batch.documents[row], batch.token_ids[row][batch.real[row]].tolist())
        for batch in batches
        for row in range(len(batch.sequence_ids))
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        assert (one.number, one.stack, one.documents, one.dear) == (
            other.number,
            other.stack,
            other.documents,
            other.dear,
        )
        assert one.inputs.keys() == other.inputs.keys()
        for key, value in one.inputs.items():
            assert torch.equal(value, other.inputs[key])
        for name in ("token_ids", "real", "classes", "sequence_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_hold_the_documents_tokens_between_special_ones(any_tokenizer, bos, causal):
    documents = ["A boy was waiting.", SENTENCES, "The sea\nwas calm. " * 9]
    made = corpus(documents, any_tokenizer, bos=bos, causal=causal)
    before = [] if bos is False else any_tokenizer("The sea")["input_ids"]
    bare = any_tokenizer("The sea", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(before)) if before[i : i + len(bare)] == bare), 0)
    prefix, suffix = before[:at], [] if causal else before[at + len(bare) :]
    if bos and not prefix:
        prefix = [any_tokenizer.bos_token_id]
    content = {name: [] for name in ("texts[0]", "texts[1]", "texts[2]")}
    for name, ids in rows(made.batches()):
        assert len(ids) <= 16
        assert ids[: len(prefix)] == prefix
        assert ids[len(ids) - len(suffix) :] == suffix
        content[name] += ids[len(prefix) : len(ids) - len(suffix)]
    for text, (name, found) in zip(documents, content.items(), strict=True):
        expected = encode(any_tokenizer, text)
        # One last token may be left over, for which there is no window of its own.
        assert found in (expected, expected[:-1]), name
    described = made.describe()
    assert described["special_tokens_before"] == any_tokenizer.convert_ids_to_tokens(prefix)
    assert described["special_tokens_after"] == any_tokenizer.convert_ids_to_tokens(suffix)
    assert described["bos"] is bos


def test_a_long_file_is_one_stream(stories_tokenizer, shared_data):
    path = shared_data("text", "wikitext2.valid.tokens")
    made = TextCorpus(
        TextFile(path),
        stories_tokenizer,
        stack="decoder",
        causal=True,
        length=64,
        batch_size=8,
        tokens=20_000,
    )
    found = [token for _, ids in rows(made.batches()) for token in ids[1:]]
    expected = encode(stories_tokenizer, path.read_text(encoding="utf-8")[:100_000])
    assert len(found) >= 20_000 - 20_000 // 64 - 64
    assert found == expected[: len(found)]


def test_padding_is_on_the_right_and_masked():
    made = corpus([[5, 6, 7], [8, 9], [1, 2, 3, 4], [5, 5, 5, 5]], batch_size=3)
    first, second = made.batches()
    assert first.inputs["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]]
    assert first.token_ids.tolist() == [[5, 6, 7, -1], [8, 9, -1, -1], [1, 2, 3, 4]]
    assert first.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert torch.equal(first.real, first.inputs["attention_mask"].bool())
    assert first.tokens == 9
    assert first.sequence_ids.tolist() == [0, 1, 2]
    assert first.classes.tolist() == [[0, 4, 4, 4], [0, 4, 4, 4], [0, 4, 4, 4]]
    assert first.class_names == TEXT_CLASSES
    assert second.inputs.keys() == {"input_ids"}  # no mask where nothing is padded
    assert second.sequence_ids.tolist() == [3]


def test_the_padding_token_is_the_tokenizers(gemma_like_tokenizer, byte_level_tokenizer):
    texts = ["The sea was calm.", "The sea"]
    for tokenizer, pad in ((gemma_like_tokenizer, 0), (byte_level_tokenizer, 0)):
        (batch,) = corpus(texts, tokenizer).batches()
        assert set(batch.inputs["input_ids"][~batch.real].tolist()) == {pad}
    assert gemma_like_tokenizer.pad_token_id == 0
    assert byte_level_tokenizer.pad_token_id is None


@given(
    lengths=st.lists(st.integers(0, 40), max_size=25),
    batch_size=st.none() | st.integers(1, 5),
    tokens=st.none() | st.integers(1, 300),
    start=st.integers(0, 12),
)
@settings(max_examples=100, deadline=None)
def test_a_restart_changes_nothing(lengths, batch_size, tokens, start):
    documents = [[index + 1] * length for index, length in enumerate(lengths)]
    if max(lengths, default=0) < 2:
        with pytest.raises(UserError):
            list(corpus(documents, batch_size=batch_size).batches())
        return

    def make(items):
        return corpus(items, batch_size=batch_size, tokens=tokens, sampling=Sampling(3, 4))

    made = make(documents)
    whole = list(made.batches())
    assert_same(list(made.batches(start)), whole[start:])
    assert_same(list(make(iter(documents)).batches(start)), whole[start:])
    if 0 < start <= len(whole):
        # The cursor as saved, and a corpus that has read nothing yet.
        cursor = json.loads(json.dumps(whole[start - 1].cursor))
        resumed = make(iter(documents))
        assert_same(list(resumed.batches(start, cursor)), whole[start:])
        assert resumed.describe() == made.describe()
    assert [batch.number for batch in whole] == list(range(len(whole)))
    ids = torch.cat([batch.sequence_ids for batch in whole])
    assert ids.tolist() == list(range(len(ids)))
    sizes = [len(row) for _, row in rows(whole)]
    assert all(2 <= size <= 16 for size in sizes)
    expected = [size for length in lengths for size in [16] * (length // 16) + [length % 16] if size >= 2]
    if tokens is None:
        assert sizes == expected
    else:
        # Whole windows, as many as it takes to reach the number.
        assert sizes == expected[: len(sizes)]
        assert sum(sizes[:-1]) < tokens
        assert sum(sizes) >= min(tokens, sum(expected))


@pytest.mark.parametrize("start", [0, 1, 7, 30, 99])
def test_a_restart_of_a_text_file(minilm_tokenizer, tmp_path, start):
    path = tmp_path / "my.txt"
    path.write_text(SENTENCES * 30)

    def make():
        return TextCorpus(
            TextFile(path), minilm_tokenizer, stack="encoder", causal=False, length=20, batch_size=4
        )

    whole = list(make().batches())
    assert len(whole) > 30
    assert_same(list(make().batches(start)), whole[start:])
    if 0 < start <= len(whole):
        assert_same(list(make().batches(start, whole[start - 1].cursor)), whole[start:])


def test_sampled_batches():
    made = corpus([[1, 2]] * 300, batch_size=8, sampling=Sampling(every=10))
    assert [batch.number for batch in made.batches() if batch.dear] == [*range(8), 10, 20, 30]


def test_token_ids_are_taken_as_they_are(stories_tokenizer):
    (batch,) = corpus([[1, 300, 301], [302, 303]], stories_tokenizer).batches()
    assert [ids for _, ids in rows([batch])] == [[1, 300, 301], [302, 303]]
    (batch,) = corpus([[302, 303]], stories_tokenizer, bos=True).batches()
    assert rows([batch])[0][1] == [1, 302, 303]


def test_counts_and_descriptions(minilm_tokenizer):
    made = corpus(["One two three four.", " \n", "Word", "", "Five six."], minilm_tokenizer, causal=False)
    assert made.describe()["documents"] == 0
    assert len(list(made.batches())) == 1
    described = made.describe()
    assert described["documents"] == 5
    assert described["empty_documents"] == 2
    assert described["short_windows_dropped"] == 1
    assert described["pieces_exact"] is True
    next(made.batches())  # a reading that is broken off does not take the counts back
    assert made.describe() == described


def test_fingerprints_follow_everything_that_decides(minilm_tokenizer, stories_tokenizer):
    base = {"length": 16, "batch_size": 3, "tokens": 100, "bos": None, "sampling": Sampling()}
    variants = [
        {},
        {"length": 17},
        {"batch_size": 4},
        {"batch_size": None},
        {"tokens": 101},
        {"bos": False},
        {"sampling": Sampling(every=1)},
        {"stack": "encoder"},
    ]
    prints = [corpus([SENTENCES], minilm_tokenizer, **base | variant).fingerprint() for variant in variants]
    prints.append(corpus([SENTENCES], stories_tokenizer, **base).fingerprint())
    prints.append(corpus([SENTENCES + "!"], minilm_tokenizer, **base).fingerprint())
    assert len(set(prints)) == len(prints)
    assert corpus([SENTENCES], minilm_tokenizer, **base).fingerprint() == prints[0]
    made = corpus(iter([SENTENCES]), minilm_tokenizer, **base)
    assert made.fingerprint() == prints[0]
    assert list(made.batches())
    assert made.fingerprint() == prints[0]


def test_only_what_is_used_is_tokenized(stories_tokenizer):
    def endless():
        while True:
            yield SENTENCES * 1000

    start = time.perf_counter()
    made = corpus(endless(), stories_tokenizer, length=512, batch_size=4, tokens=20_000)
    assert sum(batch.tokens for batch in made.batches()) == 20_480
    assert made.estimated_tokens == 20_000
    assert time.perf_counter() - start < 5


ERRORS = [
    ([], {}, "texts is empty; give a file with text in it"),
    ([" \n\t", ""], {}, "texts holds only white space; give a file with text in it"),
    (["Word"], {}, "texts has no text of at least 2 tokens; give a longer one"),
    ([[1, -2]], {}, "texts[0] holds the token id -2; ids start at 0"),
    (
        [[1, 2], [1, 30_522]],
        {"vocabulary_size": 30_522},
        "texts[1] holds the token id 30522, but the model knows 30522 tokens; "
        "were they made with another tokenizer?",
    ),
    (["text"], {"length": 3}, "--length 3 leaves no room for text; at least 4 is needed here"),
]


@pytest.mark.parametrize(("items", "choices", "message"), ERRORS)
def test_errors(minilm_tokenizer, items, choices, message):
    with pytest.raises(UserError) as caught:
        list(corpus(items, minilm_tokenizer, causal=False, **choices).batches())
    assert str(caught.value) == message


def test_errors_without_a_tokenizer():
    with pytest.raises(
        UserError, match=r"^texts\[0\] is text, but this model comes without a tokenizer; give"
    ):
        list(corpus(["some text"]).batches())
    with pytest.raises(
        UserError, match=r"^--bos needs the model's tokenizer, and this model comes without one"
    ):
        corpus([[1, 2]], bos=True)
    assert corpus([[1, 2]]).context(next(corpus([[1, 2]]).batches()), 0, 0) is None
    assert corpus([[1, 2]]).token_text(1) is None


def test_context_marks_the_token_and_loses_nothing(any_tokenizer):
    ids = any_tokenizer("The old man went to the sea, and the sea was calm.\nThey had 12 boats.")["input_ids"]
    plain = any_tokenizer.decode(ids)
    for position in range(len(ids)):
        context = context_text(any_tokenizer, ids, position, reach=len(ids))
        before, rest = context.split("«")
        marked, after = rest.split("»")
        assert marked
        assert (before + marked + after).replace(r"\n", "").replace(" ", "") == "".join(plain.split())
        assert "\n" not in context


def test_context_of_a_word_and_of_padding(minilm_tokenizer):
    ids = minilm_tokenizer("The old man went to the sea, and the sea was calm.")["input_ids"]
    assert context_text(minilm_tokenizer, [*ids, -1, -1], 5, reach=2) == "man went «to» the sea"
    assert context_text(minilm_tokenizer, [*ids, -1, -1], 0, reach=3) == "«[CLS]» the old man"
    made = corpus(["The old man"], minilm_tokenizer, causal=False)
    (batch,) = made.batches()
    assert made.context(batch, 0, 2) == "[CLS] the «old» man [SEP]"
    assert made.token_text(int(batch.token_ids[0, 2])) == "old"
    assert made.token_text(-1) is None
