"""Roles of a checkpoint's tensors by their names, for when no model is built and names are all there is.

The tables are of words that many families share, not of families. What no word tells has no role and is
listed as left out. A loaded model does not need this: its roles are proved from data flow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

WORDS = {
    "q": "q_proj query q q_lin wq query_proj to_q q_linear in_proj_q q_proj_weight",
    "k": "k_proj key k k_lin wk key_proj to_k k_linear in_proj_k k_proj_weight",
    "v": "v_proj value v v_lin wv value_proj to_v v_linear in_proj_v v_proj_weight",
    "qkv": "qkv_proj query_key_value c_attn wqkv qkv w_pack qkv_lin in_proj in_proj_weight",
    "o": "o_proj out_proj o out_lin to_out attn_out",
    "gate": "gate_proj w1 wi_0",
    "up": "up_proj fc1 c_fc wi wi_1 w3 dense_h_to_4h lin1 fc_in linear1 linear_1 ffn layer_1 intermediate "
    "intermediate_dense",
    "gate_up": "gate_up_proj",
    "down": "down_proj fc2 w2 dense_4h_to_h lin2 fc_out linear2 linear_2 ffn_output layer_2 output_dense",
}
"""The last word of a matrix's name (in lower case) where that alone tells its role."""

BY_BLOCK = {
    "dense": {"attention": "o", "mlp": "down", "intermediate": "up"},
    "c_proj": {"attention": "o", "mlp": "down"},
    "proj": {"attention": "o"},
    "wo": {"attention": "o", "mlp": "down"},
    "output": {"mlp": "down"},
}
"""Words that mean another matrix in attention than in an MLP."""

AMBIGUOUS = {
    "in_proj": "attention",
    "in_proj_weight": "attention",
    "out_proj": "attention",
    "attn_out": "attention",
}
"""Words that count only where the name speaks of attention: state-space mixers use them too."""

ATTENTION = re.compile(r"attn|attention|(^|_)att(_|$)")
MLP = re.compile(r"mlp|ffn|feed_?forward|densereludense|experts?(_|$)|^moe|^ff$")
NORM = re.compile(r"norm|(^|_)ln(_|\d|$)|layernorm|rmsnorm")
ENDINGS = ("weight", "bias", "gamma", "beta")


@dataclass(frozen=True)
class TensorRole:
    """What a tensor's name tells.

    Attributes:
        stack: ``decoder``, ``encoder``, ``vision`` or ``audio``; ``None`` when the name does not tell.
        layer: the first number in the name that is no expert's.
        role: as in ``Matrix.role``; biases of linear layers have none.
        module: the name without its last part.
        expert: number of the expert, where each expert has tensors of its own.
    """

    stack: str | None
    layer: int | None
    role: str | None
    module: str
    expert: int | None = None


def read_tensor_name(name: str, dimensions: int) -> TensorRole:
    """The role of a tensor with this name and number of dimensions.

    >>> read_tensor_name("model.layers.3.mlp.down_proj.weight", 2).role
    'down'
    >>> read_tensor_name("encoder.layer.11.attention.output.dense.weight", 2).role
    'o'
    >>> read_tensor_name("encoder.layer.11.output.dense.weight", 2).role
    'down'
    >>> read_tensor_name("h.0.ln_1.bias", 1).role
    'norm'
    """
    parts = name.split(".")
    module = parts[:-1] if parts[-1] in ENDINGS else parts
    layer, expert = None, None
    for before, part in pairwise(parts):
        if part.isdecimal():
            if before.endswith("experts"):
                expert = int(part)
            elif layer is None:
                layer = int(part)
    return TensorRole(
        _stack([part.lower() for part in parts]),
        layer,
        _role(name, [part.lower() for part in module if not part.isdecimal()], dimensions),
        ".".join(parts[:-1]),
        expert,
    )


def _role(name: str, words: list[str], dimensions: int) -> str | None:
    if not words:
        return None
    if dimensions == 1:
        return "norm" if NORM.search(words[-1]) and name.endswith(ENDINGS) else None
    if name.endswith("bias"):
        return None
    if dimensions != 2 and not (dimensions == 3 and any(word.endswith("experts") for word in words)):
        return None
    last, around = words[-1], words[:-1]
    if name.split(".")[-2:][0] == "Wi":  # fused gate and up, as against the plain ``wi``
        return "gate_up"
    blocks = BY_BLOCK.get(last)
    if blocks:
        return blocks.get(_block(around))
    if last in AMBIGUOUS and _block(around) != AMBIGUOUS[last]:
        return None
    return next((role for role, known in WORDS.items() if last in known.split()), None)


def _block(around: list[str]) -> str:
    """Which part of a block the words before the last one speak of; the nearest one decides."""
    for word in reversed(around):
        if ATTENTION.search(word):
            return "attention"
        if word == "intermediate":
            return "intermediate"
        if MLP.search(word):
            return "mlp"
    # BERT's second half: ``output.dense`` right under the layer.
    return "mlp" if around and around[-1] == "output" else ""


def _stack(words: list[str]) -> str | None:
    for word in words:
        if "vision" in word or "visual" in word or word in ("vit", "image_encoder"):
            return "vision"
        if "audio" in word or "speech" in word:
            return "audio"
        if word in ("decoder", "encoder"):
            return word
    return None
