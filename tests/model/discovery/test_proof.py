"""The proof refuses wrong proposals, and says nothing where nothing can be said."""

from dataclasses import replace

import pytest
import torch

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Tap
from outlierscope.model.discovery.blocks import find_block_lists
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.discovery.proof import (
    Addition,
    Projection,
    Proposal,
    prove_block,
    prove_pattern,
    prove_sum,
)
from outlierscope.model.discovery.trial import RandomParameters, run_trial
from outlierscope.model.discovery.whole_pass import record_whole
from outlierscope.model.sites import Site
from tests.model.families import BY_NAME


def trial_of(model, layer=1):
    recording = record_whole(model, example_inputs(model))
    block = find_block_lists(model, recording)[0].blocks[layer]
    arguments = recording.arguments[block.module, 0]
    return run_trial(model, block.module, block.entrance, block.exit, arguments, RandomParameters())


def sequential(trial, attention, middle, mlp, projections=()):
    first = Addition(trial.entrance, {"attn_out": attention}, middle, middle)
    second = Addition(middle, {"mlp_out": mlp}, trial.exit, trial.exit)
    return Proposal((first, second), projections)


LLAMA_ATTENTION = Tap("layers.1.self_attn.o_proj", "output")
LLAMA_MIDDLE = Tap("layers.1.post_attention_layernorm", "input")
LLAMA_MLP = Tap("layers.1.mlp.down_proj", "output")


@pytest.fixture(scope="module")
def llama():
    return trial_of(BY_NAME["llama"].build())


def test_the_right_proposal(llama):
    projections = (
        Projection("o", "layers.1.self_attn.o_proj", "attn_out"),
        Projection("down", "layers.1.mlp.down_proj", "mlp_out"),
    )
    errors = prove_block(llama, sequential(llama, LLAMA_ATTENTION, LLAMA_MIDDLE, LLAMA_MLP, projections))
    assert set(errors) == {
        "resid_mid = resid_pre + attn_out",
        "resid_post = resid_mid + mlp_out",
        "o projection = attn_out",
        "down projection = mlp_out",
    }
    assert max(errors.values()) <= 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        Tap("layers.1.post_attention_layernorm", "output"),
        Tap("layers.1.input_layernorm", "output"),
        Tap("layers.1.self_attn.o_proj", "output"),
        Tap("layers.1.mlp", "input"),
        Tap("layers.1.mlp.down_proj", "output", factor=1.001),
        Tap("layers.1.mlp.down_proj", "output", scale_parameter="layers.1.input_layernorm.weight"),
    ],
    ids=str,
)
def test_one_wrong_branch_is_refused(llama, wrong):
    with pytest.raises(ProofError, match=r"resid_post = resid_mid \+ mlp_out does not hold: relative error"):
        prove_block(llama, sequential(llama, LLAMA_ATTENTION, LLAMA_MIDDLE, wrong))


def test_swapped_branches_of_a_parallel_block_are_refused_by_their_matrices():
    trial = trial_of(BY_NAME["phi"].build())
    attention, mlp = Tap("layers.1.self_attn.dense", "output"), Tap("layers.1.mlp.fc2", "output")
    projections = (
        Projection("o", "layers.1.self_attn.dense", "attn_out"),
        Projection("down", "layers.1.mlp.fc2", "mlp_out"),
    )

    def proposal(terms):
        return Proposal((Addition(trial.entrance, terms, trial.exit, trial.exit),), projections)

    assert prove_block(trial, proposal({"attn_out": attention, "mlp_out": mlp}))
    with pytest.raises(ProofError, match="o projection = attn_out does not hold"):
        prove_block(trial, proposal({"attn_out": mlp, "mlp_out": attention}))


def test_a_residual_stream_with_a_gap_is_refused(llama):
    only = Addition(LLAMA_MIDDLE, {"mlp_out": LLAMA_MLP}, llama.exit, llama.exit)
    with pytest.raises(ProofError, match="base of mlp_out: two tensors that should be the same differ"):
        prove_block(llama, Proposal((only,)))
    first = Addition(llama.entrance, {"attn_out": LLAMA_ATTENTION}, LLAMA_MIDDLE, LLAMA_MIDDLE)
    with pytest.raises(ProofError, match="output of the block: two tensors"):
        prove_block(llama, Proposal((first,)))


