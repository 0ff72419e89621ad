"""six_sigma, massive and systematic_activation on planted values."""

from __future__ import annotations

import pytest
import torch

from outlierscope.criteria.activation import Massive, SixSigma, SystematicActivation

from .streams import at, evidence_of, make_batch, split

LENGTH, DIMS = 64, 16


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(2, LENGTH, DIMS, generator=generator).clamp(-3, 3)


def tokens():
    return torch.arange(2 * LENGTH).reshape(2, LENGTH) % 10


def test_six_sigma_names_planted_dim_token_and_class(noise):
    values = noise()
    values[0, 5, 3], values[1, 7, 3] = 40.0, -60.0
    classes = torch.full((2, LENGTH), 4, dtype=torch.uint8)
    classes[0, 5] = classes[1, 7] = 2
    batch = make_batch(tokens(), classes)
    evidence = evidence_of([SixSigma()], [batch], {at(0, "mlp_out"): [values]})
    (finding,), refused = split(SixSigma().findings(evidence))
    assert not refused
    assert (finding.layer, finding.site, finding.dim, finding.count) == (0, "mlp_out", 3, 2)
    assert finding.value == -60.0
    assert (finding.sequence, finding.position) == (1, 7)
    assert finding.token_id == int(batch.token_ids[1, 7])
    assert finding.token == f"<{finding.token_id}>"
    assert (finding.token_class, finding.extra["delimiter_share"]) == ("strong_delimiter", 1.0)
    assert finding.extra["top_tokens"][0]["count"] == 1
    assert finding.share_tokens == pytest.approx(2 / (2 * LENGTH))
    assert finding.share_sequences == 1.0
    sequence = values[1].double()
    assert finding.score == pytest.approx(float(abs(-60 - sequence.mean()) / sequence.std()), rel=1e-6)
    assert finding.rule["sigma"] == 6.0
    assert finding.module == "layers.0.mlp_out"


def test_six_sigma_refuses_where_nothing_can_be_six_std_away():
    values = torch.zeros(1, 4, 9)
    values[0, 0, 0] = 1.0
    evidence = evidence_of(
        [SixSigma()], [make_batch(torch.zeros(1, 4, dtype=torch.int64))], {at(0, "mlp_out"): [values]}
    )
    findings, (refused,) = split(SixSigma().findings(evidence))
    assert findings == []
    assert refused.reason == (
        "not enough data: 36 values in the longest sequence cannot hold one 6 std from the mean"
    )


def test_least_six_sigma_data_is_exact():
    """One more value than the bound, and the largest possible deviation is found."""
    values = torch.zeros(1, 2, 19)
    values[0, 0, 0] = 1.0
    evidence = evidence_of(
        [SixSigma()], [make_batch(torch.zeros(1, 2, dtype=torch.int64))], {at(0, "mlp_out"): [values]}
    )
    (finding,), refused = split(SixSigma().findings(evidence))
    assert not refused
    assert finding.score == pytest.approx(37 / 38**0.5)


def test_massive_one_row_per_dim_and_token_and_says_what_is_carried(noise):
    first, second, third = (noise() for _ in range(3))
    batch = make_batch(torch.zeros(2, LENGTH, dtype=torch.int64).index_fill(1, torch.tensor([0]), 1))
    for values in (first, second, third):
        values[:, 0, 2] = 2000.0
        values[0, 4, 2] = 1800.0
    second *= 3.0  # the median grows, the planted values do not: the rule lets go, the memory does not
    second[:, 0, 2], second[0, 4, 2] = 1500.0, 1400.0
    third *= 3.0
    third[:, 0, 2], third[0, 4, 2] = 900.0, 90.0
    evidence = evidence_of(
        [Massive()],
        [batch],
        {at(0, "resid_post"): [first], at(1, "resid_post"): [second], at(2, "resid_post"): [third]},
    )
    findings, refused = split(Massive().findings(evidence))
    assert not refused
    rows = {(row.layer, row.dim, row.token_id): row for row in findings}
    assert set(rows) == {(0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)}
    assert rows[0, 2, 1].count == 2
    assert rows[0, 2, 1].extra["carried"] == 0
    assert not rows[0, 2, 1].extra["all_carried"]
    assert rows[1, 2, 1].extra["all_carried"]
    assert rows[1, 2, 0].extra["carried"] == 1
    assert rows[0, 2, 1].extra["layers_of_dim"] == {"0": 3, "1": 3}
    median = float(first[0].abs().double().flatten().quantile(0.5))
    assert rows[0, 2, 0].score == pytest.approx(1800 / median, rel=1e-6)
    scores = [row.score for row in findings]
    assert scores == sorted(scores, reverse=True)


