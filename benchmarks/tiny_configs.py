"""Tiny configurations: the smallest model of any family, made from its configuration class without naming one.

What a number means is told by the name of its attribute. Widths are brought to ``WIDTH``, heads to ``HEADS``,
whatever is proportional to them keeps its proportion, and counts of blocks are cut to the shortest run in
which every kind of block appears.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

WIDTH, HEADS, HEAD_WIDTH = 64, 4, 16
VOCABULARY = 128
BLOCKS = 2
PATCHES, LEAST_SIDE = 16, 128
"""Patches along either side of an image, and the least pixels: stages of a pyramid halve either several times."""

STREAM = re.compile(
    r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|model_dim|hidden_channels|text_dim)|dim|width|"
    r"embedding_size|d_hidden|emb_dim|d_latents|word_embed_proj_dim|lru_width|hidden_width|embedding_dim"
)
NO_STREAM = re.compile(
    r"(mlp|ffn|ff|moe|expert|intermediate|bottleneck|patch|vq|codebook|iou|fpn|audio_proj)_.*|attention_hidden_size"
)
HEAD_COUNT = re.compile(r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|heads|nhead)")
KEY_VALUE_HEADS = re.compile(r".*(key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|multi_query_group_num)")
HEAD_SIZE = re.compile(
    r"(.*_)?(head_dim|head_size|d_kv|kv_channels|attention_head_size|rotary_dim|attention_key_size|dim_head)"
)
VOCABULARIES = re.compile(r"(.*_)?vocab_size(_.*)?|(.*_)?n_vocab|n_words|(.*_)?group_vocab")
EXPERTS = re.compile(r"(n_|num_|moe_num_|num_local_|n_routed_|moe_)*experts|num_routed_experts")
CHOSEN_EXPERTS = re.compile(r".*(experts_per_tok|experts_per_token|topk|top_k|selected_experts)|moe_k")
EXPERT_GROUPS = re.compile(r"n_group|topk_group|num_expert_group")
COUNT_OF_BLOCKS = re.compile(
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|layers|depth|num_blocks|num_hidden_blocks)"
)
NO_BLOCKS = re.compile(r".*(share|adapter|conv|first|dense|skip|window|drop|feature|nextn|mtp|kv).*")
BY_STAGE = re.compile(
    r"hidden_sizes|embed_dims?|embed_dim_per_stage|dim_embed|widths|num_attention_heads_per_stage"
)
STAGE_DEPTHS = re.compile(r"depths|blocks_per_stage|stage_depths|num_blocks|block_sizes")
QUERIES = re.compile(r"num_queries")
FRAMES = re.compile(r"frames_per_clip")
IMAGE_SIDE = re.compile(r"image_size|crop_size")
FEATURE_SIDES = re.compile(r".*feat(ure)?_sizes")
TOKEN = re.compile(r".*(token_id|token_index|_id)")
POSITIONS = re.compile(r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length)")
INNER = re.compile(
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|n_inner|ffn_hidden_size|feedforward_channels|inner_dim|ffn_size|"
    r"dim_feedforward|expert_dim|proj_dim|projection_dim|projector_dim|lora_rank|mlp_hidden_size|bottleneck_size|"
    r"hidden_size_per_layer_input|intermediate_dim|feedforward_dim|attention_hidden_size)"
)


MAXIMUM = 300_000_000
"""Parameters of the largest model that is built."""


GENTLE = 1536
"""Widest residual stream that is left as it is where a model made smaller does not run."""


class NotBuilt(Exception):  # noqa: N818  # an outcome that the table reports
    """No tiny model of a family can be made, and why."""


def tiny_models(family: str) -> Iterator[PreTrainedModel]:
    """Models of one family, the smallest first: not every way of making it small leaves a model that runs.

    Raises:
        NotBuilt: where none can be made, with the reason in one line.
    """
    first = None
    make: Callable[[PreTrainedConfig], PreTrainedModel] = AutoModel.from_config
    try:
        kind = CONFIG_MAPPING[family]
        default = kind()
        described = default.to_dict()
    except Exception as error:  # of any configuration class
        raise NotBuilt(f"its default configuration does not build ({_reason(error)})") from error
    tried: list[dict[str, Any]] = []
    built = False
    for how in WAYS:
        values = tiny_values(described, **how)
        if how.get("fill"):
            values = without_derived(values, default)
        if values in tried:
            continue
        tried.append(values)
        try:
            config = kind(**values)
            with torch.device("meta"):
                blank = make(config)
            if sum(parameter.numel() for parameter in blank.parameters()) > MAXIMUM:
                first = first or f"it has more than {MAXIMUM:,} parameters even when made tiny"
                continue
            model = make(config)
            model.float().eval()  # type: ignore[no-untyped-call]
        except ImportError as error:
            raise NotBuilt(f"a package is missing ({_reason(error)})") from error
        except Exception as error:  # of any model class: another way to make it tiny may do
            first = first or f"no tiny configuration builds ({_reason(error)})"
            continue
        yield model
        built = True
    if not built:
        raise NotBuilt(first or "")


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"fill": True},
    {"fill": True, "kept_width": GENTLE},
    {"fill": True, "keep_head_size": True},
    {"fill": True, "cut": False},
    {"fill": True, "narrow": False},
    {"narrow": False, "cut": False},
    {"fill": True, "kept_width": GENTLE, "keep_images": True},
)
"""Ways to make a configuration tiny, the smallest first, but for the slowest, whose images are large."""


def _reason(error: Exception | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


DERIVED = (
    "model_type",
    "transformers_version",
    "architectures",
    "stage_names",
    "out_features",
    "out_indices",
    "per_layer_config",
)
"""What a configuration says of itself that its class works out anew."""


def without_derived(values: dict[str, Any], default: PreTrainedConfig) -> dict[str, Any]:
    """Values without those that a configuration class does not declare: it works them out from the others."""
    declared = {field.name for field in fields(default)} | {"model_type", "out_indices"}
    return {
        name: without_derived(value, inner)
        if isinstance(value, dict) and isinstance(inner := getattr(default, name, None), PreTrainedConfig)
        else value
        for name, value in values.items()
        if name in declared
    }


def tiny_values(
    described: dict[str, Any],
    *,
    cut: bool = True,
    narrow: bool = True,
    keep_head_size: bool = False,
    kept_width: int = 0,
    keep_images: bool = False,
    fill: bool = False,
    sides: dict[int, int] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a tiny configuration, from what the default one says of itself.

    Args:
        described: ``config.to_dict()`` of a default configuration; nested ones are made tiny as well.
        cut: whether it gets few blocks.
        narrow: whether widths and heads are made small.
        keep_head_size: whether heads keep their size, and the width follows from it.
        kept_width: the widest residual stream that stays as it is, with its heads.
        keep_images: whether images keep their size.
        fill: whether numbers that the default leaves open are given.
        sides: default side of an image -> tiny one, as ``image_sides`` gives them; none: its own.
    """
    sides = (image_sides(described) if sides is None else sides) if not keep_images else {}
    how: dict[str, Any] = {
        "cut": cut,
        "narrow": narrow,
        "keep_head_size": keep_head_size,
        "kept_width": kept_width,
        "keep_images": keep_images,
        "fill": fill,
        "sides": sides,
    }
    stages = described.get("out_indices")
    described = {name: value for name, value in described.items() if name not in DERIVED}
    sizes = _sizes(described, **how)
    if stages and sizes.blocks == sizes.layers:  # none of the stages that a larger model reads was cut
        described["out_indices"] = stages
    values: dict[str, Any] = {}
    for name, value in described.items():
        if isinstance(value, dict) and "model_type" in value:
            values[name] = tiny_values(value, **how) | {"model_type": value["model_type"]}
        elif isinstance(value, dict) and name.startswith("rope"):
            values[name] = {key: _tiny_list(key, part, sizes) for key, part in value.items()}
            if fill and "rope_type" in value and sizes.narrow:
                # Rotary sections of time, height and width, which some families need and no default states.
                values[name].setdefault(
                    "mrope_section",
                    _parts_of(
                        int(sizes.head_width * (value.get("partial_rotary_factor") or 1)) // 2, [3, 3, 2]
                    ),
                )
        elif fill and (value is None or value in ([], ())):
            values[name] = _filled(name, value, described)
        elif isinstance(value, bool) or not isinstance(value, int):
            values[name] = _tiny_list(name, value, sizes)
        else:
            values[name] = _tiny(name, value, sizes)
    return values | _state_heads(described, sizes)


