from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from outlierscope.model.sites import Site
from outlierscope.stats.events import Events
from outlierscope.stats.flags import EVENTS_PER_SEQUENCE, Flags
from outlierscope.stats.observation import Observation
from outlierscope.stats.positions import bucket_names, bucket_of, position_bucket
from outlierscope.stats.rules import Massive, SixSigma, Systematic, least_mean_abs
from tests.stats.sequences_of import Sequence, check_round_trip, corpora, gathered, make_batch, observe

seeds = st.integers(0, 2**32 - 1)
RULES = [SixSigma(1.5), SixSigma(3.0), Massive(2.0, 3.0), Massive(), Systematic(2.0), Systematic(1000.0)]


def scores(rule, values):
    """[T, d] the rule's figure over its threshold (above 1: an event), and the figure itself; plain numpy."""
    magnitudes = np.abs(values)
    with np.errstate(all="ignore"):
        if isinstance(rule, SixSigma):
            score = (
                np.abs(values - values.mean()) / values.std(ddof=1) if values.size > 1 else values * np.nan
            )
            if not np.ptp(values):
                score = score * np.nan
            return score / rule.sigma, score
        if isinstance(rule, Massive):
            score = magnitudes / np.median(magnitudes)
            return np.minimum(score / rule.ratio, magnitudes / rule.absolute), score
        score = magnitudes / magnitudes.mean()
        first = np.arange(values.shape[1]) == magnitudes.argmax(1)[:, None]
        return np.where(first, score / rule.ratio, 0), score


def direct(rule, sequences, allow=assume):
    """Rows (sequence, position, dim, token id, class, value, score) of all events."""
    events = []
    for sequence in sequences:
        values = sequence.values[sequence.used].astype(np.float64)
        if not len(values):
            continue
        over, score = scores(rule, values)
        # What is at the very threshold in float64 may be on either side of it in float32.
        allow(not ((over > 1 - 1e-4) & (over < 1 + 1e-4)).any())
        places = np.flatnonzero(sequence.used)
        for row, dim in np.argwhere(over > 1):
            place = places[row]
            identity = (sequence.number, place, dim, sequence.token_ids[place], sequence.classes[place])
            events.append((*identity, sequence.values[place, dim], score[row, dim]))
    return events


