"""Both ways of reading a tensor give the same tables, which are those of a direct computation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.corpus.token_order import TokenOrder
from outlierscope.stats import compiled as compiling
from outlierscope.stats.reading import read
from outlierscope.stats.reading_cpu import read_on_cpu
from outlierscope.stats.reading_plan import plan_reading
from outlierscope.stats.reading_torch import read_with_torch
from outlierscope.stats.threads import share_out


def order_of(sequences, length, seed, padding):
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(sequences, length, generator=generator) >= padding
    classes = torch.randint(0, 5, (sequences, length), generator=generator).to(torch.uint8)
    return TokenOrder.of(real, classes)


@settings(deadline=None, max_examples=60)
@given(
    sequences=st.integers(1, 6),
    length=st.integers(1, 150),
    dims=st.sampled_from([1, 5, 8, 33, 512, 700]),
    padding=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_compiled_loops_and_segment_reductions_agree(sequences, length, dims, padding, seed):
    order = order_of(sequences, length, seed, padding)
    flat = torch.randn(sequences * length, dims, generator=torch.Generator().manual_seed(seed))
    plan = plan_reading(order)
    shift = torch.linspace(-1, 1, dims)
    by_parts = read_on_cpu(flat.numpy(), order, plan, shift.numpy())
    by_segments = read_with_torch(flat, order, plan, shift)
    for name in ("slot_low", "slot_high", "token_absmax"):
        assert np.array_equal(getattr(by_parts, name), getattr(by_segments, name)), name
    scale = np.abs(by_segments.powers).max(initial=1.0)
    np.testing.assert_allclose(by_parts.powers, by_segments.powers, rtol=1e-4, atol=1e-5 * scale)


def test_tables_are_those_of_a_direct_computation():
    order = order_of(3, 40, seed=1, padding=0.2)
    flat = torch.randn(120, 9, generator=torch.Generator().manual_seed(1)) + 5
    reading = read(flat, order)
    plan, rows = reading.plan, flat[order.rows].double().numpy()
    centred = rows - reading.shift.astype(np.float64)
    for sequence in range(3):
        own = centred[order.bounds[sequence] : order.bounds[sequence + 1]]
        for power in range(4):
            expected = (own ** (power + 1)).sum(0)
            np.testing.assert_allclose(reading.powers[power, sequence], expected, rtol=1e-4, atol=1e-4)
    for slot, start in enumerate(plan.slot_start[:-1]):
        own = rows[start : plan.slot_start[slot + 1]]
        np.testing.assert_array_equal(reading.slot_low[slot], own.min(0))
        np.testing.assert_array_equal(reading.slot_high[slot], own.max(0))
    np.testing.assert_array_equal(reading.token_absmax, np.abs(rows).max(1))


def test_slots_hold_one_sequence_and_class_each():
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(0, 5, (2, 30), generator=generator).to(torch.uint8)
    order = TokenOrder.of(torch.ones(2, 30, dtype=torch.bool), classes)
    plan = plan_reading(order)
    assert plan.owners == [0, 0, 1, 1]
    for slot, token_class in enumerate(plan.slot_class):
        rows = order.rows[plan.slot_start[slot] : plan.slot_start[slot + 1]]
        assert set(classes.flatten()[rows].tolist()) == {token_class}
        assert len(set((rows // 30).tolist())) == 1
    assert plan.slot_length.sum() == 60


def test_the_number_of_threads_does_not_matter(monkeypatch):
    order = order_of(5, 60, seed=3, padding=0.1)
    flat = torch.randn(300, 20, generator=torch.Generator().manual_seed(3)).numpy()
    tables = []
    for threads in (1, 4, 6):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        tables.append(read_on_cpu(flat, order, plan_reading(order), np.zeros(20, np.float32)))
    for other in tables[1:]:
        np.testing.assert_array_equal(other.powers, tables[0].powers)
        np.testing.assert_array_equal(other.slot_low, tables[0].slot_low)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def work(share):
        assert len(share) == 3
        if 3 in share:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        share_out(work, 6)


def test_a_folder_that_cannot_be_written_to_costs_only_the_cache(monkeypatch):
    calls = []

    def njit(loop, **options):
        calls.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return loop

    monkeypatch.setattr(compiling.numba, "njit", njit)
    assert compiling.compiled(len) is len
    assert calls == [True, False]
