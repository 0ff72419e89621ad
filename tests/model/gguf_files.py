"""Small .gguf files, written with the gguf package from a tiny model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

from tests.model.tiny import tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

Q8_0 = gguf.GGMLQuantizationType.Q8_0

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Parts of names in transformers and in llama.cpp."""

TOKENS = ["<unk>", "<s>", "</s>", "▁", *(chr(number) for number in range(ord("A"), ord("A") + 60))]


def write_gguf(path: Path, *, architecture="llama", quantization=Q8_0, leave_out=(), **metadata) -> Path:
    """A tiny Llama; matrices quantized, the rest in float32, and a tokenizer with one token per letter."""
    model = tiny_llama()
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(metadata.pop("file_type", gguf.LlamaFileType.MOSTLY_Q8_0))
    for key, value in metadata.items():
        name = key.replace("__", ".")
        (writer.add_uint16 if isinstance(value, int) else writer.add_string)(name, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, stored in stored_tensors(model, quantization).items():
        if name not in leave_out:
            writer.add_tensor(name, stored, raw_dtype=quantization if stored.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_tensors(model, quantization) -> dict[str, np.ndarray]:
    """What the file holds, by llama.cpp's names: raw blocks of matrices, float32 of the rest."""
    stored = {}
    for name, parameter in model.state_dict().items():
        values = parameter.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, heads=values.shape[0] // model.config.head_dim)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        stored[name] = gguf.quantize(values, quantization) if values.ndim == 2 else values
    return stored


def _interleaved(weight, heads):
    """llama.cpp turns neighbouring dims of a head together, transformers the two halves."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def plain_q8_0(weight: np.ndarray) -> np.ndarray:
    """What is left of float32 values after Q8_0: per 32 values a float16 scale and whole numbers up to 127."""
    blocks = weight.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale == 0, 0, blocks / scale)
    whole = np.trunc(np.abs(steps) + 0.5) * np.sign(steps)
    return (whole * scale.astype(np.float16).astype(np.float32)).reshape(weight.shape).astype(np.float32)
