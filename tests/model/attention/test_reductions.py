"""Every reduction of attention is what the whole pattern says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from outlierscope.model.attention import exact as attention_exact
from tests.model.attention.models import (
    REGISTRY_FAMILIES,
    RETURNED_FAMILIES,
    gpt2,
    gpt_neo,
    gpt_oss,
    llama,
    mpnet,
    text_batch,
)
from tests.model.attention.runs import eager, observe

FAMILIES = REGISTRY_FAMILIES | RETURNED_FAMILIES


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and of sequences even for tiny inputs."""
    monkeypatch.setitem(attention_exact.BLOCK_ELEMENTS, "cpu", 4 * 7 * 20)


def direct(attentions, real, classes, sees):
    """Every reduction from a whole pattern [B, H, T, T], one sequence and query at a time."""
    batch, heads, length, _ = attentions.shape
    result = {
        "received": np.zeros((batch, heads, length)),
        "seen_by": np.zeros((batch, length), dtype=int),
        "visible": np.zeros((batch, length), dtype=int),
        "entropy": np.zeros((batch, heads, length)),
        "class_mass": np.zeros((batch, heads, length, 5)),
        "row_sums": np.zeros((batch, heads, length)),
    }
    for b in range(batch):
        for i in np.flatnonzero(real[b]):
            for k in np.flatnonzero(real[b]):
                if sees(i, k):
                    result["seen_by"][b, k] += 1
                    result["visible"][b, i] += 1
            for h in range(heads):
                row = attentions[b, h, i].astype(np.float64)
                result["received"][b, h] += np.where(real[b], row, 0)
                result["entropy"][b, h, i] = -(row[row > 0] * np.log(row[row > 0])).sum()
                result["row_sums"][b, h, i] = row.sum()
                result["class_mass"][b, h, i] = np.bincount(classes[b, real[b]], row[real[b]], 5)
    return result


def sees(family, layer):
    if family in ("bert", "albert", "t5", "mpnet", "deberta"):
        return lambda i, k: True
    sliding = {"gemma2": layer == 0, "gpt_oss": layer == 0, "gpt_neo": True}.get(family, False)
    return lambda i, k: k <= i and (not sliding or i - k < 6)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reductions_are_those_of_the_whole_pattern(family, padding, small_blocks):
    model, anatomy = FAMILIES[family]()
    stack = next(iter(anatomy.stacks))
    batch = text_batch(padding=padding, stack=stack)
    _, seen, _ = observe(model, anatomy, batch)
    attentions = eager(model, batch, output_attentions=True).attentions
    for layer, observation in enumerate(seen):
        assert (observation.site.stack, observation.site.layer) == (stack, layer)
        assert observation.causal == (not sees(family, layer)(0, 19))
        expected = direct(
            attentions[layer].numpy(), batch.real.numpy(), batch.classes.numpy(), sees(family, layer)
        )
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(observation, name).numpy(), value, atol=2e-5, err_msg=name)
        assert observation.finite.all()


