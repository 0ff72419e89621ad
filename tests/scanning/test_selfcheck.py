"""A tap that changes anything is caught, and like is compared with like."""

import pytest
import torch

from outlierscope import wrap
from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.errors import ProofError
from outlierscope.scanning import selfcheck
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.plan import plan
from outlierscope.scanning.selfcheck import check_taps, relative_difference
from outlierscope.scanning.settings import ScanSettings
from tests.model.tiny import tiny_bert, tiny_llama


def check(module, only=("activation", "attention")):
    observed = wrap(module)
    settings = ScanSettings(only=only, length=32)
    batch = next(corpus_for(observed, settings, [list(range(5, 37))]).batches())
    return check_taps(observed, plan(observed.anatomy, choose_criteria(only, {}), settings), batch)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_routes_compute_what_the_model_does(make, dtype):
    assert check(make().to(dtype)) == {"fast": 0.0, "exact": 0.0}


def test_exact_route_is_only_checked_where_attention_is_observed():
    assert check(tiny_llama(), only=("activation",)).keys() == {"fast"}


@pytest.mark.parametrize("route", ["fast", "exact"])
def test_a_route_that_changes_the_output_is_an_error(monkeypatch, route):
    class Meddling(selfcheck.TappedModel):
        def observe(self, batch, measurements):
            norm = self._observed.module.norm
            with torch.no_grad():
                norm.weight[3] += 1e-4 if batch.dear == (route == "exact") else 0
            return super().observe(batch, measurements)

    monkeypatch.setattr(selfcheck, "TappedModel", Meddling)
    with pytest.raises(ProofError, match=rf"observing changes what .* computes \(the {route} route by \d"):
        check(tiny_llama())


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([float("inf"), 1.0], [float("inf"), 2.0], 0.5),
        ([float("inf"), 1.0], [-float("inf"), 1.0], float("inf")),
        ([float("nan")], [0.0], float("inf")),
        ([0.0, 0.0], [0.0], float("inf")),
    ],
)
def test_relative_difference(first, second, expected):
    assert relative_difference(torch.tensor(first), torch.tensor(second)) == expected