def test_massive_counts_sampled_sequences_only(noise):
    values = noise()
    values[:, 0, 2] = 2000.0
    batches = [make_batch(tokens()), make_batch(tokens(), number=1, first_sequence=2, dear=False)]
    evidence = evidence_of([Massive()], batches, {at(0, "resid_post"): [values, values]})
    findings, _ = split(Massive().findings(evidence))
    assert sum(row.count for row in findings) == 2
    assert findings[0].rule["sampled"] is True
    assert (findings[0].rule["sequences"], findings[0].rule["of_sequences"]) == (2, 4)


def test_massive_refuses_short_data():
    values = torch.full((1, 10, 8), 0.01)
    values[0, 0, 0] = 500.0
    evidence = evidence_of(
        [Massive()], [make_batch(torch.zeros(1, 10, dtype=torch.int64))], {at(0, "resid_post"): [values]}
    )
    findings, (refused,) = split(Massive().findings(evidence))
    assert findings == []
    assert refused.reason == ("not enough data: a median of 80 values in the longest sequence, 1000 needed")


def test_systematic_activation_takes_the_largest_dim_of_a_token(noise):
    values = torch.cat([noise() for _ in range(8)], 2) * 0.01  # [2, 64, 128]
    values[0, 3, 5], values[0, 3, 6] = 150.0, -170.0
    values[1, 9, 6] = 160.0
    criterion = SystematicActivation()
    evidence = evidence_of([criterion], [make_batch(tokens())], {at(0, "mlp_post"): [values]})
    (finding,), refused = split(criterion.findings(evidence))
    assert not refused
    assert (finding.dim, finding.count, finding.value) == (6, 2, -170.0)
    assert finding.score == pytest.approx(170 / float(values[0].double().abs().mean()), rel=1e-6)
    tops = values.abs().flatten(1).double().topk(3).values.mean(0)
    assert finding.extra["top_3"] == pytest.approx(tops.tolist())
    assert finding.extra["median"] == pytest.approx(
        float(values.abs().flatten(1).double().quantile(0.5, 1).mean()), rel=1e-6
    )


def test_systematic_activation_refuses_where_the_ratio_cannot_be_reached():
    values = torch.zeros(1, 10, 100)
    values[0, 0, 0] = 1.0
    criterion = SystematicActivation()
    evidence = evidence_of(
        [criterion], [make_batch(torch.zeros(1, 10, dtype=torch.int64))], {at(0, "mlp_post"): [values]}
    )
    findings, (refused,) = split(criterion.findings(evidence))
    assert findings == []
    assert refused.reason == (
        "not enough data: largest over mean is at most 1000 for the longest sequence, 1000 is asked for"
    )


def test_padding_is_no_event(noise):
    values = noise()
    values[0, LENGTH - 1, 3] = 1000.0
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, LENGTH - 1] = False
    criteria = [SixSigma(), SystematicActivation(ratio=100.0)]
    evidence = evidence_of(criteria, [make_batch(tokens(), real=real)], {at(0, "resid_post"): [values]})
    for criterion in criteria:
        assert split(criterion.findings(evidence))[0] == []