def _filled(name: str, value: Any, described: dict[str, Any]) -> Any:
    """What stands for a value that the default leaves open: a default is the first of what there is."""
    choices = described.get(f"{name.removeprefix('default_')}s")
    if name.startswith("default_") and isinstance(choices, list | tuple) and choices:
        return choices[0]
    return next((small for pattern, small in OPEN.items() if re.fullmatch(pattern, name)), value)


OPEN: dict[str, Any] = {
    KEY_VALUE_HEADS.pattern: HEADS,
    HEAD_SIZE.pattern: HEAD_WIDTH,
    VOCABULARIES.pattern: VOCABULARY,
    r".*shared_experts": 1,
    EXPERTS.pattern: 4,
    CHOSEN_EXPERTS.pattern: 2,
    r"prediction_length": 8,
    r"pad_token_id": 0,
    r"sliding_window": 8,
    r"projector_scale_factors": [1.0],
}
"""What some defaults leave open."""


@dataclass(frozen=True)
class Sizes:
    """What one configuration has by default, and what its tiny copy gets."""

    stream: int
    heads: int
    head_size: int
    layers: int
    width: int
    blocks: int
    head_width: int
    narrow: bool
    sides: dict[int, int]


def _sizes(
    described: dict[str, Any],
    *,
    cut: bool,
    narrow: bool,
    keep_head_size: bool,
    kept_width: int,
    keep_images: bool,
    fill: bool,
    sides: dict[int, int],
) -> Sizes:
    del fill, keep_images
    stream = _first(described, STREAM, NO_STREAM)
    heads = _first(described, HEAD_COUNT)
    head_size = _first(described, HEAD_SIZE) or (stream // heads if stream and heads else 0)
    layers, blocks = _blocks(described)
    # Widths or heads that differ from stage to stage are tied to each other in ways of the family's own.
    by_stage = any(
        isinstance(value, list)
        and (len(value) != layers or "depths" in described)
        and (STREAM.fullmatch(name) or HEAD_COUNT.fullmatch(name) or BY_STAGE.fullmatch(name))
        for name, value in described.items()
    )
    head_width = head_size if keep_head_size and head_size else HEAD_WIDTH
    if (
        not keep_head_size
        and heads
        and stream
        and described.get("attention_hidden_size") == heads * head_size
    ):
        head_width = heads * head_size * WIDTH // stream // HEADS  # heads share a width of their own
    return Sizes(
        stream,
        heads,
        head_size,
        layers,
        HEADS * head_width if keep_head_size else WIDTH,
        blocks if cut else layers,
        head_width,
        narrow and not by_stage and stream > kept_width,
        sides,
    )


def _tiny_list(name: str, value: Any, sizes: Sizes) -> Any:
    """A list cut to the blocks that are left, or the rotary sections of a tiny head; other values as they are."""
    if not isinstance(value, list | tuple):
        return value
    if IMAGE_SIDE.fullmatch(name):
        return [sizes.sides.get(item, item) if type(item) is int else item for item in value]
    if FEATURE_SIDES.fullmatch(name) and sizes.sides:
        return _scaled(value, max(sizes.sides), sizes.sides[max(sizes.sides)])
    if sizes.layers and len(value) == sizes.layers and sizes.blocks < sizes.layers:
        value = list(value)[: sizes.blocks]
        return [_tiny(name, item, sizes) if type(item) is int else item for item in value]
    if "section" in name and sizes.head_size and sizes.narrow:
        return _parts_of(max(len(value), sum(value) * sizes.head_width // sizes.head_size), list(value))
    if (
        STAGE_DEPTHS.fullmatch(name)
        and sizes.blocks != sizes.layers
        and all(type(item) is int for item in value)
    ):
        return [min(item, BLOCKS) for item in value]
    return value


def _scaled(value: Any, from_: int, to: int) -> Any:
    """Integers, however nested, in the proportion in which ``from_`` became ``to``."""
    if isinstance(value, list | tuple):
        return [_scaled(item, from_, to) for item in value]
    return max(1, value * to // from_) if type(value) is int else value


def image_sides(described: dict[str, Any]) -> dict[int, int]:
    """Default side of an image -> tiny one: one for all parts of a model that look at the same image.

    >>> image_sides({"vision_config": {"image_size": [1024, 1024]}, "patch_size": 16, "image_size": 1024})
    {1024: 256}
    """
    sides: dict[int, int] = {}
    for name, value in described.items():
        if isinstance(value, dict):
            for default, side in image_sides(value).items():
                sides[default] = max(side, sides.get(default, 0))
        elif IMAGE_SIDE.fullmatch(str(name)):  # of another mapping than a configuration, names may be numbers
            for side in value if isinstance(value, list | tuple) else [value]:
                if type(side) is int and side > 0:
                    patch = described.get("patch_size")
                    patch = max(patch) if isinstance(patch, list | tuple) else _number(patch)
                    small = min(side, max(LEAST_SIDE, PATCHES * patch))
                    sides[side] = max(small, sides.get(side, 0))
    return sides


def _state_heads(described: dict[str, Any], sizes: Sizes) -> dict[str, int]:
    """Heads of a state-space mixer, whose sizes multiply to ``expand`` times the width."""
    expand = _first(described, re.compile(r"(mamba_)?expand"))
    inner = _first(described, re.compile(r"mamba_d_ssm")) or expand * sizes.stream
    if not expand or not sizes.narrow:
        return {}
    small = sizes.width if "mamba_d_ssm" in described else expand * sizes.width
    values: dict[str, int] = {"mamba_d_ssm": small} if "mamba_d_ssm" in described else {}
    for count, size in STATE_HEADS:
        if isinstance(described.get(count), int) and described[count] * _number(described.get(size)) == inner:
            values |= {count: HEADS, size: small // HEADS}
    groups = [name for name in described if re.fullmatch(r"(mamba_)?n_groups|mamba_ngroups", name)]
    return values | dict.fromkeys(groups, 1) if values else {}


STATE_HEADS = (
    ("mamba_n_heads", "mamba_d_head"),
    ("num_heads", "head_dim"),
    ("mamba_num_heads", "mamba_head_dim"),
    ("n_mamba_heads", "mamba_headdim"),
)
"""Names of the number and the size of heads of state-space mixers."""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _tiny(name: str, value: int, sizes: Sizes) -> int:
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
    if POSITIONS.fullmatch(name):
        return min(value, 512)
    if QUERIES.fullmatch(name):
        return min(value, 16)
    if FRAMES.fullmatch(name):
        return min(value, 4)
    if IMAGE_SIDE.fullmatch(name):
        return sizes.sides.get(value, value)
    if name == "num_kv_shared_layers" and sizes.blocks < sizes.layers:
        return 0
    if COUNT_OF_BLOCKS.fullmatch(name) and not NO_BLOCKS.fullmatch(name):
        if sizes.blocks == sizes.layers:
            return value
        return sizes.blocks if value == sizes.layers else min(value, BLOCKS)
    return _tiny_width(name, value, sizes) if sizes.narrow else value


def _tiny_width(name: str, value: int, sizes: Sizes) -> int:
    if KEY_VALUE_HEADS.fullmatch(name):
        return 1 if value == 1 else HEADS if value == sizes.heads else HEADS // 2
    if HEAD_COUNT.fullmatch(name):
        return min(value, HEADS)
    if HEAD_SIZE.fullmatch(name):
        return max(2, round(value * sizes.head_width / sizes.head_size)) if sizes.head_size else value
    if STREAM.fullmatch(name) and not NO_STREAM.fullmatch(name):
        return min(value, sizes.width)
    if INNER.fullmatch(name) and sizes.stream:
        return max(8, min(value, round(value * sizes.width / sizes.stream / 8) * 8))
    return value


def _first(described: dict[str, Any], pattern: re.Pattern[str], unless: re.Pattern[str] | None = None) -> int:
    found = [
        value
        for name, value in described.items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and value > 0
        and pattern.fullmatch(name)
        and not (unless and unless.fullmatch(name))
    ]
    preferred = [
        described[name]
        for name in ("hidden_size", "d_model", "num_attention_heads", "head_dim")
        if pattern.fullmatch(name) and isinstance(described.get(name), int)
    ]
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
            needed = max(
                needed, next(n for n in range(1, layers + 1) if {str(i) for i in value[:n]} == kinds)
            )
    for name, value in described.items():
        special = value if re.fullmatch(r".*_layers", name) and isinstance(value, list) else []
        if all(type(item) is int and item < layers for item in special) and 0 <= max(special, default=-1) < 8:
            # Numbers of special blocks: as many plain ones must be left.
            needed = max(needed, max(special) + 1 + BLOCKS)
    for name, value in described.items():
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and re.search(r"period|interval|_freq|first_k_dense|every_n|step$", name)
            and 1 < value <= 8
        ):
            needed = max(needed, min(value, layers))
    return layers, min(needed, layers) if layers else 0


def _parts_of(total: int, parts: list[int]) -> list[int]:
    whole = sum(parts) or 1
    scaled = [max(1, part * total // whole) for part in parts]
    scaled[0] += total - sum(scaled)
    return scaled
