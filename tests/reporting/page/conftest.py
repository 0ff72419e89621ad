"""A scan of the healthy control, and one with many findings whose texts try to run."""

import pytest

import outlierscope as osc
from outlierscope.criteria.finding import Finding
from outlierscope.scanning.findings import to_table

HOSTILE = "<script>window.hacked=1</script>"


@pytest.fixture(scope="session")
def healthy(shared_model):
    texts = ["Once upon a time, there was a cat. " * 40, "The dog said: hello! " * 60]
    return osc.scan(osc.load(shared_model("stories260k")), texts * 4, tokens=1500, length=96)


@pytest.fixture(scope="session")
def infected(healthy):
    findings = [
        Finding(
            "massive",
            "activation",
            stack="decoder",
            layer=number % 5,
            site="resid_post",
            dim=number,
            token_id=5,
            token=HOSTILE,
            value=200.0 + number,
            score=2000.0,
            count=1,
            context=f'"><img src=x onerror=window.hacked=1> {HOSTILE}' if number < 40 else None,
        )
        for number in range(3000)
    ]
    named = osc.Scan(healthy.evidence, to_table(findings), healthy.manifest, {})
    # Histograms ask for the texts of tokens by their ids.
    plain = healthy.evidence._decode
    healthy.evidence._decode = lambda token_id: HOSTILE
    yield named
    healthy.evidence._decode = plain
