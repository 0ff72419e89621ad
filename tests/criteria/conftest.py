"""Two small real models, each scanned once and passed through once more without any of the code under test."""

from __future__ import annotations

import pytest
from transformers import AutoModel

import outlierscope
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.settings import ScanSettings
from tests.criteria.direct import BERT, LLAMA, Direct, Run

# Such that in these small models every rule flags something, and each of its thresholds decides about some of it.
RANGES = {
    "float16": {"headroom": 10_000},
    "bfloat16": {"headroom": 5e37},
    "fp8_e4m3_unscaled": {"headroom": 100},
    "fp8_e5m2_unscaled": {"headroom": 10_000},
}
MINILM = {
    "massive": {"absolute": 2.0, "ratio": 12.0, "keep": 0.7},
    "systematic_activation": {"ratio": 35.0},
    "int8_feature": {"magnitude": 1.5, "layer_share": 0.5, "position_share": 0.001},
    "extreme_neuron": {"share": 0.1},
} | RANGES
STORIES = {
    "massive": {"absolute": 2.0, "ratio": 10.0, "keep": 0.9},
    "systematic_activation": {"ratio": 12.0},
    "int8_feature": {"magnitude": 1.0, "layer_share": 0.25, "position_share": 0.02},
    "extreme_neuron": {"share": 0.1},
} | RANGES


def run_of(folder, places, thresholds, data):
    model = outlierscope.load(folder)
    settings = ScanSettings(
        tokens=2048,
        length=128,
        batch_size=4,
        exact=True,
        only=("activation", "format"),
        thresholds=thresholds,
    )
    plain = AutoModel.from_pretrained(folder).eval()
    batches = list(corpus_for(model, settings, data).batches())
    scan = outlierscope.scan(model, data, settings=settings)
    return Run(scan, Direct(plain, places, batches), plain, batches, thresholds)


@pytest.fixture(scope="session")
def minilm_run(minilm_folder):
    return run_of(minilm_folder, BERT, MINILM, None)


@pytest.fixture(scope="session")
def stories_run(shared_model, shared_data):
    return run_of(shared_model("stories260k"), LLAMA, STORIES, shared_data("text", "bronte.txt"))


@pytest.fixture(params=["minilm", "stories"])
def run(request):
    return request.getfixturevalue(f"{request.param}_run")