def test_terms_may_not_be_moved_to_another_base(llama):
    """The sum itself would hold; the stream would not run through it."""
    hidden = llama.recording.read(LLAMA_MIDDLE)
    assert prove_sum(
        "post", llama.recording.read(llama.exit), {"m": llama.recording.read(LLAMA_MLP), "b": hidden}
    )
    first = Addition(llama.entrance, {"attn_out": LLAMA_ATTENTION}, LLAMA_MIDDLE, LLAMA_MIDDLE)
    second = Addition(LLAMA_MLP, {"mlp_out": LLAMA_MIDDLE}, llama.exit, llama.exit)
    with pytest.raises(ProofError, match="base of mlp_out: two tensors that should be the same differ"):
        prove_block(llama, Proposal((first, second)))


def test_a_result_that_no_norm_gave_is_refused():
    trial = trial_of(BY_NAME["bert"].build())
    prefix = "encoder.layer.1"
    norm, dense = (
        Tap(f"{prefix}.attention.output.LayerNorm", "input"),
        Tap(f"{prefix}.attention.output.dense", "output"),
    )
    other = f"{prefix}.intermediate.dense"
    first = Addition(trial.entrance, {"attn_out": dense}, norm, Tap(other, "output"), norms=(other,))
    with pytest.raises(ProofError, match=r"intermediate\.dense is no norm"):
        prove_block(trial, Proposal((first, first)))
    first = Addition(trial.entrance, {"attn_out": dense}, norm, Tap(other, "output"))
    with pytest.raises(
        ProofError, match=r"what resid_post is read from: two tensors that should be the same differ"
    ):
        prove_block(trial, Proposal((first, first)))
    with pytest.raises(ProofError, match=r"input of .*LayerNorm: two tensors that should be the same differ"):
        prove_block(trial, Proposal((replace(first, norms=(f"{prefix}.output.LayerNorm",)), first)))


def test_a_sum_says_nothing_about_a_term_that_is_too_small():
    generator = torch.Generator().manual_seed(0)
    pre, branch = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    tiny = branch * 1e-6
    with pytest.raises(ProofError, match=r"mid = pre \+ a says nothing about a: without it the error is"):
        prove_sum("mid = pre + a", pre + tiny, {"pre": pre, "a": tiny})
    with pytest.raises(ProofError, match="says nothing about wrong"):
        prove_sum("mid = pre + wrong", pre + tiny, {"pre": pre, "wrong": tiny.roll(1, 0)})
    with pytest.raises(ProofError, match="does not hold: relative error nan"):
        prove_sum("mid = pre + a", pre * float("nan"), {"pre": pre, "a": branch})


@pytest.mark.parametrize(
    ("name", "change", "site"),
    [
        ("dinov2", {"layerscale_value": 1e-7}, "encoder.layer.1.layer_scale1"),
        ("beit", {"layer_scale_init_value": 1e-7}, "layers.1.attention.o_proj"),
    ],
)
def test_a_layer_scale_at_its_tiny_start_proves_and_refuses_all_the_same(name, change, site):
    """On the model's own weights any branch would pass; in a trial a wrong one does not."""
    model = BY_NAME[name].build(**change)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lambda" in parameter_name:
                parameter.fill_(1e-7)
    anatomy = discover(model)
    assert anatomy.proved is True
    attention = anatomy.tap(Site("vision", 1, "attn_out"))
    assert attention.module == site
    trial = trial_of(model)
    middle, mlp = (anatomy.tap(Site("vision", 1, part)) for part in ("resid_mid", "mlp_out"))
    assert prove_block(trial, sequential(trial, attention, middle, mlp))
    unscaled = replace(attention, scale_parameter=mlp.scale_parameter, module=attention.module)
    wrong = unscaled if unscaled != attention else Tap("encoder.layer.1.attention.o_proj", "output")
    with pytest.raises(ProofError, match=r"resid_mid = resid_pre \+ attn_out does not hold"):
        prove_block(trial, sequential(trial, wrong, middle, mlp))


def test_pattern_times_values():
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(2, 4, 5, 5, generator=generator).softmax(-1)
    value = torch.randn(2, 2, 5, 3, generator=generator)  # two heads of queries share one of values
    z = torch.stack([pattern[:, head] @ value[:, head // 2] for head in range(4)], dim=2).flatten(2)
    assert prove_pattern(pattern, value, z) <= 1e-6
    with pytest.raises(ProofError, match="pattern @ v = z does not hold"):
        prove_pattern(pattern, value.flip(1), z)


def test_a_trial_has_no_parameter_near_zero_among_its_vectors():
    trial = trial_of(BY_NAME["bert"].build())
    vectors = [value for value in trial.recording.parameters.values() if value.ndim == 1]
    assert vectors
    assert min(float(value.abs().min()) for value in vectors) >= 0.5
