"""Tiny random models of many families, and what their anatomy should look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from torch import nn

TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 2}
IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SMALL_GPT = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}


def build(name: str, config: dict[str, Any], seed: int = 0) -> nn.Module:
    """A tiny model of transformers with random weights."""
    transformers_logging.set_verbosity_error()
    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config)).eval()
    # Fresh biases are zero and fresh gammas one, which would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@dataclass(frozen=True)
class Family:
    """One row of the table: how to build it, and what must be found."""

    name: str
    model: str
    config: dict[str, Any]
    stack: str
    layout: str
    route: str = "registry"
    matrices: str = "q k v o up down"
    key_value_heads: int = 4
    final_norm: bool = True

    def build(self, seed: int = 0, **changes: Any) -> nn.Module:
        return build(self.model, self.config | changes, seed)


GATED = "q k v o gate up down"
FUSED = "qkv o up down"

FAMILIES = [
    Family("bert", "BertModel", TEXT, "encoder", "post-norm", final_norm=False),
    Family("roberta", "RobertaModel", TEXT, "encoder", "post-norm", final_norm=False),
    Family(
        "distilbert",
        "DistilBertModel",
        {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
        "encoder",
        "post-norm",
        final_norm=False,
    ),
    Family(
        "electra", "ElectraModel", TEXT | {"embedding_size": 16}, "encoder", "post-norm", final_norm=False
    ),
    Family("llama", "LlamaModel", GROUPED, "decoder", "pre-norm", matrices=GATED, key_value_heads=2),
    Family(
        "llama-head", "LlamaForCausalLM", GROUPED, "decoder", "pre-norm", matrices=GATED, key_value_heads=2
    ),
    Family("gpt2", "GPT2Model", SMALL_GPT, "decoder", "pre-norm", matrices=FUSED),
    Family(
        "opt",
        "OPTModel",
        TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "decoder",
        "pre-norm",
    ),
    Family(
        "opt-post",
        "OPTModel",
        TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "decoder",
        "post-norm",
        final_norm=False,
    ),
    Family("qwen2", "Qwen2Model", GROUPED, "decoder", "pre-norm", matrices=GATED, key_value_heads=2),
    Family(
        "qwen3",
        "Qwen3Model",
        GROUPED | {"head_dim": 8},
        "decoder",
        "pre-norm",
        matrices=GATED,
        key_value_heads=2,
    ),
    Family("mistral", "MistralModel", GROUPED, "decoder", "pre-norm", matrices=GATED, key_value_heads=2),
    Family("vit", "ViTModel", IMAGE, "vision", "pre-norm"),
    Family("vit-head", "ViTForImageClassification", IMAGE, "vision", "pre-norm"),
    Family("deit", "DeiTModel", IMAGE, "vision", "pre-norm"),
    Family("dinov2", "Dinov2Model", IMAGE | {"mlp_ratio": 2}, "vision", "pre-norm"),
    Family("beit", "BeitModel", IMAGE, "vision", "pre-norm", final_norm=False),
    Family(
        "gemma2",
        "Gemma2Model",
        GROUPED | {"head_dim": 8},
        "decoder",
        "sandwich",
        matrices=GATED,
        key_value_heads=2,
    ),
    Family(
        "gemma3",
        "Gemma3TextModel",
        GROUPED | {"head_dim": 16},
        "decoder",
        "sandwich",
        matrices=GATED,
        key_value_heads=2,
    ),
    Family(
        "glm4",
        "Glm4Model",
        GROUPED | {"head_dim": 8},
        "decoder",
        "sandwich",
        matrices="q k v o gate_up down",
        key_value_heads=2,
    ),
    Family("olmo", "OlmoModel", GROUPED, "decoder", "pre-norm", matrices=GATED, key_value_heads=2),
    Family("olmo2", "Olmo2Model", GROUPED, "decoder", "reordered-norm", matrices=GATED, key_value_heads=2),
    Family("gpt-neox", "GPTNeoXModel", TEXT, "decoder", "parallel", matrices=FUSED),
    Family("phi", "PhiModel", TEXT, "decoder", "parallel"),
    Family("cohere", "CohereModel", GROUPED, "decoder", "parallel", matrices=GATED, key_value_heads=2),
    Family("gpt-j", "GPTJModel", SMALL_GPT | {"rotary_dim": 4}, "decoder", "parallel", "returned"),
    Family(
        "falcon", "FalconModel", TEXT, "decoder", "parallel", "returned", matrices=FUSED, key_value_heads=1
    ),
    Family(
        "falcon-new",
        "FalconModel",
        TEXT | {"num_kv_heads": 2, "new_decoder_architecture": True},
        "decoder",
        "parallel",
        "returned",
        matrices=FUSED,
        key_value_heads=2,
    ),
    Family(
        "falcon-alibi",
        "FalconModel",
        TEXT | {"alibi": True, "multi_query": False, "parallel_attn": False},
        "decoder",
        "pre-norm",
        "returned",
        matrices=FUSED,
    ),
    Family(
        "phi3", "Phi3Model", GROUPED, "decoder", "pre-norm", matrices="qkv o gate_up down", key_value_heads=2
    ),
    Family(
        "granite",
        "GraniteModel",
        GROUPED | {"residual_multiplier": 0.22, "embedding_multiplier": 12.0},
        "decoder",
        "pre-norm",
        matrices=GATED,
        key_value_heads=2,
    ),
    Family("modernbert", "ModernBertModel", TEXT, "encoder", "pre-norm", matrices="qkv o gate_up down"),
    Family("mpnet", "MPNetModel", TEXT, "encoder", "post-norm", "returned", final_norm=False),
    Family(
        "deberta",
        "DebertaModel",
        TEXT | DISENTANGLED,
        "encoder",
        "post-norm",
        "returned",
        matrices=FUSED,
        final_norm=False,
    ),
    Family(
        "deberta-v2",
        "DebertaV2Model",
        TEXT | DISENTANGLED,
        "encoder",
        "post-norm",
        "returned",
        final_norm=False,
    ),
    Family(
        "bloom",
        "BloomModel",
        {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "decoder",
        "pre-norm",
        "returned",
        matrices=FUSED,
    ),
    Family(
        "mpt",
        "MptModel",
        {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "decoder",
        "pre-norm",
        "returned",
        matrices=FUSED,
    ),
    Family(
        "gpt-neo",
        "GPTNeoModel",
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
        "decoder",
        "pre-norm",
        "returned",
    ),
    Family(
        "gpt",
        "OpenAIGPTModel",
        SMALL_GPT,
        "decoder",
        "post-norm",
        "returned",
        matrices=FUSED,
        final_norm=False,
    ),
]

BY_NAME = {family.name: family for family in FAMILIES}
