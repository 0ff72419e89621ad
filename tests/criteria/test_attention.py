"""Attention criteria on patterns with known sinks, and what they say where they cannot judge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlierscope.criteria.attention import Sink, SystematicAttention
from outlierscope.criteria.attention_summary import summarize_attention
from outlierscope.criteria.idle_heads import NoOpHead, ValueDrain
from outlierscope.reporting.heads import sentences
from tests.criteria.attention_evidence import evidence_of_patterns, findings
from tests.stats.attention_streams import random_sequence

INITIAL = "initial"
CRITERIA = (SystematicAttention(), Sink(), NoOpHead(), ValueDrain())


def planted(count=10, length=300, *, drained=True, causal=True, seed=0):
    """Sequences in which head 2 gives 80 % of its attention to position 5, token 77, a delimiter."""
    sequences = []
    for number in range(count):
        sequence = random_sequence(seed + number, number, length, causal=causal, spike=0)
        visible = sequence.pattern[2, :, 5] > 0
        sequence.pattern[2][visible] *= 0.2
        sequence.pattern[2, visible, 5] += 0.8
        sequence.token_ids[5], sequence.classes[5] = 77, 2
        sequence.classes[6:] = 4
        if drained:
            sequence.values[1, 5] *= 0.01
        sequences.append(sequence)
    return sequences


@pytest.mark.parametrize("causal", [True, False])
def test_a_planted_sink_is_found_with_all_that_goes_with_it(causal):
    evidence = evidence_of_patterns(CRITERIA, planted(causal=causal))
    (row,), refused = findings(Sink(), evidence)
    assert not refused
    assert (row.layer, row.head, row.position, row.token_id, row.token) == (0, 2, 5, 77, "token77")
    assert (row.token_class, row.score, row.count) == ("strong_delimiter", 1.0, 10)
    assert row.value == pytest.approx(0.8, abs=0.02)
    assert row.extra["positions"] == {"5": 10}
    assert row.extra["share_by_epsilon"] == {"0.1": 1.0, "0.2": 1.0, "0.3": 1.0, "0.4": 1.0, "0.5": 1.0}

    (row,), _ = findings(SystematicAttention(), evidence)
    assert (row.token_id, row.head, row.count, row.share_sequences) == (77, 2, 10, 1.0)
    assert row.score == pytest.approx((0.8 * (295 if causal else 300) / 300) / 4, abs=0.02)

    (row,), _ = findings(ValueDrain(), evidence)
    assert row.head == 2
    assert row.score < 0.05


def test_a_head_that_writes_nothing_is_a_soft_no_update():
    sequences = planted(length=200)
    for sequence in sequences:
        sequence.pattern[2] = 0
        sequence.pattern[2, :, 0] = 1
        sequence.classes[:] = 4
        sequence.classes[0] = 0
        sequence.values += 1.0  # so that the mean value vector is long
        sequence.values[:, 0] = 0.01
    evidence = evidence_of_patterns([NoOpHead()], sequences)
    (row,), _ = findings(NoOpHead(), evidence)
    assert (row.head, row.score, row.value) == (2, 1.0, 1.0)
    assert row.extra["pattern"] == "soft no-update"
    assert row.value == pytest.approx(1.0)
    assert row.extra["value_norm_ratio"] < 0.1
    assert row.extra["output_ratio"] < 0.1

    for sequence in sequences:
        sequence.values[:, 0] = 9.0
    evidence = evidence_of_patterns([NoOpHead()], sequences)
    assert findings(NoOpHead(), evidence) == ([], [])


def test_a_head_is_no_sink_when_too_few_sequences_have_one():
    sequences = [*planted(4), *[random_sequence(seed, seed, 300, spike=0) for seed in range(100, 106)]]
    evidence = evidence_of_patterns(CRITERIA, sequences)
    assert findings(Sink(), evidence) == ([], [])
    lenient = Sink(sequence_share=0.4)
    assert [row.head for row in findings(lenient, evidence)[0]] == [2]


def test_thresholds_are_options():
    strict, evidence = Sink(epsilon=0.85), evidence_of_patterns([Sink(epsilon=0.85)], planted())
    assert findings(strict, evidence) == ([], [])
    loose = Sink(epsilon=0.75)
    assert len(findings(loose, evidence_of_patterns([loose], planted()))[0]) == 1


@pytest.mark.parametrize(
    ("criterion", "sequences", "reason"),
    [
        (Sink(), planted(7), "not enough data: 7 sequences judged, 8 needed"),
        (
            Sink(),
            planted(9, 50),
            "not enough data: 0 sequences judged, 8 needed; 9 have fewer than 64 tokens",
        ),
        (ValueDrain(), planted(7), "not enough data: 7 sequences judged, 8 needed"),
        (
            SystematicAttention(),
            planted(3, 200),
            "not enough data: sequences of 200 tokens at most, 256 needed",
        ),
        (NoOpHead(), planted(3, 300), "not enough data: 900 queries, 1000 needed"),
    ],
)
def test_too_little_data_is_said(criterion, sequences, reason):
    evidence = evidence_of_patterns([criterion], sequences)
    assert findings(criterion, evidence) == ([], [reason])


def test_missing_values_are_said():
    evidence = evidence_of_patterns(CRITERIA, planted(), with_values=False)
    assert findings(NoOpHead(), evidence) == (
        [],
        ["value vectors were not observed in 1 layer, first decoder.0.pattern"],
    )
    reason = "value vectors were not observed for 1 sink head, first decoder.0.pattern head 2"
    assert findings(ValueDrain(), evidence) == ([], [reason])
    assert len(findings(Sink(), evidence)[0]) == 1


def test_nothing_measured_finds_nothing():
    evidence = evidence_of_patterns([], planted(1))
    for criterion in CRITERIA:
        assert findings(criterion, evidence) == ([], [])
    assert summarize_attention(evidence, []) == []


def test_the_summary_says_whether_it_is_usual():
    evidence = evidence_of_patterns(CRITERIA, planted())
    rows = findings(Sink(), evidence)[0]
    (summary,) = summarize_attention(evidence, rows)
    assert (summary.heads, summary.sinks, summary.first_token_rate) == (4, 1, 0.0)
    first, second = sentences(summary)
    assert first.startswith(
        "attention sinks: 1 of 4 heads; no-op heads: 0 (usual in number for a decoder, but mostly"
    )
    assert second == "strongest: layer 0 head 2 gives 0.81 to 'token77'"

    (summary,) = summarize_attention(evidence, [replace(row, token_class=INITIAL) for row in rows])
    assert "usual for a decoder: keep the first token in calibration and in serving" in summary.usual
    assert "Gu et al. 2024: 18 % at 60 M parameters, 45 % at 1 B" in summary.usual

    evidence = evidence_of_patterns(CRITERIA, planted(causal=False))
    (summary,) = summarize_attention(evidence, findings(Sink(), evidence)[0])
    assert summary.usual.startswith("usual for an encoder")


def test_rows_can_be_written():
    evidence = evidence_of_patterns(CRITERIA, planted())
    for criterion in CRITERIA:
        for row in findings(criterion, evidence)[0]:
            values = row.row_values()
            assert values["kind"] == "attention"
            assert values["site"] == "pattern"
            assert isinstance(values["rule"], str)
