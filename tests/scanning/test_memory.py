"""Memory is estimated before it is asked for."""

import pytest

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.scanning import memory
from outlierscope.scanning.memory import activation_bytes
from tests.model.tiny import tiny_llama


def test_estimate_counts_what_a_block_makes():
    # 6 residuals of 32; q 32, k and v 16 each, o 32, gate and up 96 each, down 32; float32.
    width = 6 * 32 + 32 + 16 + 16 + 32 + 96 + 96 + 32
    assert activation_bytes(osc.wrap(tiny_llama()), sequences=2, length=10) == 2 * 10 * width * 4


def test_a_batch_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    with pytest.raises(
        UserError,
        match=r"^a batch of 4 x 64 tokens needs about 0\.0 GiB of memory, 0\.0 GiB are available; "
        r"try --batch 2 or a smaller --length$",
    ):
        osc.scan(
            osc.wrap(tiny_llama()), [list(range(64))] * 8, length=64, batch_size=4, out=tmp_path / "scan"
        )
    assert not list(tmp_path.iterdir())


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert osc.scan(osc.wrap(tiny_llama()), [list(range(64))], length=64).evidence.corpus.tokens == 64
