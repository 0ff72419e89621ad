import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.exceedances import Exceedances
from tests.stats.sequences_of import check_round_trip, corpora, gathered

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("threshold", [0.5, 2.0, 6.0])
@settings(max_examples=30, deadline=None)
@given(corpora(dims=st.sampled_from([1, 3, 40])), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(threshold, sequences, seed):
    values = np.concatenate([sequence.values[sequence.used] for sequence in sequences])
    for stat in gathered(Exceedances(threshold), sequences, seed):
        np.testing.assert_array_equal(stat.by_dim, (np.abs(values) >= threshold).sum(0))
        assert stat.tokens == len(values)


@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(Exceedances(1.0), sequences, seed)


def test_the_name_carries_the_threshold():
    assert Exceedances().name == "exceedances_6"
    assert Exceedances(2.5).name == "exceedances_2.5"
    assert Exceedances(2.5).fresh().threshold == 2.5
