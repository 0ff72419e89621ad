import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.extremes import Extremes
from tests.stats.sequences_of import Sequence, check_round_trip, corpora, gathered, observe, used_rows

seeds = st.integers(0, 2**32 - 1)


def direct(sequences):
    """{(class, dim): (value, sequence, position, token)} by looking at one value after the other."""
    best = {}
    for number, position, token, token_class, values in used_rows(sequences):
        for dim, value in enumerate(values):
            rank = (-abs(value), number, position)
            if (token_class, dim) not in best or rank < best[token_class, dim][0]:
                best[token_class, dim] = rank, (value, number, position, token)
    return {cell: found for cell, (_, found) in best.items()}


@settings(max_examples=80, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(sequences, seed):
    expected = direct(sequences)
    bad = [
        (sequence.number, position, dim)
        for sequence in sequences
        for position, dim in np.argwhere(~np.isfinite(sequence.values)).tolist()
    ]
    for stat in gathered(Extremes(), sequences, seed):
        assert stat.nonfinite_located.tolist() == [list(place) for place in sorted(bad)[:32]]
        for (token_class, dim), place in expected.items():
            tables = (stat.value, stat.sequence, stat.position, stat.token)
            assert tuple(table[token_class, dim].item() for table in tables) == place
        assert int((stat.sequence >= 0).sum()) == len(expected)
        assert not len(stat.value) or torch.equal(stat.sequence < 0, stat.token < 0)


@settings(max_examples=40, deadline=None)
@given(corpora(), seeds)
def test_round_trip(sequences, seed):
    check_round_trip(Extremes(), sequences, seed)


def sequence(number, values):
    values = np.array(values, np.float32)
    return Sequence(number, values, np.arange(len(values)), np.zeros(len(values), np.uint8))


def test_the_first_of_equal_magnitudes_wins_whatever_came_first():
    random = np.random.default_rng(0)
    later, earlier = sequence(8, [[3.0], [2.0]]), sequence(2, [[1.0], [-3.0], [3.0]])
    stat = Extremes()
    for number in (later, earlier):
        stat.update(observe([number], random))
    assert (stat.value[0, 0].item(), stat.sequence[0, 0].item(), stat.position[0, 0].item()) == (-3.0, 2, 1)


def of_seven_classes(sequences, random):
    seen = observe(sequences, random)
    seen.batch.class_names = tuple("abcdefg")
    return seen


@settings(max_examples=40, deadline=None)
@given(corpora(nonfinite=False), seeds)
def test_there_may_be_any_number_of_classes(sequences, seed):
    random = np.random.default_rng(seed)
    for part in sequences:
        part.classes[:] = random.integers(0, 7, len(part.classes))
    expected, width = direct(sequences), sequences[0].values.shape[1]
    streamed, merged = Extremes(), Extremes()
    for part in sequences:
        streamed.update(of_seven_classes([part], random))
        alone = Extremes()
        alone.update(of_seven_classes([part], random))
        merged.merge(alone)
        resumed = Extremes()
        resumed.load_state(streamed.state())
        streamed = resumed
    for stat in (streamed, merged):
        assert stat.value.shape == (7, width)
        for (token_class, dim), place in expected.items():
            tables = (stat.value, stat.sequence, stat.position, stat.token)
            assert tuple(table[token_class, dim].item() for table in tables) == place
        assert int((stat.sequence >= 0).sum()) == len(expected)


def test_batches_of_other_classes_or_dims_are_refused():
    random = np.random.default_rng(0)
    seven = Extremes()
    seven.update(of_seven_classes([sequence(0, [[3.0]])], random))
    words = "extremes of 7 token classes and 1 dims cannot take in those of 5 classes and {} dims"
    for values, dims in (([[4.0]], 1), ([[4.0, 5.0]], 2)):
        seen = observe([sequence(1, values)], random)
        with pytest.raises(ValueError, match=words.format(dims)):
            seven.update(seen)
        five = Extremes()
        five.update(seen)
        with pytest.raises(ValueError, match=words.format(dims)):
            seven.merge(five)
    assert seven.value[0, 0] == 3.0
