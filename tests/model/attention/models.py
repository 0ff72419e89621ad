"""Tiny models of many families with hand-made maps of their attention, and batches to feed them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import transformers as tf

from outlierscope.corpus.batch import IMAGE_CLASSES, TEXT_CLASSES, Batch
from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy, Matrix, StackAnatomy, Tap

if TYPE_CHECKING:
    from torch import nn

VOCABULARY = 120


def hand_made_anatomy(
    model: nn.Module,
    pattern: str,
    stack: str,
    *,
    heads: int,
    key_value_heads: int | None = None,
    route: str = "registry",
    causal: bool = True,
    z_reader: str = "",
    value_matrix: tuple[str, str] | None = None,
    window: int | None = None,
) -> Anatomy:
    """One layer for every module whose full name matches ``pattern``, in the order of the module tree."""
    layers = []
    for name, _ in model.named_modules():
        if re.fullmatch(pattern, name) is None:
            continue
        place = AttentionPlace(name, route, heads, key_value_heads or heads, 8, causal, window)
        layer = LayerAnatomy(len(layers), name, "hand-made", attention=place)
        if z_reader:
            layer.taps["z"] = Tap(f"{name.removesuffix('.self')}.{z_reader}", "input")
        if value_matrix:
            role, module = value_matrix
            layer.matrices.append(Matrix(role, f"{name}.{module}", f"{name}.{module}.weight"))
        layers.append(layer)
    assert layers, f"no module matches {pattern}"
    return Anatomy({stack: StackAnatomy(stack, 0, layers)}, proved=True)


def text_batch(
    sequences: int = 3,
    length: int = 20,
    *,
    padding: str = "none",
    stack: str = "decoder",
    dear: bool = True,
    seed: int = 0,
) -> Batch:
    """Random tokens; the n-th sequence has 4 n padding tokens at the ``left`` or ``right``."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(3, VOCABULARY, (sequences, length), generator=generator)
    real = torch.ones(sequences, length, dtype=torch.bool)
    for row in range(sequences):
        if padding == "left":
            real[row, : 4 * row] = False
        if padding == "right" and row:
            real[row, -4 * row :] = False
    classes = torch.randint(1, len(TEXT_CLASSES), (sequences, length), generator=generator).to(torch.uint8)
    classes[torch.arange(sequences), real.long().argmax(1)] = 0
    return Batch(
        number=0,
        stack=stack,
        inputs={"input_ids": token_ids, "attention_mask": real.long()},
        token_ids=token_ids.masked_fill(~real, -1),
        real=real,
        classes=classes,
        class_names=TEXT_CLASSES,
        sequence_ids=torch.arange(sequences),
        documents=[f"test:{row}" for row in range(sequences)],
        dear=dear,
    )


def image_batch(pixels: torch.Tensor, positions: int, *, dear: bool = True) -> Batch:
    sequences = len(pixels)
    classes = torch.full((sequences, positions), 3, dtype=torch.uint8)
    classes[:, 0] = 0
    return Batch(
        number=0,
        stack="vision",
        inputs={"pixel_values": pixels},
        token_ids=torch.full((sequences, positions), -1),
        real=torch.ones(sequences, positions, dtype=torch.bool),
        classes=classes,
        class_names=IMAGE_CLASSES,
        sequence_ids=torch.arange(sequences),
        documents=[f"image:{row}" for row in range(sequences)],
        dear=dear,
    )


def tiny(config: tf.PretrainedConfig, kind: type) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config)
    # The usual initialisation is so small that every pattern is uniform.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name.lower():
                parameter.mul_(6)
    return model.eval()


def llama() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        tf.LlamaModel,
    )
    return model, hand_made_anatomy(model, r"layers\.\d+\.self_attn", "decoder", heads=4, key_value_heads=2)


def bert() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        tf.BertModel,
    )
    return model, hand_made_anatomy(
        model, r"encoder\.layer\.\d+\.attention\.self", "encoder", heads=4, causal=False
    )


def gpt2() -> tuple[nn.Module, Anatomy]:
    model = tiny(tf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4), tf.GPT2Model)
    return model, hand_made_anatomy(model, r"h\.\d+\.attn", "decoder", heads=4)


