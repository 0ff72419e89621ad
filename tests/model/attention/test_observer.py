"""The attention observer: what models compute under it, and that they are left as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as tf

from outlierscope.errors import ProofError
from outlierscope.model.attention import exact as attention_exact
from outlierscope.model.attention.exact import EXACT, WATCHED, blocks, eager_function
from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.model.sites import Site
from tests.model.attention.models import (
    REGISTRY_FAMILIES,
    RETURNED_FAMILIES,
    VOCABULARY,
    bert,
    hand_made_anatomy,
    llama,
    mpnet,
    text_batch,
    tiny,
)
from tests.model.attention.runs import eager, observe, run

FAMILIES = REGISTRY_FAMILIES | RETURNED_FAMILIES


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and of sequences even for tiny inputs."""
    monkeypatch.setitem(attention_exact.BLOCK_ELEMENTS, "cpu", 4 * 7 * 20)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_plain_model(family, padding, small_blocks):
    model, anatomy = FAMILIES[family]()
    stack = next(iter(anatomy.stacks))
    batch = text_batch(padding=padding, stack=stack)
    plain = run(model, batch).last_hidden_state
    settings = [
        (m.config._attn_implementation, m.config._output_attentions)
        for m in model.modules()
        if hasattr(m, "config")
    ]

    seen = []
    with AttentionObserver(model, anatomy, seen.append) as observer:
        observer.begin(batch)
        exact = run(model, batch)
        observer.begin(replace(batch, dear=False))
        fast = run(model, batch)
        observed = len(seen)
    assert torch.equal(fast.last_hidden_state, plain)
    reference = eager(model, batch, output_attentions=True)
    assert torch.equal(exact.last_hidden_state, reference.last_hidden_state)
    assert observed == len(seen) == len(anatomy.stacks[stack].layers)
    assert not observer.unobserved
    # Weights are not collected on the way.
    assert all(item is None for item in exact.get("attentions") or ())
    after = [
        (m.config._attn_implementation, m.config._output_attentions)
        for m in model.modules()
        if hasattr(m, "config")
    ]
    assert after == settings
    assert torch.equal(run(model, batch).last_hidden_state, plain)


def test_queries_do_not_see_the_future():
    model, anatomy = llama()
    batch = text_batch(1, 20)
    changed = text_batch(1, 20)
    changed.inputs["input_ids"] = batch.inputs["input_ids"].clone()
    changed.inputs["input_ids"][:, -1] += 1
    first, _, _ = observe(model, anatomy, batch)
    second, _, _ = observe(model, anatomy, changed)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


@pytest.mark.parametrize("build", [llama, mpnet])
@pytest.mark.parametrize("where", ["consume", "model"])
def test_the_model_is_restored_after_an_exception(build, where):
    model, anatomy = build()
    batch = text_batch(stack=next(iter(anatomy.stacks)))
    plain = run(model, batch).last_hidden_state
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    def fail(_observation):
        raise KeyError("in consume")

    if where == "model":
        batch.inputs["input_ids"] = batch.inputs["input_ids"] + VOCABULARY

    def attempt():
        with AttentionObserver(model, anatomy, fail) as observer:
            observer.begin(batch)
            run(model, batch)

    with pytest.raises((KeyError, IndexError)):
        attempt()
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert model.config._output_attentions is not True
    assert not WATCHED
    assert hooks == sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )
    again = text_batch(stack=next(iter(anatomy.stacks)))
    assert torch.equal(run(model, again).last_hidden_state, plain)


def test_nothing_is_left_from_a_pass_that_failed():
    model, anatomy = llama()
    batch = text_batch()
    seen = []
    with AttentionObserver(model, anatomy, seen.append) as observer:
        observer.begin(batch)
        with pytest.raises(IndexError):
            model(input_ids=batch.inputs["input_ids"] + VOCABULARY)
        observer.begin(batch)
        run(model, batch)
    assert [observation.site.layer for observation in seen] == [0, 1]


def test_two_observers_of_one_model_are_refused():
    model, anatomy = llama()
    with AttentionObserver(model, anatomy, print):
        with (
            pytest.raises(RuntimeError, match="is being observed already"),
            AttentionObserver(model, anatomy, print),
        ):
            pass
        other, map_of_other = llama()
        with AttentionObserver(other, map_of_other, print):
            assert len(WATCHED) == 4
        assert len(WATCHED) == 2


def test_what_is_no_pattern_is_refused(monkeypatch):
    model, anatomy = llama()
    module = tf.models.llama.modeling_llama
    genuine = module.eager_attention_forward

    def doubled(*arguments, **named):
        output, weights = genuine(*arguments, **named)
        return output, weights * 2

    monkeypatch.setattr(module, "eager_attention_forward", doubled)
    with pytest.raises(ProofError, match=r"decoder.0.pattern: rows of the attention pattern sum to 2 \.\. 2"):
        observe(model, anatomy, text_batch())


