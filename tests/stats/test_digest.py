import numpy as np
import pytest
import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.corpus.token_order import TokenOrder
from outlierscope.stats import reading_plan
from outlierscope.stats.digest import digest_tensor
from outlierscope.stats.moments import Moments
from outlierscope.stats.observation import Observation
from outlierscope.stats.power_sums import PowerSums
from tests.stats.sequences_of import SITE


def batch_of(real, seed=0):
    real = torch.as_tensor(real)
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        number=0,
        stack="decoder",
        inputs={},
        token_ids=torch.randint(0, 9, real.shape, generator=generator),
        real=real,
        classes=torch.randint(0, 5, real.shape, generator=generator).to(torch.uint8),
        class_names=TEXT_CLASSES,
        sequence_ids=torch.arange(len(real)),
        documents=[""] * len(real),
    )


def padded(sequences, length):
    real = torch.zeros(sequences, length, dtype=torch.bool)
    for row in range(sequences):
        real[row, row : length - 2 * row] = True
    return real


def check(digest, values, real, rtol=1e-5):
    """``values`` [B, T, d] float64 against the digest, with plain numpy."""
    values, real = values.double().numpy(), real.numpy()
    everything = values[real]
    centred = everything - everything.mean(0)
    np.testing.assert_allclose(digest.sums.mean, everything.mean(0), atol=1e-6 * everything.std(0).max())
    np.testing.assert_allclose(digest.sums.m2, (centred**2).sum(0), rtol=rtol)
    np.testing.assert_allclose(
        digest.sums.m3, (centred**3).sum(0), atol=rtol * (np.abs(centred) ** 3).sum(0).max()
    )
    np.testing.assert_allclose(digest.sums.m4, (centred**4).sum(0), rtol=rtol)
    np.testing.assert_array_equal(digest.minimum, everything.min(0))
    np.testing.assert_array_equal(digest.maximum, everything.max(0))
    for row in range(len(values)):
        own = values[row][real[row]]
        assert digest.pooled.count[row] == own.size
        if own.size:
            for power, mine in ((2, digest.pooled.m2), (4, digest.pooled.m4)):
                assert mine[row] == pytest.approx(((own - own.mean()) ** power).sum(), rel=rtol)
            assert digest.inf_norms[row] == np.abs(own).max()
        else:
            assert digest.inf_norms[row] == -np.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [4, 40])
def test_any_dtype_and_any_cut_into_parts(dtype, parts, monkeypatch):
    monkeypatch.setattr(reading_plan, "PARTS", parts)
    real = padded(6, 50)
    real[2] = False
    tensor = (torch.randn(6, 50, 12, generator=torch.Generator().manual_seed(1)) * 100 + 7).to(dtype)
    check(digest_tensor(tensor, batch_of(real)), tensor, real)


def test_float16_values_whose_squares_overflow_float16():
    real = torch.ones(2, 30, dtype=torch.bool)
    tensor = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(2)).half()
    tensor[1, 3, 4] = 60000.0
    check(digest_tensor(tensor, batch_of(real)), tensor, real)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e36])
def test_values_whose_powers_leave_float32(scale):
    real = padded(3, 40)
    tensor = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(3)) * scale
    check(digest_tensor(tensor, batch_of(real)), tensor, real)


def test_a_huge_outlier_in_one_sequence_leaves_the_others_their_digits():
    real = torch.ones(4, 64, dtype=torch.bool)
    tensor = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(4)) + 20
    tensor[0, ::3, 5] = 3e7
    tensor[1, 0, 2] = 3e38
    digest = digest_tensor(tensor, batch_of(real))
    for row in range(4):
        own = tensor[row].double().numpy()
        assert digest.pooled.m4[row] == pytest.approx(((own - own.mean()) ** 4).sum(), rel=1e-4)
        assert digest.pooled.m2[row] == pytest.approx(((own - own.mean()) ** 2).sum(), rel=1e-4)


def test_a_large_constant_offset_costs_no_digits():
    real = torch.ones(2, 100, dtype=torch.bool)
    tensor = torch.randn(2, 100, 5, generator=torch.Generator().manual_seed(5)) * 0.01 + 1000.0
    check(digest_tensor(tensor, batch_of(real)), tensor, real)


