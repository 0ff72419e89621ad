import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.magnitudes import FIGURES, TopMagnitudes
from tests.stats.sequences_of import check_round_trip, corpora, gathered

seeds = st.integers(0, 2**32 - 1)


def top(magnitudes, number):
    return np.sort(magnitudes)[::-1][min(number, len(magnitudes)) - 1]


@settings(max_examples=50, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(sequences, seed):
    tensors = [np.abs(sequence.values[sequence.used]).astype(np.float64).ravel() for sequence in sequences]
    figures = np.array(
        [
            [
                *(top(tensor, number) for number in (1, 2, 3)),
                np.sort(tensor)[-(-9999 * len(tensor) // 10000) - 1],
                np.median(tensor),
                tensor.mean(),
            ]
            for tensor in tensors
            if len(tensor)
        ]
    )
    for stat in gathered(TopMagnitudes(), sequences, seed):
        assert stat.count == len(figures)
        for number, name in enumerate(FIGURES):
            if len(figures):
                column = figures[:, number]
                assert stat.mean_of(name) == pytest.approx(column.mean(), rel=1e-6)
                assert stat.maximum_of(name) == pytest.approx(column.max(), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(TopMagnitudes(), sequences, seed)