def t5_encoder() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        tf.T5EncoderModel,
    )
    return model, hand_made_anatomy(
        model, r"encoder\.block\.\d+\.layer\.0\.SelfAttention", "encoder", heads=4, causal=False
    )


def gpt_oss() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.GptOssConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=6,
        ),
        tf.GptOssModel,
    )
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.sinks.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
    return model, hand_made_anatomy(model, r"layers\.\d+\.self_attn", "decoder", heads=4, key_value_heads=2)


def gemma2() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=6,
        ),
        tf.Gemma2Model,
    )
    return model, hand_made_anatomy(model, r"layers\.\d+\.self_attn", "decoder", heads=4, key_value_heads=2)


def albert() -> tuple[nn.Module, Anatomy]:
    """Layers that share one module."""
    model = tiny(
        tf.AlbertConfig(
            vocab_size=VOCABULARY,
            embedding_size=16,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
        ),
        tf.AlbertModel,
    )
    anatomy = hand_made_anatomy(
        model,
        r"encoder\.albert_layer_groups\.0\.albert_layers\.0\.attention",
        "encoder",
        heads=4,
        causal=False,
    )
    only = anatomy.stacks["encoder"].layers[0]
    anatomy.stacks["encoder"].layers = [
        LayerAnatomy(index, only.module, "hand-made", attention=only.attention) for index in range(3)
    ]
    return model, anatomy


REGISTRY_FAMILIES = {
    "llama": llama,
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5_encoder,
    "gpt_oss": gpt_oss,
    "gemma2": gemma2,
    "albert": albert,
}


def mpnet() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.MPNetConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        tf.MPNetModel,
    )
    return model, hand_made_anatomy(
        model,
        r"encoder\.layer\.\d+\.attention\.attn",
        "encoder",
        heads=4,
        route="returned",
        causal=False,
        z_reader="o",
        value_matrix=("v", "v"),
    )


def deberta() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.DebertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
        ),
        tf.DebertaModel,
    )
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.v_bias.normal_()
    return model, hand_made_anatomy(
        model,
        r"encoder\.layer\.\d+\.attention\.self",
        "encoder",
        heads=4,
        route="returned",
        causal=False,
        z_reader="output.dense",
        value_matrix=("qkv", "in_proj"),
    )


def bloom() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        tf.BloomModel,
    )
    return model, hand_made_anatomy(
        model,
        r"h\.\d+\.self_attention",
        "decoder",
        heads=4,
        route="returned",
        z_reader="dense",
        value_matrix=("qkv", "query_key_value"),
    )


def falcon() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.FalconConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            new_decoder_architecture=True,
        ),
        tf.FalconModel,
    )
    return model, hand_made_anatomy(
        model,
        r"h\.\d+\.self_attention",
        "decoder",
        heads=4,
        key_value_heads=2,
        route="returned",
        z_reader="dense",
        value_matrix=("qkv", "query_key_value"),
    )


def gptj() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        tf.GPTJModel,
    )
    return model, hand_made_anatomy(
        model,
        r"h\.\d+\.attn",
        "decoder",
        heads=4,
        route="returned",
        z_reader="out_proj",
        value_matrix=("v", "v_proj"),
    )


def gpt_neo() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["local"], 2]],
            window_size=6,
        ),
        tf.GPTNeoModel,
    )
    return model, hand_made_anatomy(
        model,
        r"h\.\d+\.attn\.attention",
        "decoder",
        heads=4,
        route="returned",
        z_reader="out_proj",
        value_matrix=("v", "v_proj"),
    )


def mpt() -> tuple[nn.Module, Anatomy]:
    model = tiny(
        tf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
        tf.MptModel,
    )
    return model, hand_made_anatomy(
        model,
        r"blocks\.\d+\.attn",
        "decoder",
        heads=4,
        route="returned",
        z_reader="out_proj",
        value_matrix=("qkv", "Wqkv"),
    )


RETURNED_FAMILIES = {
    "mpnet": mpnet,
    "deberta": deberta,
    "bloom": bloom,
    "falcon": falcon,
    "gptj": gptj,
    "gpt_neo": gpt_neo,
    "mpt": mpt,
}
