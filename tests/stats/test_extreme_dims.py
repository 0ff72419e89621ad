import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.extreme_dims import ExtremeDims
from tests.stats.sequences_of import check_round_trip, corpora, gathered

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(sequences, seed):
    values = np.concatenate([sequence.values[sequence.used] for sequence in sequences])
    width = values.shape[1]
    for stat in gathered(ExtremeDims(), sequences, seed):
        if len(values):
            np.testing.assert_array_equal(stat.argmax, np.bincount(values.argmax(1), minlength=width))
            np.testing.assert_array_equal(stat.argmin, np.bincount(values.argmin(1), minlength=width))
        else:
            assert not stat.argmax.sum()


@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(ExtremeDims(), sequences, seed)
