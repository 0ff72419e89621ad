"""Tokenizers of four kinds: WordPiece, byte-fallback and byte-level BPE, and one without a space before the text."""

from __future__ import annotations

import json

import pytest

SENTENCES = (
    "The old man went to the sea, and the sea was calm. He said: what a day!\n"
    "They had 12 boats and 3 nets; the others stayed at home?\n\nNobody knew why... "
    "In the harbour a boy was waiting for the boats with a lamp in his hand.\n"
) * 3


@pytest.fixture(scope="session")
def minilm_tokenizer(minilm_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder)


@pytest.fixture(scope="session")
def stories_tokenizer(shared_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_model("stories260k"))


@pytest.fixture(scope="session")
def byte_level_tokenizer():
    """As GPT-2's: byte-level BPE that adds no BOS by itself and has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCES], trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


@pytest.fixture(scope="session")
def gemma_like_tokenizer():
    """As Gemma's: spaces become "▁", nothing goes before the text but <bos>, unknown bytes as <0x0A>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCES], trainer)
    # The trainer knows no other way to reserve the bytes, but in real vocabularies they are ordinary tokens.
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [entry for entry in saved["added_tokens"] if entry["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", special.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


TOKENIZERS = ("minilm_tokenizer", "stories_tokenizer", "byte_level_tokenizer", "gemma_like_tokenizer")


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request):
    return request.getfixturevalue(request.param)
