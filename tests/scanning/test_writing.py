from __future__ import annotations

from transformers import T5Config, T5ForConditionalGeneration

from outlierscope.scanning.writing import _works


def test_a_shift_without_a_start_token_does_not_work():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    without = T5ForConditionalGeneration(T5Config(**sizes))
    without.config.decoder_start_token_id = None
    assert not _works(without.prepare_decoder_input_ids_from_labels)
    del without.config.decoder_start_token_id
    assert not _works(without.prepare_decoder_input_ids_from_labels)
    given = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    assert _works(given.prepare_decoder_input_ids_from_labels)
