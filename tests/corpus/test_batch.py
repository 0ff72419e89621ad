from __future__ import annotations

import torch

from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.corpus.text import TextCorpus


def test_halves_hold_the_same_sequences_under_the_same_numbers():
    source = GivenDocuments([[5, 6, 7], [8, 9], [1, 2, 3, 4]])
    (whole,) = TextCorpus(source, None, stack="decoder", causal=True, length=8, batch_size=4).batches()
    halves = whole.split()
    assert [len(half.sequence_ids) for half in halves] == [1, 2]
    for name in ("token_ids", "real", "classes", "sequence_ids"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))
    for key, value in whole.inputs.items():
        assert torch.equal(torch.cat([half.inputs[key] for half in halves]), value)
    assert [name for half in halves for name in half.documents] == whole.documents
    assert {half.number for half in halves} == {whole.number}
    assert sum(half.tokens for half in halves) == whole.tokens


def test_rows_are_the_real_positions():
    source = GivenDocuments([[5, 6, 7], [8, 9]])
    (batch,) = TextCorpus(source, None, stack="decoder", causal=True, length=8, batch_size=4).batches()
    assert [batch.rows(row) for row in range(2)] == [slice(0, 3), slice(0, 2)]
