"""Tiny configurations: the smallest model of any family, made from its configuration class without naming one.

What a number means is told by the name of its attribute. Widths are brought to ``WIDTH``, heads to ``HEADS``,
whatever is proportional to them keeps its proportion, and counts of blocks are cut to the shortest run in
which every kind of block appears.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig, PreTrainedModel

WIDTH, HEADS, HEAD_WIDTH = 64, 4, 16
VOCABULARY = 128
BLOCKS = 2

STREAM = re.compile(
    r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|model_dim|hidden_channels|text_dim)|dim|width|"
    r"embedding_size|d_hidden|word_embed_proj_dim|attention_hidden_size|lru_width|hidden_width|embedding_dim"
)
NO_STREAM = re.compile(r"(mlp|ffn|ff|moe|expert|intermediate|bottleneck|patch|vq|codebook|iou|fpn|audio_proj)_.*")
HEAD_COUNT = re.compile(r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|heads|nhead)")
KEY_VALUE_HEADS = re.compile(r".*(key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|multi_query_group_num)")
HEAD_SIZE = re.compile(
    r"(.*_)?(head_dim|head_size|d_kv|kv_channels|attention_head_size|rotary_dim|attention_key_size|dim_head)"
)
VOCABULARIES = re.compile(r"(.*_)?vocab_size(_.*)?|(.*_)?n_vocab")
EXPERTS = re.compile(r"(n_|num_|moe_num_|num_local_|n_routed_|moe_)*experts|num_routed_experts")
CHOSEN_EXPERTS = re.compile(r".*(experts_per_tok|experts_per_token|topk|top_k|selected_experts)|moe_k")
EXPERT_GROUPS = re.compile(r"n_group|topk_group|num_expert_group")
COUNT_OF_BLOCKS = re.compile(r"(.*_)?(num_hidden_layers|n_layers?|num_layers|layers|depth|num_blocks|num_hidden_blocks)")
NO_BLOCKS = re.compile(r".*(share|adapter|conv|first|dense|skip|window|drop|feature|nextn|mtp|kv).*")
TOKEN = re.compile(r".*(token_id|token_index|_id)")
POSITIONS = re.compile(r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length)")
INNER = re.compile(
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|n_inner|ffn_hidden_size|feedforward_channels|inner_dim|ffn_size|"
    r"dim_feedforward|expert_dim|proj_dim|projection_dim|projector_dim|lora_rank|mlp_hidden_size|bottleneck_size|"
    r"hidden_size_per_layer_input|intermediate_dim|feedforward_dim)"
)


MAXIMUM = 300_000_000
"""Parameters of the largest model that is built."""


class NotBuilt(Exception):  # noqa: N818  # an outcome that the table reports
    """No tiny model of a family can be made, and why."""


def tiny_model(family: str) -> PreTrainedModel:
    """A model of one family, as small as its configuration class lets it be made, its weights as transformers draws them.

    Raises:
        NotBuilt: where that cannot be done, with the reason in one line.
    """
    first: Exception | None = None
    make: Callable[[PreTrainedConfig], PreTrainedModel] = AutoModel.from_config
    try:
        kind = CONFIG_MAPPING[family]
        described = kind().to_dict()
    except Exception as error:  # of any configuration class
        raise NotBuilt(f"its default configuration is incomplete ({_reason(error)})") from error
    for how in ({}, {"cut": False}, {"narrow": False}, {"cut": False, "narrow": False}):
        try:
            config = kind(**tiny_values(described, **how))
            with torch.device("meta"):
                blank = make(config)
            if sum(parameter.numel() for parameter in blank.parameters()) > MAXIMUM:
                raise NotBuilt(f"it has more than {MAXIMUM:,} parameters even when made tiny")
            model = make(config)
            model.float().eval()  # type: ignore[no-untyped-call]
            return model
        except ImportError as error:
            raise NotBuilt(f"a package is missing ({_reason(error)})") from error
        except Exception as error:  # of any model class: another way to make it tiny may do
            first = first or error
    if isinstance(first, NotBuilt):
        raise first
    raise NotBuilt(f"no tiny configuration builds ({_reason(first)})") from first


def _reason(error: Exception | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


DERIVED = ("model_type", "transformers_version", "architectures", "stage_names", "out_features", "out_indices", "per_layer_config")
"""What a configuration says of itself that its class works out anew."""


def tiny_values(described: dict[str, Any], *, cut: bool = True, narrow: bool = True) -> dict[str, Any]:
    """Keyword arguments of a tiny configuration, from what the default one says of itself.

    Args:
        described: ``config.to_dict()`` of a default configuration; nested ones are made tiny as well.
        cut: whether it gets few blocks.
        narrow: whether widths and heads are made small.
    """
    described = {name: value for name, value in described.items() if name not in DERIVED}
    stream = _first(described, STREAM, NO_STREAM)
    heads = _first(described, HEAD_COUNT)
    head_size = _first(described, HEAD_SIZE) or (stream // heads if stream and heads else 0)
    layers, blocks = _blocks(described) if cut else (0, 0)
    values: dict[str, Any] = {}
    for name, value in described.items():
        if isinstance(value, dict):
            nested = "model_type" in value
            values[name] = tiny_values(value, cut=cut, narrow=narrow) if nested else value
            if nested:
                values[name]["model_type"] = value["model_type"]
        elif isinstance(value, list) and layers and len(value) == layers and blocks < layers:
            values[name] = value[:blocks]
        elif isinstance(value, list) and "section" in name and head_size:
            values[name] = _parts_of(HEAD_WIDTH // 2, value)
        elif isinstance(value, bool) or not isinstance(value, int):
            values[name] = value
        else:
            small = _tiny(name, value, stream, heads, head_size, layers, blocks)
            values[name] = small if (narrow or not _is_width(name)) and (cut or not _is_depth(name)) else value
    return values


def _tiny(name: str, value: int, stream: int, heads: int, head_size: int, layers: int, blocks: int) -> int:
    if value <= 0:
        return value
    if VOCABULARIES.fullmatch(name):
        return min(value, VOCABULARY)
    if TOKEN.fullmatch(name):
        return value if value < VOCABULARY - 28 else VOCABULARY - 28 + value % 28
    if EXPERT_GROUPS.fullmatch(name):
        return 1
    if EXPERTS.fullmatch(name):
        return min(value, 4)
    if CHOSEN_EXPERTS.fullmatch(name):
        return min(value, 2)
    if KEY_VALUE_HEADS.fullmatch(name):
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    if HEAD_COUNT.fullmatch(name):
        return min(value, HEADS)
    if HEAD_SIZE.fullmatch(name):
        return max(2, round(value * HEAD_WIDTH / head_size)) if head_size else value
    if POSITIONS.fullmatch(name):
        return min(value, 512)
    if COUNT_OF_BLOCKS.fullmatch(name) and not NO_BLOCKS.fullmatch(name):
        return blocks if value == layers else min(value, BLOCKS)
    if STREAM.fullmatch(name) and not NO_STREAM.fullmatch(name):
        return min(value, WIDTH)
    if INNER.fullmatch(name) and stream:
        return max(8, min(value, round(value * WIDTH / stream / 8) * 8))
    return value


def _first(described: dict[str, Any], pattern: re.Pattern[str], unless: re.Pattern[str] | None = None) -> int:
    found = [
        value
        for name, value in described.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
        and pattern.fullmatch(name) and not (unless and unless.fullmatch(name))
    ]
    preferred = [described[name] for name in ("hidden_size", "d_model", "num_attention_heads", "head_dim") if pattern.fullmatch(name) and isinstance(described.get(name), int)]
    return (preferred or found or [0])[0]


def _blocks(described: dict[str, Any]) -> tuple[int, int]:
    """How many blocks the default has and the tiny one gets."""
    layers = _first(described, COUNT_OF_BLOCKS, NO_BLOCKS)
    if isinstance(described.get("num_hidden_layers"), int):
        layers = described["num_hidden_layers"]
    needed = BLOCKS
    for name, value in described.items():
        if isinstance(value, list) and len(value) == layers and ("type" in name or "pattern" in name):
            kinds = {str(item) for item in value}
            needed = max(needed, next(n for n in range(1, layers + 1) if {str(i) for i in value[:n]} == kinds))
    for name, value in described.items():
        if isinstance(value, int) and not isinstance(value, bool) and re.search(r"period|interval|_freq|first_k_dense|every_n|step$", name) and 1 < value <= 8:
            needed = max(needed, min(value, layers))
    return layers, min(needed, layers) if layers else 0


def _parts_of(total: int, parts: list[int]) -> list[int]:
    whole = sum(parts) or 1
    scaled = [max(1, part * total // whole) for part in parts]
    scaled[0] += total - sum(scaled)
    return scaled


def _is_width(name: str) -> bool:
    return any(p.fullmatch(name) for p in (STREAM, INNER, HEAD_COUNT, KEY_VALUE_HEADS, HEAD_SIZE))


def _is_depth(name: str) -> bool:
    return COUNT_OF_BLOCKS.fullmatch(name) is not None
