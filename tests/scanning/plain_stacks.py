"""Encoder-decoders passed through plainly, one sequence at a time and so without padding; nothing here reads the code
under test."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

VOCABULARY = 60
START, PADDING, END = 2, 1, 3


def sharpened(model):
    """Such that attention is far from uniform, and norms and layers differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "shared" not in name:
                parameter.normal_(std=1.3 / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_()
    return model.eval()


def t5():
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=START,
        pad_token_id=PADDING,
        eos_token_id=END,
    )
    return sharpened(T5ForConditionalGeneration(config))


def bart():
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        decoder_start_token_id=START,
        pad_token_id=PADDING,
        eos_token_id=END,
    )
    return sharpened(BartForConditionalGeneration(config))


T5 = {
    "encoder": {
        "z": ("encoder.block.{}.layer.0.SelfAttention.o", "input"),
        "attn_out": ("encoder.block.{}.layer.0.SelfAttention.o", "output"),
        "mlp_post": ("encoder.block.{}.layer.1.DenseReluDense.wo", "input"),
        "mlp_out": ("encoder.block.{}.layer.1.DenseReluDense.wo", "output"),
        "resid_post": ("encoder.block.{}", "output"),
        "v": ("encoder.block.{}.layer.0.SelfAttention.v", "output"),
    },
    "decoder": {
        "z": ("decoder.block.{}.layer.0.SelfAttention.o", "input"),
        "attn_out": ("decoder.block.{}.layer.0.SelfAttention.o", "output"),
        "cross_z": ("decoder.block.{}.layer.1.EncDecAttention.o", "input"),
        "cross_out": ("decoder.block.{}.layer.1.EncDecAttention.o", "output"),
        "resid_cross": ("decoder.block.{}.layer.2.layer_norm", "input"),
        "mlp_post": ("decoder.block.{}.layer.2.DenseReluDense.wo", "input"),
        "mlp_out": ("decoder.block.{}.layer.2.DenseReluDense.wo", "output"),
        "resid_post": ("decoder.block.{}", "output"),
        "v": ("decoder.block.{}.layer.0.SelfAttention.v", "output"),
        "cross_v": ("decoder.block.{}.layer.1.EncDecAttention.v", "output"),
    },
}
BART = {
    "encoder": {
        "z": ("model.encoder.layers.{}.self_attn.out_proj", "input"),
        "attn_out": ("model.encoder.layers.{}.self_attn.out_proj", "output"),
        "mlp_post": ("model.encoder.layers.{}.fc2", "input"),
        "mlp_out": ("model.encoder.layers.{}.fc2", "output"),
        "resid_post": ("model.encoder.layers.{}", "output"),
        "v": ("model.encoder.layers.{}.self_attn.v_proj", "output"),
    },
    "decoder": {
        "z": ("model.decoder.layers.{}.self_attn.out_proj", "input"),
        "attn_out": ("model.decoder.layers.{}.self_attn.out_proj", "output"),
        "cross_z": ("model.decoder.layers.{}.encoder_attn.out_proj", "input"),
        "cross_out": ("model.decoder.layers.{}.encoder_attn.out_proj", "output"),
        "resid_cross": ("model.decoder.layers.{}.encoder_attn_layer_norm", "output"),
        "mlp_post": ("model.decoder.layers.{}.fc2", "input"),
        "mlp_out": ("model.decoder.layers.{}.fc2", "output"),
        "resid_post": ("model.decoder.layers.{}", "output"),
        "v": ("model.decoder.layers.{}.self_attn.v_proj", "output"),
        "cross_v": ("model.decoder.layers.{}.encoder_attn.v_proj", "output"),
    },
}
PATTERNS = {
    ("encoder", "pattern"): "encoder_attentions",
    ("decoder", "pattern"): "decoder_attentions",
    ("decoder", "cross_pattern"): "cross_attentions",
}


@dataclass
class Plain:
    """What plain passes show of one stack.

    Attributes:
        sites: site name -> layer -> [T, d] of each sequence.
        token_ids: [T] of each sequence.
        patterns: ``pattern`` or ``cross_pattern`` -> layer -> [H, Q, K] of each sequence.
    """

    sites: dict = field(default_factory=dict)
    token_ids: list = field(default_factory=list)
    patterns: dict = field(default_factory=dict)


def plain_passes(model, places, sequences):
    """Stack -> what it shows, for sequences of token ids that the encoder reads as they are."""
    stacks = {"encoder": Plain(), "decoder": Plain()}
    modules = dict(model.named_modules())
    handles = [
        modules[path.format(layer)].register_forward_hook(hook_into(stacks[stack].sites, name, layer, side))
        for stack, sites in places.items()
        for name, (path, side) in sites.items()
        for layer in range(2)
    ]
    model.set_attn_implementation("eager")
    for ids in sequences:
        read, written = torch.tensor([ids]), torch.tensor([[START, *ids[:-1]]])
        with torch.no_grad():
            output = model(input_ids=read, decoder_input_ids=written, output_attentions=True)
        stacks["encoder"].token_ids.append(read[0])
        stacks["decoder"].token_ids.append(written[0])
        for (stack, name), attribute in PATTERNS.items():
            for layer, pattern in enumerate(getattr(output, attribute)):
                stacks[stack].patterns.setdefault(name, {}).setdefault(layer, []).append(pattern[0])
    for handle in handles:
        handle.remove()
    model.set_attn_implementation("sdpa")
    return stacks


def sequences_of(lengths):
    """Random token ids, one list for each length."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def plain_decoder(model, places, sequences):
    """What a model of one stack shows; ``places``: (site, layer) -> (module, side)."""
    plain = Plain()
    modules = dict(model.named_modules())
    handles = [
        modules[path].register_forward_hook(hook_into(plain.sites, name, layer, side))
        for (name, layer), (path, side) in places.items()
    ]
    for ids in sequences:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        plain.token_ids.append(torch.tensor(ids))
    for handle in handles:
        handle.remove()
    return plain


def hook_into(sites, name, layer, side):
    def hook(_module, inputs, output):
        tensor = inputs[0] if side == "input" else output
        tensor = tensor[0] if isinstance(tensor, tuple) else tensor
        sites.setdefault(name, {}).setdefault(layer, []).append(tensor.detach()[0])

    return hook
