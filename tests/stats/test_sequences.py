import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.sequences import SequenceSummaries
from tests.stats.sequences_of import check_round_trip, corpora, gathered

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(sequences, seed):
    tensors = [sequence.values[sequence.used].astype(np.float64) for sequence in sequences]
    tensors = [tensor for tensor in tensors if len(tensor)]
    norms = np.array([np.abs(tensor).max() for tensor in tensors])
    kurtoses = np.array(
        [
            ((tensor - tensor.mean()) ** 4).mean() / tensor.std(ddof=1) ** 4
            for tensor in tensors
            if np.ptp(tensor) > 0
        ]
    )
    for stat in gathered(SequenceSummaries(), sequences, seed):
        assert (stat.count, stat.kurtosis_count) == (len(norms), len(kurtoses))
        if len(norms):
            assert stat.inf_norm_mean == pytest.approx(norms.mean(), rel=1e-9)
            assert stat.inf_norm_m2 == pytest.approx(
                ((norms - norms.mean()) ** 2).sum(), rel=1e-9, abs=1e-9 * norms.max() ** 2
            )
            assert stat.inf_norm_max == norms.max()
        if len(kurtoses):
            assert stat.kurtosis_mean == pytest.approx(kurtoses.mean(), rel=1e-4)
            assert stat.kurtosis_m2 == pytest.approx(
                ((kurtoses - kurtoses.mean()) ** 2).sum(), rel=1e-3, abs=1e-3
            )
        if len(norms) > 1:
            assert stat.inf_norm_std() == pytest.approx(norms.std(ddof=1), rel=1e-8, abs=1e-8 * norms.max())


@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(SequenceSummaries(), sequences, seed)
