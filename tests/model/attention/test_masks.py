"""Families that compute with boolean masks, against what they compute by themselves."""

import math

import pytest
import torch

from outlierscope.model.attention.implementation import eager_attention
from outlierscope.model.attention.masks import as_added, boolean_mask, without_blind
from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.discovery.whole_pass import record_whole
from tests.model.attention.models import text_batch
from tests.model.families import BY_NAME
from tests.model.tiny_audio import tiny_streaming


@pytest.mark.parametrize("given", ["boolean", "infinite"])
def test_a_mask_in_any_format_does_what_sdpa_makes_of_it(given):
    torch.manual_seed(0)
    visible = torch.rand(2, 1, 5, 5) > 0.4
    visible[1, 0, 3] = False
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()  # [B, H, T, d_head]
    mask = visible if given == "boolean" else torch.where(visible, torch.randn(2, 4, 5, 5), -math.inf)
    added, blind = as_added(mask, torch.float32)
    pattern = (query @ key.mT / math.sqrt(8) + added).softmax(-1)
    output = without_blind((pattern @ value).transpose(1, 2), blind)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert (output - expected.transpose(1, 2)).abs().max() < 1e-6
    assert output[1, 3].eq(0).all()
    assert not output[0].eq(0).any()


def test_no_mask_hides_nothing():
    output = torch.randn(1, 2, 3, 4)
    assert as_added(None, torch.float32) == (None, None)
    assert without_blind(output, None) is output
    causal = boolean_mask(1, 3, 3)
    assert causal is not None
    assert causal.tolist() == [[[[True, False, False], [True, True, False], [True, True, True]]]]


def test_the_format_is_the_one_that_gives_what_the_model_gives_by_itself():
    """transformers 5.23: the eager attention of this family shows a position what it should hide, and gives NaN."""
    model, _ = tiny_streaming()
    inputs = {"input_features": torch.randn(2, 96, 80)}
    assert record_whole(model, inputs).mask == "boolean"
    llama = BY_NAME["llama"].build()
    assert record_whole(llama, example_inputs(llama)).mask == "added"
    anatomy = discover(model)
    assert anatomy.proved
    assert {layer.attention.mask for layer in anatomy.stacks["audio"].layers} == {"boolean"}
    with eager_attention(model, anatomy):  # it would compute something else
        assert model.config._attn_implementation == "sdpa"


def test_observed_attention_sees_what_the_models_own_sees():
    model, _ = tiny_streaming()
    anatomy = discover(model)
    features = torch.randn(2, 88, 80)  # 12 positions
    heard = torch.ones(2, 88, dtype=torch.long)
    heard[1, 32:] = 0  # 5 positions
    batch = text_batch(2, 12, stack="audio")
    values, reduced, blocks = [], [], []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _inputs, v: values.append(v))
        for layer in model.layers
    ]
    inputs = {"input_features": features, "attention_mask": heard}
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        values.clear()
        with AttentionObserver(model, anatomy, reduced.append, on_block=blocks.append) as observer:
            observer.begin(batch)
            observed = model(**inputs).last_hidden_state
        for hook in hooks:
            hook.remove()
        z = []
        for layer in model.layers:
            handle = layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _module, given: z.append(given[0])
            )
            model(**inputs)
            handle.remove()
    assert (observed - expected).abs().max() < 1e-5 * expected.abs().max()
    position = torch.arange(12)
    # Chunks of 2 positions; each sees its own and the two before it.
    before = position[:, None] // 2 - position[None] // 2
    visible = (before >= 0) & (before <= 2)
    for layer, block in enumerate(blocks):
        v = values[layer].view(2, 12, 4, 8).transpose(1, 2)
        product = (block.pattern @ v).transpose(1, 2).flatten(2)  # [B, T, d]
        for sequence, length in ((0, 12), (1, 5)):
            assert (product - z[layer])[sequence, :length].abs().max() < 1e-5
            seen = block.pattern[sequence, :, :length].gt(0).any(0)
            assert torch.equal(seen[:, :length], visible[:length, :length])
            assert not seen[:, length:].any()
    assert not observer.unobserved
    assert len(reduced) == len(blocks) == 2
