from __future__ import annotations

import pytest
import torch

from outlierscope.corpus.batch import TEXT_CLASSES
from outlierscope.corpus.token_classes import class_table, text_classes, vocabulary_pieces
from outlierscope.corpus.tokenization import chunks, encode, space_rule, special_tokens
from tests.corpus.conftest import SENTENCES

# Pieces as each vocabulary writes them, chosen by hand, and the class that the definitions give them.
EXPECTED = {
    "minilm_tokenizer": {
        "special": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "strong_delimiter": [".", ",", ";", ":", "!", "?", "...", "。"],
        "weak_semantic": ["the", "a", "an", "and", "or", "of", "in", "with", "7", "1999", "x"],
        "other": ["house", "##ing", "##of", "##a", "(", '"', "-", "[unused1]", "人", "not", "is"],
    },
    "stories_tokenizer": {
        "special": ["<unk>", "<s>", "</s>"],
        "strong_delimiter": ["<0x0A>", "<0x2E>", ".", ",", "!", "?"],
        "weak_semantic": ["▁", "▁a", "▁the", "▁and", "▁to", "▁in", "<0x20>", "<0x41>", "<0x37>"],
        "other": ["ing", "a", "e", "in", "▁was", "<0xE2>", "<0x22>"],
    },
    "byte_level_tokenizer": {
        "special": ["<|endoftext|>"],
        "strong_delimiter": ["Ċ", ".", ",", "!", ":", ";", "?"],
        "weak_semantic": ["Ġ", "ĉ", "Ġthe", "Ġa", "1", "9", "A", "Ġand", "The"],
        "other": ["a", "the", "z", "Ã", '"', "Ġboats", "Ġw" + "as"],
    },
    "gemma_like_tokenizer": {
        "special": ["<pad>", "<eos>", "<bos>", "<unk>"],
        "strong_delimiter": ["<0x0A>", "\n", ".", ",", "!"],
        "weak_semantic": ["▁", "▁the", "▁a", "1", "2", "▁and", "T", "<0x09>"],
        "other": ["a", "e", "▁boats", "<0xFF>"],
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_classes_of_known_pieces(request, name):
    tokenizer = request.getfixturevalue(name)
    table = class_table(tokenizer, vocabulary_pieces(tokenizer))
    vocabulary = tokenizer.get_vocab()
    wrong = {}
    met = 0
    for expected, pieces in EXPECTED[name].items():
        for piece in pieces:
            if piece in vocabulary:
                met += 1
                found = TEXT_CLASSES[int(table[vocabulary[piece]])]
                if found != expected:
                    wrong[piece] = (found, expected)
    assert not wrong
    assert met >= 0.75 * sum(map(len, EXPECTED[name].values()))


def test_every_token_has_a_class_and_none_is_initial(any_tokenizer):
    table = class_table(any_tokenizer, vocabulary_pieces(any_tokenizer))
    assert table.dtype == torch.uint8
    assert len(table) == max(any_tokenizer.get_vocab().values()) + 1
    counts = torch.bincount(table.long(), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()


def test_the_first_position_is_initial_whatever_stands_there():
    table = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    ids = torch.tensor([[0, 0, 1, 2, 3], [3, 3, 99, -1, -1]])
    assert text_classes(ids, table).tolist() == [[0, 1, 2, 3, 4], [0, 4, 4, 4, 4]]


def test_words_and_delimiters_in_running_text(minilm_tokenizer):
    ids = minilm_tokenizer("The cat, which sat on a mat in 1999, slept.")["input_ids"]
    table = class_table(minilm_tokenizer, vocabulary_pieces(minilm_tokenizer))
    classes = text_classes(torch.tensor([ids]), table)[0].tolist()
    named = [
        (piece, TEXT_CLASSES[kind])
        for piece, kind in zip(minilm_tokenizer.convert_ids_to_tokens(ids), classes, strict=True)
    ]
    assert [piece for piece, kind in named if kind == "weak_semantic"] == ["the", "on", "a", "in", "1999"]
    assert [piece for piece, kind in named if kind == "strong_delimiter"] == [",", ",", "."]
    assert named[0] == ("[CLS]", "initial")
    assert named[-1] == ("[SEP]", "special")


@pytest.mark.slow
def test_a_real_vocabulary_of_262144_tokens(gemma_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma_folder)
    names = vocabulary_pieces(tokenizer)
    table = class_table(tokenizer, names)
    vocabulary = tokenizer.get_vocab()
    expected = {
        "special": ["<bos>", "<eos>", "<pad>", "<unk>"],
        "strong_delimiter": ["\n", "\n\n", ".", ",", ";", ":", "!", "?", "...", ").", "<0x0A>"],
        "weak_semantic": ["▁▁", "▁the", "The", "▁of", "▁In", "▁a", "7", "▁and", "A"],
        "other": ["the", "of", "▁house", "s", "(", "▁was", "<0xE2>", "字"],
    }
    found = {
        kind: [piece for piece in pieces if TEXT_CLASSES[int(table[vocabulary[piece]])] == kind]
        for kind, pieces in expected.items()
    }
    assert found == expected
    assert special_tokens(tokenizer, causal=True, bos=None).prefix == (tokenizer.bos_token_id,)
    pieces = list(chunks([SENTENCES * 5], space_rule(tokenizer), 200))
    assert len(pieces) > 10
    joined = [token for piece in pieces for token in encode(tokenizer, piece)]
    assert joined == encode(tokenizer, SENTENCES * 5)