def values_of(model, family):
    """Name of the projection whose output is v, where it is one of its own."""
    return {"llama": "layers.{}.self_attn.v_proj", "bert": "encoder.layer.{}.attention.self.value"}[
        family
    ].format


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_norms_of_values_and_of_what_heads_write(family):
    model, anatomy = FAMILIES[family]()
    batch = text_batch(padding="right", stack=next(iter(anatomy.stacks)))
    caught = {}
    for layer in range(2):
        name = values_of(model, family)(layer)
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, layer=layer: caught.__setitem__(layer, out)
        )
    _, seen, _ = observe(model, anatomy, batch)
    attentions = eager(model, batch, output_attentions=True).attentions
    for layer, observation in enumerate(seen):
        groups = observation.value_norms.shape[1]
        values = caught[layer].unflatten(-1, (groups, -1)).transpose(1, 2)  # [B, G, T, d_head]
        real = batch.real
        torch.testing.assert_close(observation.value_norms, values.norm(dim=-1) * real[:, None])
        for row in range(3):
            mean = values[row][:, real[row]].mean(1).norm(dim=-1)
            torch.testing.assert_close(observation.mean_value_norms[row], mean)
        outputs = attentions[layer] @ values.repeat_interleave(4 // groups, 1)  # [B, H, T, d_head]
        torch.testing.assert_close(
            observation.output_norms, outputs.norm(dim=-1) * real[:, None], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("family", RETURNED_FAMILIES)
def test_values_outside_of_the_registry_are_proved(family):
    model, anatomy = RETURNED_FAMILIES[family]()
    batch = text_batch(stack=next(iter(anatomy.stacks)))
    _, seen, _ = observe(model, anatomy, batch)
    attentions = eager(model, batch, output_attentions=True).attentions
    assert all(observation.value_norms is not None for observation in seen)
    for layer, observation in enumerate(seen):
        # |A @ V| <= A |V|, with equality where a query sees one key only.
        groups = observation.value_norms.shape[1]
        norms = observation.value_norms.repeat_interleave(4 // groups, 1)  # [B, H, T]
        bound = (attentions[layer] @ norms[..., None])[..., 0]
        assert bool((observation.output_norms <= bound + 1e-4).all())
        if observation.causal:
            torch.testing.assert_close(observation.output_norms[..., 0], norms[..., 0], rtol=1e-4, atol=1e-4)


def test_without_z_there_are_no_norms_outside_of_the_registry():
    model, anatomy = mpnet()
    for layer in anatomy.stacks["encoder"].layers:
        del layer.taps["z"]
    _, seen, _ = observe(model, anatomy, text_batch(stack="encoder"))
    assert [observation.value_norms for observation in seen] == [None, None]
    assert [observation.output_norms for observation in seen] == [None, None]
    assert seen[0].received.sum() > 0


def test_a_wrong_value_projection_is_refused():
    model, anatomy = mpnet()
    for layer in anatomy.stacks["encoder"].layers:
        layer.matrices = [
            replace(matrix, module=matrix.module.removesuffix("v") + "k") for matrix in layer.matrices
        ]
    _, seen, _ = observe(model, anatomy, text_batch(stack="encoder"))
    assert [observation.value_norms for observation in seen] == [None, None]
    assert all(observation.output_norms is not None for observation in seen)


def test_the_corner_is_what_a_pass_over_64_tokens_shows():
    model, anatomy = llama()
    long = text_batch(2, 100)
    short = text_batch(2, 64)
    short.inputs["input_ids"] = long.inputs["input_ids"][:, :64]
    _, from_long, _ = observe(model, anatomy, long)
    _, from_short, _ = observe(model, anatomy, short)
    for one, other in zip(from_long, from_short, strict=True):
        torch.testing.assert_close(one.corner_received, other.received)
        assert torch.equal(one.corner_seen_by, other.seen_by)


def test_the_corner_counts_from_the_first_real_token():
    model, anatomy = gpt2()
    batch = text_batch(2, 100)
    shifted = text_batch(2, 100)
    shifted.inputs["input_ids"] = batch.inputs["input_ids"].roll(30, 1)
    shifted.real[:, :30] = False
    shifted.inputs["attention_mask"] = shifted.real.long()
    shifted.inputs["position_ids"] = (shifted.real.cumsum(1) - 1).clamp_min(0)
    _, plain, _ = observe(model, anatomy, batch)
    _, padded, _ = observe(model, anatomy, shifted)
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one.corner_received, other.corner_received, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.corner_seen_by, other.corner_seen_by)


def test_sinks_in_the_softmax_take_their_share():
    model, anatomy = gpt_oss()
    _, seen, _ = observe(model, anatomy, text_batch())
    assert float(seen[0].row_sums.max()) < 1
    assert float(seen[0].row_sums.min()) > 0


def test_sliding_windows_outside_of_the_registry_are_seen():
    model, anatomy = gpt_neo()
    assert anatomy.stacks["decoder"].layers[0].attention.window is None
    _, seen, _ = observe(model, anatomy, text_batch())
    assert seen[0].visible[0].tolist() == [1, 2, 3, 4, 5] + [6] * 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_reduced_in_float32(dtype):
    model, anatomy = llama()
    model = model.to(dtype)
    batch = text_batch(padding="left")
    output, seen, _ = observe(model, anatomy, batch)
    reference = eager(model, batch, output_attentions=True)
    assert torch.equal(output, reference.last_hidden_state)
    for layer, observation in enumerate(seen):
        weights = reference.attentions[layer].float() * batch.real[:, None, :, None]
        assert observation.received.dtype == torch.float32
        torch.testing.assert_close(
            observation.received, weights.sum(2) * batch.real[:, None], rtol=1e-5, atol=1e-6
        )


def test_sequences_with_nan_are_marked():
    model, anatomy = llama()
    batch = text_batch()
    embeddings = model.embed_tokens(batch.inputs["input_ids"])
    embeddings[1, 7] = float("nan")
    batch.inputs = {"inputs_embeds": embeddings.detach()}
    _, seen, _ = observe(model, anatomy, batch)
    assert [observation.finite.tolist() for observation in seen] == [[True, False, True]] * 2
