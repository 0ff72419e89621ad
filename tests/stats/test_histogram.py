import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.histogram import LogHistogram, TokenAbsmax, quantile_of
from tests.stats.sequences_of import Sequence, check_round_trip, corpora, gathered, observe

seeds = st.integers(0, 2**32 - 1)


def direct(sequences, by_token):
    """Histogram by the bit pattern, with numpy."""
    values = np.concatenate([np.abs(sequence.values[sequence.used]) for sequence in sequences])
    values = values.max(1) if by_token else values.ravel()
    return np.bincount(values.view(np.uint32) >> 16, minlength=32768)


@pytest.mark.parametrize("make", [LogHistogram, TokenAbsmax])
@settings(max_examples=40, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(make, sequences, seed):
    expected = direct(sequences, make is TokenAbsmax)
    for stat in gathered(make(), sequences, seed):
        np.testing.assert_array_equal(stat.counts, expected)


@pytest.mark.parametrize("make", [LogHistogram, TokenAbsmax])
@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(make, sequences, seed):
    check_round_trip(make(), sequences, seed)


def test_quantiles_to_within_a_bin():
    random = np.random.default_rng(1)
    values = (random.standard_normal((500, 40)) * np.exp(random.standard_normal(40) * 3)).astype(np.float32)
    stat = LogHistogram()
    stat.update(observe([Sequence(0, values, np.zeros(500, int), np.zeros(500, np.uint8))], random))
    ordered = np.sort(np.abs(values).ravel())
    for q in (0.0, 0.01, 0.5, 0.99, 0.9999, 1.0):
        exact = ordered[max(math.ceil(q * len(ordered)), 1) - 1]
        assert stat.quantile(q) == pytest.approx(exact, rel=0.008)
    assert stat.total == values.size


def test_edges_are_the_smallest_magnitudes_of_their_bins():
    edges = LogHistogram().edges()
    assert edges[0] == 0
    assert edges[16256] == 1.0
    assert (edges[1:32641].diff() > 0).all()


def test_waiting_tokens_are_counted_when_there_are_many():
    random = np.random.default_rng(2)
    values = random.standard_normal((40_000, 2)).astype(np.float32)
    rows = Sequence(0, values, np.zeros(40_000, int), np.zeros(40_000, np.uint8))
    stat = TokenAbsmax()
    for _ in range(2):
        stat.update(observe([rows], random))
    assert not stat._waiting
    assert stat.total == 80_000


def test_quantiles_of_nothing_and_of_nonsense():
    assert math.isnan(quantile_of(torch.zeros(32768, dtype=torch.int64), 0.5))
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        quantile_of(torch.ones(32768, dtype=torch.int64), 1.5)
