"""Statistics of attention: each is what plain arithmetic on whole patterns gives; merging is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlierscope.stats.attention_flags import AttentionFlags
from outlierscope.stats.heads import Heads
from outlierscope.stats.positions import BUCKETS, position_bucket
from outlierscope.stats.received import ReceivedMass
from outlierscope.stats.sinks import SinkRates
from outlierscope.stats.sparse_sums import SparseSums
from outlierscope.stats.systematic_attention import SystematicAttention
from tests.stats.attention_streams import observation, random_sequence

STATS = (
    Heads,
    ReceivedMass,
    SinkRates,
    lambda: SystematicAttention(shortest=20),
    lambda: AttentionFlags(shortest=20),
)


def accumulate(make, sequences, sizes=(2,), padding="left"):
    """A statistic updated with the sequences in batches of the given sizes, over and over."""
    stat = make()
    start = turn = 0
    while start < len(sequences):
        size = sizes[turn % len(sizes)]
        stat.update(observation(sequences[start : start + size], padding=padding))
        start, turn = start + size, turn + 1
    return stat


def assert_same(one, other, tolerance=1e-12):
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        if value.is_floating_point():
            torch.testing.assert_close(
                value, second[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
            )
        else:
            assert torch.equal(value, second[name]), name


lengths = st.lists(st.sampled_from([1, 2, 7, 40, 64, 70]), min_size=1, max_size=5)


@pytest.mark.parametrize("make", STATS)
@given(lengths=lengths, split=st.integers(0, 5), causal=st.booleans(), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=12, deadline=None)
def test_merging_parts_gives_the_whole(make, lengths, split, causal, seed, data):
    sequences = [
        random_sequence(seed * 100 + number, number, length, causal=causal)
        for number, length in enumerate(lengths)
    ]
    order = data.draw(st.permutations(sequences))
    whole = accumulate(make, sequences, sizes=(1,))
    first = accumulate(make, order[:split], sizes=(1,))
    second = accumulate(make, order[split:], sizes=(1,))
    first.merge(second)
    assert_same(first, whole)
    # Batches and padding change nothing but the rounding of float32 sums over queries.
    assert_same(accumulate(make, order, sizes=(3, 1), padding="right"), whole, tolerance=1e-5)
    fresh = whole.fresh()
    assert fresh.name == whole.name
    fresh.merge(whole)
    assert_same(fresh, whole)


@pytest.mark.parametrize("make", STATS)
def test_states_round_trip_bit_for_bit(make):
    sequences = [random_sequence(number, number, 70) for number in range(4)]
    stat = accumulate(make, sequences[:2])
    restored = make()
    restored.load_state({name: value.clone() for name, value in stat.state().items()})
    for one in (stat, restored):
        one.update(observation(sequences[2:]))
    for name, value in stat.state().items():
        assert torch.equal(value, restored.state()[name]), name


@pytest.mark.parametrize("make", STATS)
def test_a_copy_goes_on_alone(make):
    sequences = [random_sequence(number, number, 70) for number in range(4)]
    stat = accumulate(make, sequences[:2])
    before = {name: value.clone() for name, value in stat.state().items()}
    copied = stat.copy()
    copied.update(observation(sequences[2:]))
    for name, value in stat.state().items():
        assert torch.equal(value, before[name]), name
    assert_same(copied, accumulate(make, sequences))


@pytest.mark.parametrize("make", STATS)
def test_an_empty_statistic_can_be_saved_and_merged(make):
    stat, empty = accumulate(make, [random_sequence(0, 0, 70)]), make()
    restored = make()
    restored.load_state(empty.state())
    restored.merge(empty)
    restored.merge(stat)
    assert_same(restored, stat)


@pytest.mark.parametrize("make", STATS)
def test_sequences_with_nan_do_not_poison_the_rest(make):
    good, bad = random_sequence(0, 0, 70), random_sequence(1, 1, 70)
    bad.pattern[0, 50, 3] = np.nan
    stat, clean = make(), accumulate(make, [good])
    stat.update(observation([good, bad]))
    if isinstance(stat, Heads):
        assert stat.nonfinite == 1
        stat.nonfinite = 0
    assert_same(stat, clean, tolerance=1e-6)


def heads_of(sequences):
    stat = accumulate(Heads, sequences, sizes=(3,))
    patterns = [sequence.pattern for sequence in sequences]
    return stat, patterns


def test_heads_are_what_patterns_say():
    sequences = [random_sequence(seed, seed, length) for seed, length in enumerate([30, 50, 12, 64])]
    stat, patterns = heads_of(sequences)
    close = np.testing.assert_allclose
    queries = sum(len(pattern[0]) for pattern in patterns)
    assert (stat.sequences, stat.queries, stat.normalised_queries) == (4, queries, queries - 4)
    close(stat.mean_initial_alpha(), np.mean([p[:, :, 0].mean(1) for p in patterns], 0), rtol=1e-5)
    entropies = [-(p * np.log(np.where(p > 0, p, 1))).sum(-1) for p in patterns]  # [H, T]
    close(stat.mean_entropy(), np.concatenate(entropies, 1).mean(1), rtol=1e-5)
    normalised = [e[:, 1:] / np.log(np.arange(2, e.shape[1] + 1)) for e in entropies]
    close(stat.mean_normalised_entropy(), np.concatenate(normalised, 1).mean(1), rtol=1e-5)
    share = np.zeros((4, 5))
    for sequence in sequences:
        for kind in range(5):
            share[:, kind] += sequence.pattern[:, :, sequence.classes == kind].sum((1, 2))
    close(stat.class_share(), share / queries, rtol=1e-5)
    low = [sequence.pattern[:, :, sequence.classes < 3].sum(-1) for sequence in sequences]  # [H, T]
    close(stat.attending, (np.concatenate(low, 1) > 0.5).sum(1))
    norms = np.concatenate([np.linalg.norm(s.values, axis=-1) for s in sequences], 1)  # [G, tokens]
    kinds = np.concatenate([s.classes for s in sequences])
    close(
        stat.value_norm_ratio([0, 1, 2]),
        norms[:, kinds < 3].mean(1) / norms[:, kinds >= 3].mean(1),
        rtol=1e-5,
    )
    written = [np.linalg.norm(s.outputs, axis=-1).T for s in sequences]  # [H, T]
    means = [np.linalg.norm(s.values.mean(1), axis=-1).repeat(2) for s in sequences]  # [H]
    ratios = [w.mean(1) / m for w, m in zip(written, means, strict=True)]
    close(stat.mean_output_ratio(), np.mean(ratios, 0), rtol=1e-5)
    idle = sum(
        ((w < 0.5 * m[:, None]) & (x > 0.5)).sum(1) for w, m, x in zip(written, means, low, strict=True)
    )
    close(stat.idle, idle)
    assert int(idle.sum()) > 0


def test_without_values_their_figures_are_missing():
    stat = Heads()
    stat.update(observation([random_sequence(0, 0, 20)], with_values=False))
    assert stat.value_norm_ratio([0]) is None
    assert stat.mean_output_ratio() is None
    assert stat.mean_entropy().shape == (4,)


@pytest.mark.parametrize("causal", [True, False])
def test_received_mass_in_both_normalisations(causal):
    sequences = [random_sequence(seed, seed, 100, causal=causal) for seed in range(3)]
    stat = accumulate(ReceivedMass, sequences)
    raw = np.stack([sequence.pattern.sum(1) for sequence in sequences])  # [B, H, T]
    alpha = np.stack([sequence.alpha for sequence in sequences])
    np.testing.assert_allclose(stat.mean_alpha()[:, :64], alpha.mean(0)[:, :64], rtol=1e-5)
    np.testing.assert_allclose(stat.raw[:, 64], raw[:, :, 64:].sum((0, 2)), rtol=1e-5)
    assert stat.keys.tolist() == [3] * 64 + [3 * 36] + [0] * (BUCKETS - 65)
    ids = np.concatenate([sequence.token_ids for sequence in sequences])
    for row, token in enumerate(stat.tokens.keys.flatten().tolist()):
        chosen = ids == token
        assert int(stat.tokens.counts[row]) == chosen.sum()
        expected = [np.concatenate(list(x.mean(1)))[chosen].sum() for x in (raw, alpha)]
        np.testing.assert_allclose(stat.tokens.sums[row], expected, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_sinks_are_judged_per_sequence(causal):
    lengths = [100, 64, 30, 80]
    sequences = [random_sequence(seed, seed, n, causal=causal, spike=2) for seed, n in enumerate(lengths)]
    stat = accumulate(SinkRates, sequences)
    counts = np.zeros((5, 4), dtype=int)
    pairs, largest, judged = {}, np.zeros(4), 0
    for sequence in sequences:
        pattern = sequence.pattern
        if causal:
            if pattern.shape[-1] < 64:
                continue
            alpha = pattern[:, :64, :64].sum(1) / np.arange(64, 0, -1)
            alpha = alpha[:, :33]  # keys that at least 32 of the 64 queries can see
        else:
            alpha = pattern.mean(1)
        judged += 1
        largest += alpha.max(1)
        for place, epsilon in enumerate(stat.epsilons):
            counts[place] += (alpha > epsilon).any(1)
            for head, key in np.argwhere(alpha > epsilon):
                name = (place, head, int(sequence.classes[key]), int(sequence.token_ids[key]))
                group = np.linalg.norm(sequence.values[head // 2], axis=-1)
                old = pairs.get(name, np.zeros(3))
                pairs[name] = old + np.array([1, alpha[head, key], group[key] / np.median(group)])
    assert counts.max() > 0
    assert (stat.sequences, stat.short) == ((3, 1) if causal else (4, 0))
    assert stat.whole_windows == (0 if causal else 4)
    assert stat.with_sink.tolist() == counts.tolist()
    np.testing.assert_allclose(stat.largest_alpha, largest, rtol=1e-5)
    assert [tuple(key) for key in stat.pairs.keys.tolist()] == sorted(pairs)
    expected = np.array([pairs[key] for key in sorted(pairs)])
    np.testing.assert_allclose(stat.pairs.counts, expected[:, 0])
    np.testing.assert_allclose(stat.pairs.sums, expected[:, 1:], rtol=1e-5)


def test_the_last_keys_of_a_causal_window_are_no_sinks():
    sequence = random_sequence(0, 0, 64)
    # Every query attends to itself alone: alpha of the last key is 1, of the one before 1 / 2.
    sequence.pattern = np.broadcast_to(np.eye(64), (4, 64, 64)).copy()
    stat = accumulate(SinkRates, [sequence])
    assert stat.sequences == 1
    assert stat.with_sink.sum() == 0


def test_systematic_attention_needs_long_sequences():
    sequences = [random_sequence(seed, seed, n, spike=2) for seed, n in enumerate([255, 256, 300])]
    stat = accumulate(SystematicAttention, sequences)
    assert (stat.sequences, stat.short) == (2, 1)
    count = 0
    mass = np.zeros(4)
    sums = {}
    for sequence in sequences[1:]:
        length = sequence.pattern.shape[-1]
        received = sequence.pattern.sum(1)
        for key in np.flatnonzero(received.mean(0) >= 0.1 * length):
            count += 1
            mass += received[:, key] / length
            name = (int(sequence.classes[key]), int(sequence.token_ids[key]))
            sums[name] = sums.get(name, 0) + received.mean(0)[key] / length
    assert count > 0
    assert stat.count == count == stat.positions.sum()
    np.testing.assert_allclose(stat.mass, mass, rtol=1e-5)
    assert [tuple(key) for key in stat.pairs.keys.tolist()] == sorted(sums)
    np.testing.assert_allclose(stat.pairs.sums[:, 0], [sums[key] for key in sorted(sums)], rtol=1e-5)
    assert stat.name == "systematic_attention_0.1"


def test_flags_name_the_keys_of_the_first_sequences():
    sequences = [random_sequence(seed, seed, 70, spike=3) for seed in range(70)]
    stat = AttentionFlags(shortest=20)
    for sequence in reversed(sequences):
        stat.update(observation([sequence]))
    assert stat.sequences[:, 0].tolist() == list(range(64))
    expected = []
    for sequence in sequences[:64]:
        systematic = sequence.pattern.sum(1).mean(0) >= 0.1 * 70
        corner = sequence.pattern[:, :64, :64].sum(1) / np.arange(64, 0, -1)
        heads = np.zeros(70, dtype=int)
        heads[:33] = (corner[:, :33] > 0.3).sum(0)
        flagged = np.flatnonzero(systematic | (heads > 0))
        expected += [[sequence.number, key, int(systematic[key]), heads[key]] for key in flagged]
    assert stat.rows.tolist() == expected
    assert stat.left_out.sum() == 0


def test_positions_count_without_padding():
    sequences = [random_sequence(0, 0, 10), random_sequence(1, 1, 30)]
    for padding in ("left", "right"):
        stat = accumulate(ReceivedMass, sequences, padding=padding)
        assert stat.keys[:30].tolist() == [2] * 10 + [1] * 20
    assert position_bucket(torch.tensor([29])).item() == 29


def test_sparse_sums_add_up_by_key():
    total = SparseSums.empty(2, 1)
    expected: dict[tuple[int, int], float] = {}
    generator = np.random.default_rng(0)
    for _ in range(5):
        keys = generator.integers(-1, 3, (20, 2))
        values = generator.normal(size=(20, 1))
        ones = torch.ones(20, dtype=torch.int64)
        total = total.plus(SparseSums(torch.from_numpy(keys), ones, torch.from_numpy(values)))
        for key, value in zip(keys.tolist(), values[:, 0], strict=True):
            expected[tuple(key)] = expected.get(tuple(key), 0) + value
    assert [tuple(key) for key in total.keys.tolist()] == sorted(expected)
    np.testing.assert_allclose(total.sums[:, 0], [expected[key] for key in sorted(expected)])
    assert int(total.counts.sum()) == 100