def test_constant_dims_have_no_spread():
    tensor = torch.full((2, 33, 3), 0.1)
    tensor[..., 1] = torch.randn(2, 33, generator=torch.Generator().manual_seed(6))
    sums = digest_tensor(tensor, batch_of(torch.ones(2, 33, dtype=torch.bool))).sums
    assert sums.m2[[0, 2]].tolist() == sums.m4[[0, 2]].tolist() == [0.0, 0.0]
    assert sums.mean[0] == float(torch.tensor(0.1))


def test_a_batch_without_tokens():
    batch = batch_of(torch.zeros(2, 5, dtype=torch.bool))
    digest = digest_tensor(torch.full((2, 5, 3), torch.nan), batch)
    assert (digest.tokens, digest.nonfinite, digest.inf_norms.tolist()) == (0, 0, [-torch.inf] * 2)


def test_everything_is_non_finite():
    batch = batch_of(torch.ones(2, 50, dtype=torch.bool))
    digest = digest_tensor(torch.full((2, 50, 3), torch.inf), batch)
    assert (digest.tokens, digest.nonfinite) == (0, 100)
    assert digest.nonfinite_located.tolist() == [[0, row // 3, row % 3] for row in range(32)]


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 6, 3), (1, 5, 3)])
def test_a_tensor_of_other_positions_is_refused(shape):
    batch = batch_of(torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=rf"{shape[0]} x {shape[1]} positions is none of this batch, which has 2 x 5"
    ):
        digest_tensor(torch.zeros(shape), batch)


def test_a_class_without_a_name_is_refused():
    batch = batch_of(torch.ones(2, 5, dtype=torch.bool))
    batch.classes[1, 2] = 5
    with pytest.raises(ValueError, match="a class beyond the 5 that are named"):
        digest_tensor(torch.zeros(2, 5, 3), batch)


def test_the_same_batch_gives_the_same_bits():
    real = padded(4, 60)
    tensor = torch.randn(4, 60, 24, generator=torch.Generator().manual_seed(7))
    first, second = (digest_tensor(tensor.clone(), batch_of(real)) for _ in range(2))
    assert np.array_equal(first.sums.m4, second.sums.m4)
    assert np.array_equal(first.pooled.m3, second.pooled.m3)


def test_a_tensor_that_is_a_view():
    tensor = torch.randn(5, 3, 20, generator=torch.Generator().manual_seed(8)).permute(1, 2, 0)  # [3, 20, 5]
    real = padded(3, 20)
    check(digest_tensor(tensor, batch_of(real)), tensor, real)


def test_positions_count_without_padding_and_over_dropped_tokens():
    real = torch.tensor([[False, False, True, True, True]])
    tensor = torch.ones(1, 5, 2)
    tensor[0, 3, 1] = torch.nan
    seen = Observation(SITE, tensor, batch_of(real))
    assert seen.digest.nonfinite_located.tolist() == [[0, 1, 1]]
    assert seen.digest.places(0).tolist() == [2, 4]
    assert seen.values(0).tolist() == [[1.0, 1.0]] * 2
    stat = Moments()
    stat.update(seen)
    assert (stat.count, stat.nonfinite) == (2, 1)


def test_order_of_tokens():
    real = padded(3, 9)
    batch = batch_of(real)
    order = TokenOrder.of(real, batch.classes)
    assert sorted(order.rows.tolist()) == real.flatten().nonzero().flatten().tolist()
    for run in order.runs:
        rows = order.rows[run.start : run.stop]
        assert (batch.classes.flatten()[rows] == run.token_class).all()
        assert len(set((rows // 9).tolist())) == 1
        assert (rows.diff() > 0).all()
    assert [run.start for run in order.runs[1:]] == [run.stop for run in order.runs[:-1]]
    assert order.counts == real.sum(1).tolist()
    assert len(order.spaced(4)) == 4


def test_power_sums_of_nothing():
    sums = PowerSums.of(torch.zeros(0, 3, dtype=torch.float64))
    assert sums.count == 0
    assert sums.m4.tolist() == [0.0] * 3
