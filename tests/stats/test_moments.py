import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.moments import Moments
from tests.stats.sequences_of import Sequence, check_round_trip, corpora, gathered, observe

seeds = st.integers(0, 2**32 - 1)


def direct(sequences):
    """Moments of the concatenated tokens, in float64 (long double for the mean)."""
    values = np.concatenate([sequence.values[sequence.used] for sequence in sequences]).astype(np.float64)
    mean = values.astype(np.longdouble).mean(0) if len(values) else np.zeros(values.shape[1])
    deviation = (values - mean).astype(np.float64)
    return (
        values,
        mean.astype(np.float64),
        *((deviation**power).sum(0) for power in (2, 3, 4)),
        np.abs(deviation),
    )


@settings(max_examples=80, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(sequences, seed):
    values, mean, m2, m3, m4, size = direct(sequences)
    for stat in gathered(Moments(), sequences, seed):
        assert stat.count == len(values)
        assert stat.nonfinite == sum(int((~sequence.used).sum()) for sequence in sequences)
        if not len(values):
            continue
        np.testing.assert_array_equal(stat.minimum, values.min(0))
        np.testing.assert_array_equal(stat.maximum, values.max(0))
        scale = np.sqrt(m2 / len(values))
        np.testing.assert_array_less(
            np.abs(stat.mean - mean), 1e-6 * scale + 1e-12 * np.abs(values).max(0) + 1e-300
        )
        for mine, true, power in ((stat.m2, m2, 2), (stat.m3, m3, 3), (stat.m4, m4, 4)):
            allowed = 5e-6 * (size**power).sum(0) + 1e-30 * np.abs(values).max(0) ** power + 1e-300
            np.testing.assert_array_less(np.abs(mine.numpy() - true), allowed)


@settings(max_examples=60, deadline=None)
@given(corpora(kinds=("huge",), nonfinite=False), seeds)
def test_merging_loses_nothing(sequences, seed):
    """Sequences of huge values are digested in float64, so that only the merging is on trial: 1e-9."""
    values, mean, m2, m3, m4, size = direct(sequences)
    for stat in gathered(Moments(), sequences, seed):
        np.testing.assert_allclose(stat.mean, mean, rtol=0, atol=1e-9 * np.abs(values).max())
        np.testing.assert_allclose(stat.m2, m2, rtol=1e-9)
        np.testing.assert_allclose(stat.m3, m3, rtol=0, atol=1e-9 * (size**3).sum(0).max())
        np.testing.assert_allclose(stat.m4, m4, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(Moments(), sequences, seed)


def test_figures_of_a_normal_sample():
    random = np.random.default_rng(0)
    values = (random.standard_normal((4000, 3)) * [1, 2, 5] + [0, 1, -3]).astype(np.float32)
    rows = [Sequence(0, values, np.zeros(4000, int), np.zeros(4000, np.uint8))]
    stat = Moments()
    stat.update(observe(rows, random))
    exact = values.astype(np.float64)
    centred = exact - exact.mean(0)
    np.testing.assert_allclose(stat.variance(), exact.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(stat.std(ddof=0), exact.std(0), rtol=1e-6)
    np.testing.assert_allclose(stat.skewness(), (centred**3).mean(0) / exact.std(0) ** 3, atol=1e-5)
    np.testing.assert_allclose(stat.kurtosis(), (centred**4).mean(0) / exact.var(0) ** 2, rtol=1e-5)
    np.testing.assert_allclose(stat.rms(), np.sqrt((exact**2).mean(0)), rtol=1e-6)
    np.testing.assert_array_equal(stat.absmax(), np.abs(values).max(0))
    pooled, centred = stat.pooled(), exact - exact.mean()
    assert pooled.count == exact.size
    assert pooled.mean == pytest.approx(exact.mean(), rel=1e-6)
    assert pooled.variance == pytest.approx(exact.var(ddof=1), rel=1e-6)
    assert pooled.skewness == pytest.approx((centred**3).mean() / exact.std() ** 3, rel=1e-4)
    assert pooled.kurtosis == pytest.approx((centred**4).mean() / exact.var() ** 2, rel=1e-5)
    assert pooled.absmax == np.abs(values).max()


@pytest.mark.parametrize("dims", [1, 3])
def test_batches_of_other_dims_are_refused(dims):
    random = np.random.default_rng(6)

    def seen(dims):
        values = random.standard_normal((9, dims)).astype(np.float32)
        return observe([Sequence(0, values, np.arange(9), np.zeros(9, np.uint8))], random)

    stat, other = Moments(), Moments()
    stat.update(seen(dims))
    other.update(seen(2))
    words = f"moments of {dims} dims cannot take in those of 2"
    with pytest.raises(ValueError, match=words):
        stat.update(seen(2))
    with pytest.raises(ValueError, match=words):
        stat.merge(other)


def test_nothing_seen():
    stat = Moments()
    assert stat.pooled().count == 0
    assert torch.isnan(stat.variance()).all()
