"""What a verdict says of linear inputs that nobody saw."""

from outlierscope.model.discovery.discover import discover
from outlierscope.reporting.coverage import coverage
from tests.model.discovery.test_branches import MAMBA, build
from tests.model.families import GROUPED
from tests.model.tiny import tiny_llama


def test_nothing_is_said_where_all_inputs_are_seen():
    assert coverage(discover(tiny_llama().model)) == []


def test_experts_are_told():
    anatomy = discover(build("MixtralModel", GROUPED | {"num_local_experts": 4}))
    assert coverage(anatomy) == [
        "Formats of 8 bits are judged by 6 linear inputs; experts and mixers of 2 layers have others, "
        "which are not seen."
    ]


def test_mixers_are_told():
    config = GROUPED | MAMBA | {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    anatomy = discover(build("JambaModel", config))
    (sentence,) = coverage(anatomy)
    assert sentence.endswith("experts and mixers of 1 layer have others, which are not seen.")
