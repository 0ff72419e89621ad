"""The observer on real models: what they compute is bit for bit what they compute without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.model.discovery.discover import discover
from tests.model.attention.models import hand_made_anatomy, image_batch, text_batch


def check(model, anatomy, batch):
    """Exact equals eager and fast equals the model as it came, both bit for bit; returns the observations."""
    seen = []

    def output():
        with torch.inference_mode():
            return model(**batch.inputs).last_hidden_state

    plain = output()
    with AttentionObserver(model, anatomy, seen.append) as observer:
        observer.begin(batch)
        exact = output()
        observer.begin(replace(batch, dear=False))
        fast = output()
    assert torch.equal(fast, plain)
    came_with = model.config._attn_implementation
    model.set_attn_implementation("eager")
    assert torch.equal(exact, output())
    model.set_attn_implementation(came_with)
    assert torch.equal(plain, output())
    return seen


def packed(folder, text, sequences, length, *, start, end=()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    room = length - len(start) - len(end)
    return torch.tensor([[*start, *ids[n * room : (n + 1) * room], *end] for n in range(sequences)])


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_minilm(minilm_folder, shared_data, padding):
    model = AutoModel.from_pretrained(minilm_folder).eval()
    batch = text_batch(2, 333, padding=padding, stack="encoder")
    text = shared_data("text", "darwin.txt").read_text(encoding="utf-8")[:8000]
    batch.inputs["input_ids"] = packed(minilm_folder, text, 2, 333, start=(101,), end=(102,))
    anatomy = hand_made_anatomy(
        model, r"encoder\.layer\.\d+\.attention\.self", "encoder", heads=12, causal=False
    )
    seen = check(model, anatomy, batch)
    assert len(seen) == 6


def test_stories260k(shared_model, shared_data):
    folder = shared_model("stories260k")
    model = AutoModel.from_pretrained(folder).eval()
    batch = text_batch(3, 512)
    text = shared_data("text", "darwin.txt").read_text(encoding="utf-8")[:8000]
    batch.inputs["input_ids"] = packed(folder, text, 3, 512, start=(1,))
    anatomy = hand_made_anatomy(model, r"layers\.\d+\.self_attn", "decoder", heads=8, key_value_heads=4)
    seen = check(model, anatomy, batch)
    assert all(observation.causal and observation.value_norms.shape == (3, 4, 512) for observation in seen)


def test_vit_tiny(shared_model):
    model = AutoModel.from_pretrained(shared_model("vit-tiny-patch16-224")).eval()
    batch = image_batch(torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)), 197)
    anatomy = discover(model)
    seen = check(model, anatomy, batch)
    assert [str(observation.site) for observation in seen] == [
        f"vision.{layer}.pattern" for layer in range(12)
    ]
    assert seen[0].class_mass.shape == (3, 3, 197, 6)
    torch.testing.assert_close(seen[0].row_sums, torch.ones(3, 3, 197))


@pytest.mark.slow
def test_gemma_gives_its_attention_to_bos(gemma_folder, shared_data):
    model = AutoModel.from_pretrained(gemma_folder, dtype=torch.float32).eval()
    batch = text_batch(2, 256)
    text = shared_data("text", "darwin.txt").read_text(encoding="utf-8")[:6000]
    batch.inputs = {"input_ids": packed(gemma_folder, text, 2, 256, start=(2,)), "use_cache": False}
    anatomy = discover(model)
    seen = check(model, anatomy, batch)
    assert len(seen) == 18
    to_first = torch.stack([observation.received[:, :, 0] / 256 for observation in seen])  # [layers, B, H]
    assert float(to_first.mean(1).max()) > 0.6
    assert float((to_first.mean(1) > 0.3).float().mean()) > 0.4