def check(stat, events, sequences):
    width = sequences[0].values.shape[1]
    used = [sequence for sequence in sequences if sequence.used.any()]
    assert stat.sequences == len(used)
    assert stat.tokens == sum(int(sequence.used.sum()) for sequence in sequences)
    assert stat.count == len(events)
    assert stat.sequences_with_any == len({event[0] for event in events})
    assert stat.tokens_with_any == len({event[:2] for event in events})
    by_dim_class = np.zeros((width, 5), int)
    positions = np.zeros(len(bucket_names()), int)
    pairs = defaultdict(list)
    for event in events:
        by_dim_class[event[2], event[4]] += 1
        positions[event[1]] += 1
        pairs[event[2], event[3]].append(event)
    np.testing.assert_array_equal(stat.by_dim_class, by_dim_class)
    np.testing.assert_array_equal(stat.by_dim, by_dim_class.sum(1))
    np.testing.assert_array_equal(stat.positions, positions)
    in_sequence = [dim for _, dim in {(event[0], event[2]) for event in events}]
    np.testing.assert_array_equal(stat.sequences_by_dim, np.bincount(in_sequence, minlength=width)[:width])
    table = stat.pairs
    assert list(zip(table.dim.tolist(), table.token_id.tolist(), strict=True)) == sorted(pairs)
    for row, cell in enumerate(sorted(pairs)):
        strongest = min(pairs[cell], key=lambda event: (-abs(event[5]), event[0], event[1]))
        assert table.count[row] == len(pairs[cell])
        assert (table.sequence[row], table.position[row], table.value[row]) == (*strongest[:2], strongest[5])
        assert table.score[row] == pytest.approx(strongest[6], rel=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@settings(max_examples=40, deadline=None)
@given(corpora(), seeds)
def test_any_way_of_gathering_equals_a_direct_computation(rule, sequences, seed):
    events = direct(rule, sequences)
    for stat in gathered(Events(rule), sequences, seed):
        check(stat, events, sequences)
    for stat in gathered(Flags(rule), sequences, seed):
        assert stat.rows.tolist() == [list(map(int, event[:3])) for event in events]
        assert stat.sequences.tolist() == [sequence.number for sequence in sequences if sequence.used.any()]


@pytest.mark.parametrize("make", [Events, Flags])
@settings(max_examples=15, deadline=None)
@given(corpora(), seeds)
def test_round_trip(make, sequences, seed):
    check_round_trip(make(SixSigma(1.5)), sequences, seed)


@settings(max_examples=40, deadline=None)
@given(corpora(), seeds)
def test_the_bound_of_the_mean_magnitude_holds(sequences, seed):
    seen = observe(sequences, np.random.default_rng(seed))
    for row, (sequence, bound) in enumerate(zip(sequences, least_mean_abs(seen).tolist(), strict=True)):
        if sequence.used.any():
            mean = np.abs(sequence.values[sequence.used].astype(np.float64)).mean()
            assert bound <= mean
            assert seen.mean_abs(row) == pytest.approx(mean, rel=1e-6)


def test_names_and_dearness_come_from_the_rule():
    assert [Events(rule).name for rule in (SixSigma(), Massive(), Systematic())] == [
        "six_sigma_6",
        "massive_100_1000_0.5",
        "systematic_1000",
    ]
    assert [Events(rule).dear for rule in (SixSigma(), Massive(), Systematic())] == [False, True, False]
    assert Flags(SixSigma()).name == "flags_six_sigma_6"


def layer(values, layer_index, scratch):
    """One sequence of one token class at one layer."""
    values = np.array(values, np.float32)
    rows = Sequence(0, values, np.zeros(len(values), int), np.zeros(len(values), np.uint8))
    tensor, batch = make_batch([rows], np.random.default_rng(0))
    return Observation(Site("decoder", layer_index, "resid_post"), tensor, batch, scratch)


def test_massive_carries_a_flag_while_the_value_stands():
    """Medians grow with depth: the flag of layer 0 holds in 1, falls in 2 (below half) and is gone in 3."""
    scratch, stat = {}, Events(Massive())
    found = []
    for index, (peak, usual) in enumerate(
        [(3000.0, 0.5), (2000.0, 5.0), (1400.0, 5.0), (1600.0, 5.0), (9e4, 5.0)]
    ):
        values = np.full((10, 8), usual)
        values[2, 3] = -peak
        seen = layer(values, index, scratch)
        stat.update(seen)
        found.append(
            [
                (event.item(), bool(carried))
                for event, carried in zip(
                    seen.events(Massive()).value, seen.events(Massive()).carried, strict=True
                )
            ]
        )
    assert found == [[(-3000.0, False)], [(-2000.0, True)], [], [], [(-90000.0, False)]]
    assert (stat.count, stat.carried) == (3, 1)
    assert stat.pairs.carried.tolist() == [1]
    assert stat.pairs.value.tolist() == [-90000.0]


def test_a_carried_flag_needs_the_absolute_threshold_too():
    scratch = {}
    for index, (peak, expected) in enumerate([(150.0, 1), (99.0, 0)]):
        values = np.full((4, 4), 0.01)
        values[0, 0] = peak
        if index:
            values[:] = np.where(values == peak, peak, 1.0)
        assert len(layer(values, index, scratch).events(Massive())) == expected


@pytest.mark.parametrize("wrong", [{(2, 3): np.inf}, {(2, 5): np.nan}])
def test_a_flag_is_not_carried_onto_a_token_that_is_left_out(wrong):
    scratch = {}
    values = np.full((10, 8), 0.5)
    values[2, 3] = 3000.0
    assert len(layer(values, 0, scratch).events(Massive())) == 1
    values = np.full((10, 8), 5.0)
    values[2, 3], values[4, 4] = 2500.0, 150.0  # the latter so that a median is asked for
    for place, value in wrong.items():
        values[place] = value
    stat, seen = Events(Massive()), layer(values, 1, scratch)
    stat.update(seen)
    assert seen.digest.nonfinite == 1
    assert (stat.count, stat.tokens, stat.tokens_with_any) == (0, 9, 0)


def test_batches_of_other_dims_are_refused():
    random = np.random.default_rng(5)

    def seen(dims):
        values = random.standard_normal((9, dims)).astype(np.float32)
        return observe([Sequence(0, values, np.arange(9), np.zeros(9, np.uint8))], random)

    two, three = Events(SixSigma(0.5)), Events(SixSigma(0.5))
    two.update(seen(2))
    three.update(seen(3))
    words = "events of 2 dims and 5 token classes cannot take in those of 3 dims and 5 classes"
    with pytest.raises(ValueError, match=words):
        two.update(seen(3))
    with pytest.raises(ValueError, match=words):
        two.merge(three)


def test_flags_are_bounded():
    stat = Flags(SixSigma(0.5))
    random = np.random.default_rng(3)
    for number in range(70):
        length = 200 if number == 1 else 2
        values = random.choice([-1.0, 1.0], (length, 40)).astype(np.float32)
        rows = Sequence(number, values, np.zeros(length, int), np.zeros(length, np.uint8))
        stat.update(observe([rows], random))
    assert stat.sequences.tolist() == list(range(64))
    assert int((stat.rows[:, 0] == 1).sum()) == EVENTS_PER_SEQUENCE
    assert stat.left_out[1] == 200 * 40 - EVENTS_PER_SEQUENCE
    assert stat.left_out[0] == 0


def test_events_everywhere():
    random = np.random.default_rng(4)
    rows = [
        Sequence(
            number, random.standard_normal((9, 5)).astype(np.float32), np.arange(9), np.zeros(9, np.uint8)
        )
        for number in range(3)
    ]
    stat = Events(SixSigma(1.0))
    stat.update(observe(rows, random))
    check(stat, direct(SixSigma(1.0), rows, allow=bool), rows)


def test_buckets():
    positions = torch.cat([torch.arange(70), 2 ** torch.arange(6, 31), 2 ** torch.arange(7, 32) - 1])
    names = bucket_names()
    for position, bucket in zip(positions.tolist(), position_bucket(positions).tolist(), strict=True):
        low, _, high = names[bucket].partition("-")
        assert int(low) <= position <= int(high or low)
        assert bucket_of(position) == bucket
    assert len(set(names)) == len(names)