def test_an_attention_that_cannot_be_cut_is_called_whole(monkeypatch, small_blocks):
    model, anatomy = llama()
    module = tf.models.llama.modeling_llama
    genuine = module.eager_attention_forward
    lengths = []

    def by_length(attention, query, *arguments, **named):
        lengths.append(query.shape[2])
        return genuine(attention, query / query.shape[2], *arguments, **named)

    monkeypatch.setattr(module, "eager_attention_forward", by_length)
    batch = text_batch()
    output, seen, _ = observe(model, anatomy, batch)
    assert lengths[-1] == 20
    assert torch.equal(output, eager(model, batch).last_hidden_state)
    assert len(seen) == 2


def test_a_family_without_eager_attention_is_refused():
    class Stranger(torch.nn.Linear):
        pass

    with pytest.raises(ProofError, match="has no eager_attention_forward for Stranger"):
        eager_function(Stranger(2, 2))


def test_subclasses_use_the_eager_attention_of_their_family():
    class Mine(tf.models.bert.modeling_bert.BertSelfAttention):
        pass

    attention = Mine(tf.BertConfig(hidden_size=8, num_attention_heads=2))
    assert eager_function(attention) is tf.models.bert.modeling_bert.eager_attention_forward


@pytest.mark.parametrize("limit", [1, 50, 4 * 20 * 7, 4 * 20 * 20, 4 * 20 * 45, 10**9, None])
def test_blocks_cover_everything_once(limit):
    query = torch.zeros(3, 4, 20, 2)
    covered = torch.zeros(3, 20, dtype=torch.int64)
    for sequences, queries in blocks(query, query, limit):
        covered[sequences, queries] += 1
        if limit is not None and limit >= 4 * 20:
            assert covered[sequences, queries].numel() * 4 * 20 <= limit
    assert bool((covered == 1).all())


def test_a_pattern_of_another_shape_is_listed_as_not_observed():
    model, anatomy = bert()
    batch = text_batch(stack="encoder")
    wrong = replace(batch, real=batch.real[:, :-1])
    seen = []
    with AttentionObserver(model, anatomy, seen.append) as observer:
        observer.begin(wrong)
        run(model, batch)
    assert not seen
    reasons = {str(site): reason for site, reason in observer.unobserved.items()}
    assert reasons == {
        f"encoder.{layer}.pattern": "its pattern is 3 x 20 queries by 20 keys, "
        "the batch 3 sequences of 19 tokens"
        for layer in range(2)
    }


def test_only_the_stack_of_the_batch_is_observed():
    model = tiny(
        tf.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), tf.T5Model
    )
    anatomy = hand_made_anatomy(
        model, r"encoder\.block\.\d+\.layer\.0\.SelfAttention", "encoder", heads=4, causal=False
    )
    decoder = hand_made_anatomy(model, r"decoder\.block\.\d+\.layer\.0\.SelfAttention", "decoder", heads=4)
    anatomy.stacks |= decoder.stacks
    batch = text_batch(stack="decoder")
    batch.inputs["decoder_input_ids"] = batch.inputs["input_ids"]
    output, seen, _ = observe(model, anatomy, batch)
    assert [str(observation.site) for observation in seen] == ["decoder.0.pattern", "decoder.1.pattern"]
    assert all(observation.causal for observation in seen)
    assert torch.equal(output, eager(model, batch).last_hidden_state)


def test_blocks_of_the_pattern_can_be_saved(small_blocks):
    model, anatomy = llama()
    batch = text_batch()
    kept: dict[int, torch.Tensor] = {}

    def keep(block):
        whole = kept.setdefault(block.site.layer, torch.zeros(3, 4, 20, 20))
        assert block.pattern.numel() <= 4 * 7 * 20
        whole[block.sequences, :, block.queries] = block.pattern

    with AttentionObserver(model, anatomy, lambda _observation: None, on_block=keep) as observer:
        observer.begin(batch)
        run(model, batch)
    attentions = eager(model, batch, output_attentions=True).attentions
    assert torch.equal(kept[0], attentions[0])
    assert torch.equal(kept[1], attentions[1])


def test_a_causal_layer_that_sees_the_future_is_refused():
    model, anatomy = bert()
    for layer in anatomy.stacks["encoder"].layers:
        layer.attention = replace(layer.attention, causal=True)
    with pytest.raises(ProofError, match="causal by its anatomy lets queries see later keys"):
        observe(model, anatomy, text_batch(stack="encoder"))


def test_the_name_is_registered_for_attention_and_for_masks():
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert ALL_ATTENTION_FUNCTIONS[EXACT] is attention_exact.exact_attention
    assert ALL_MASK_ATTENTION_FUNCTIONS[EXACT] is eager_mask


def test_only_the_layers_asked_for_are_looked_at():
    for family in ("llama", "mpnet"):
        model, anatomy = FAMILIES[family]()
        stack = next(iter(anatomy.stacks))
        batch = text_batch(stack=stack)
        wanted = Site(stack, 1, "pattern")
        seen, everything = [], []
        with AttentionObserver(model, anatomy, everything.append) as observer:
            observer.begin(batch)
            run(model, batch)
        with AttentionObserver(model, anatomy, seen.append, sites={wanted}) as observer:
            observer.begin(batch)
            run(model, batch)
        assert [observation.site for observation in seen] == [wanted]
        whole = next(observation for observation in everything if observation.site == wanted)
        assert torch.equal(seen[0].received, whole.received)
        assert not observer.unobserved
