import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.corpus.batch import IMAGE_CLASSES
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


def test_what_was_gathered_against_records_goes_nowhere_else():
    random = np.random.default_rng(0)
    records = Extremes()
    records.update(observe([sequence(0, [[5.0], [-7.0]])], random))
    delta = records.fresh()
    delta.update(observe([sequence(1, [[6.0]])], random))
    with pytest.raises(RuntimeError, match="can only be merged into that one"):
        Extremes().merge(delta)
    with pytest.raises(RuntimeError, match="can only be merged into that one"):
        delta.state()
    delta.merge(records)  # with its records it is whole
    assert delta.value[0, 0] == -7.0
    records.merge(records.fresh())
    assert records.value[0, 0] == -7.0


def test_the_first_of_equal_magnitudes_wins_whatever_came_first():
    random = np.random.default_rng(0)
    later, earlier = sequence(8, [[3.0], [2.0]]), sequence(2, [[1.0], [-3.0], [3.0]])
    stat = Extremes()
    for number in (later, earlier):
        delta = stat.fresh()
        delta.update(observe([number], random))
        stat.merge(delta)
    assert (stat.value[0, 0].item(), stat.sequence[0, 0].item(), stat.position[0, 0].item()) == (-3.0, 2, 1)


def test_positions_may_be_of_more_classes_than_tokens():
    random = np.random.default_rng(0)
    stat = Extremes()
    for number, value in ((0, 3.0), (1, -4.0)):
        seen = observe([sequence(number, [[value]])], random)
        seen.batch.class_names = IMAGE_CLASSES
        seen.batch.classes.fill_(len(IMAGE_CLASSES) - 1)
        delta = stat.fresh()
        delta.update(seen)
        stat.merge(delta)
    assert stat.value.tolist() == [[0.0]] * 5 + [[-4.0]]
    loaded = Extremes()
    loaded.load_state(stat.state())
    loaded.merge(stat)
    assert loaded.value.tolist() == stat.value.tolist()
