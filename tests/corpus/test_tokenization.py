from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.corpus.tokenization import SpecialTokens, chunks, encode, space_rule, special_tokens
from outlierscope.errors import UserError
from tests.corpus.conftest import SENTENCES

CASES = [
    # tokenizer, causal, bos, prefix, suffix
    ("minilm_tokenizer", False, None, ["[CLS]"], ["[SEP]"]),
    ("minilm_tokenizer", False, True, ["[CLS]"], ["[SEP]"]),
    ("minilm_tokenizer", False, False, [], []),
    ("minilm_tokenizer", True, None, ["[CLS]"], []),
    ("stories_tokenizer", True, None, ["<s>"], []),
    ("stories_tokenizer", True, False, [], []),
    ("byte_level_tokenizer", True, None, [], []),
    ("byte_level_tokenizer", True, True, ["<|endoftext|>"], []),
    ("gemma_like_tokenizer", True, None, ["<bos>"], []),
    ("gemma_like_tokenizer", True, True, ["<bos>"], []),
    ("gemma_like_tokenizer", True, False, [], []),
]


@pytest.mark.parametrize(("name", "causal", "bos", "prefix", "suffix"), CASES)
def test_special_tokens_are_those_that_the_tokenizer_adds(request, name, causal, bos, prefix, suffix):
    tokenizer = request.getfixturevalue(name)
    found = special_tokens(tokenizer, causal=causal, bos=bos)
    assert tokenizer.convert_ids_to_tokens(list(found.prefix)) == prefix
    assert tokenizer.convert_ids_to_tokens(list(found.suffix)) == suffix
    assert found.count == len(prefix) + len(suffix)


def test_bos_is_refused_where_there_is_none():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"The": 0, "old": 1, "<unk>": 2}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert special_tokens(tokenizer, causal=True, bos=None) == SpecialTokens((), ())
    with pytest.raises(UserError, match=r"^--bos: this model's tokenizer has no BOS token; leave the option"):
        special_tokens(tokenizer, causal=True, bos=True)


def test_space_rules_differ(request):
    rules = {
        name: space_rule(request.getfixturevalue(name))
        for name in ("minilm_tokenizer", "stories_tokenizer", "byte_level_tokenizer", "gemma_like_tokenizer")
    }
    assert rules["stories_tokenizer"] == "dropped"  # it puts a space before every text
    assert rules["byte_level_tokenizer"] == "with_right"
    assert rules["gemma_like_tokenizer"] == "with_right"
    assert rules["minilm_tokenizer"] is not None  # white space means nothing to it: any rule will do


@pytest.mark.parametrize("size", [20, 97, 500])
def test_pieces_have_the_tokens_of_the_whole(any_tokenizer, size):
    text = SENTENCES * 3
    pieces = list(chunks([text], space_rule(any_tokenizer), size))
    assert len(pieces) > 1
    assert [token for piece in pieces for token in encode(any_tokenizer, piece)] == encode(
        any_tokenizer, text
    )


def test_pieces_of_a_book_have_its_tokens(any_tokenizer, shared_data):
    text = shared_data("text", "darwin.txt").read_text(encoding="utf-8")[:100_000]
    pieces = chunks([text], space_rule(any_tokenizer))
    assert [token for piece in pieces for token in encode(any_tokenizer, piece)] == encode(
        any_tokenizer, text
    )


@given(
    text=st.text(alphabet="ab ,\n字é", max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    size=st.integers(1, 30),
)
@settings(max_examples=200, deadline=None)
def test_pieces_do_not_depend_on_the_blocks(text, cuts, size):
    edges = [0, *sorted(cuts), len(text)]
    blocks = [text[start:stop] for start, stop in pairwise(edges)]
    whole = list(chunks([text], "with_right", size))
    assert list(chunks(blocks, "with_right", size)) == whole
    assert "".join(whole) == text
    assert all(0 < len(piece) <= 2 * size for piece in whole)


def test_a_text_without_spaces_is_cut_too():
    assert list(map(len, chunks(["x" * 50], "with_right", 10))) == [20, 20, 10]


def test_encode_neither_truncates_nor_pads(minilm_tokenizer, caplog):
    assert len(encode(minilm_tokenizer, "word " * 3000)) == 3000
    assert encode(minilm_tokenizer, "") == []
    assert not caplog.records
