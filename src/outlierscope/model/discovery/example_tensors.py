"""Example tensors: one argument of a forward pass, made from its name and the model's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEQUENCES, TOKENS = 2, 12
SIDE = 4
"""Patches on each side of an image whose size is free."""

FREE_SIDE = 128
"""Pixels on each side of an image of which a config states no size."""

IMAGE_LAYOUTS = (
    "image",
    "frames",
    "flat frames",
    "images",
    "tiles",
    "packed patches",
    "square patches",
    "padded patches",
    "strip",
    "square patches by sequence",
    "merged patches",
    "all patches",
)
"""[B, C, H, W]; [B, F, C, H, W]; [B * F, C, H, W]; [B, 1, C, H, W]; [B, 1, tiles, C, H, W]; of one image
[N, C * t * p * p] or [N, C, p, p]; [B, N, C * p * p]; patches in a row [1, C, p, N * p]; of one image
[1, N, C, p, p] or, m * m merged into one, [N, m * p, m * p, C]; as many as there are positions [B, P, C * p * p]."""

SOUND_LAYOUTS = ("bins first", "frames first", "samples", "channel", "channel of frames", "joined")
"""[B, bins, frames]; [B, frames, bins]; [B, samples]; [B, 1, samples]; [B, 1, frames, bins]; several sounds joined
[bins, frames]."""

SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask", "image", "video", "audio")

BINS = (
    "input_feat_per_channel",
    "feature_projection_input_dim",
    "input_dim",
    "input_size",
    "num_mel_bins",
    "n_mels",
    "feature_size",
    "mel_bins",
    "input_feat_size",
)


class ExampleTensors:
    """Makes the arguments of one forward pass, so that they fit each other.

    Args:
        config: the model's.
        image: one of ``IMAGE_LAYOUTS``.
        sound: one of ``SOUND_LAYOUTS``.
        seed: of the random values.
        codebooks: whether token ids are [B, T, codebooks] instead of [B, T].
    """

    def __init__(
        self, config: PreTrainedConfig, image: str, sound: str, seed: int, *, codebooks: bool = False
    ) -> None:
        self._config = config
        self._image = image
        self._sound = sound
        self._codebooks = codebooks_of(config) if codebooks else 0
        self._generator = torch.Generator().manual_seed(seed)

    def of(self, name: str) -> Tensor | None:
        """The tensor of the argument ``name``; ``None`` where its name says nothing here."""
        if name.endswith("input_ids"):
            return self._token_ids()
        if "grid_thw" in name:
            return torch.tensor([[1, SIDE, SIDE]])  # [images, 3]: one, as several are attended to one by one
        if name in ("input_features", "input_values", "audio_mel"):
            return self._sounds(name)
        makers: dict[str, Callable[[], Tensor]] = {
            "attention_mask": lambda: torch.ones(SEQUENCES, TOKENS, dtype=torch.int64),
            "position_ids": lambda: torch.arange(TOKENS).expand(SEQUENCES, -1),
            "bbox": self._boxes,
            "pixel_values": lambda: self._pixels(self._image),
            "pixel_values_videos": lambda: self._pixels("frames"),
            "pixel_attention_mask": lambda: torch.ones(SEQUENCES, SIDE * SIDE, dtype=torch.int64),
            "spatial_shapes": lambda: torch.tensor([[SIDE, SIDE]] * SEQUENCES),
            "pixel_position_ids": self._patch_positions,
            "image_position_ids": self._patch_positions,
            "image_attention_mask": lambda: torch.ones(SEQUENCES, TOKENS, 1, dtype=torch.int64),
            "aspect_ratio_ids": lambda: torch.ones(SEQUENCES, 1, dtype=torch.int64),
            "aspect_ratio_mask": lambda: torch.ones(SEQUENCES, 1, self._tiles(), dtype=torch.int64),
            "target_sizes": lambda: torch.tensor([[SIDE, SIDE]]),  # [images, 2]: of the one image of a strip
            "flattened_patches": self._flattened_patches,
            "merge_sizes": lambda: torch.ones(1, dtype=torch.int64),
            "hidden_states": self._hidden_states,
            "inputs_embeds": self._hidden_states,
            "query_embeds": self._hidden_states,
            "context": self._hidden_states,
            "encoder_hidden_states": lambda: self._random(
                SEQUENCES, TOKENS, self._number("encoder_hidden_size", "hidden_size")
            ),
            "task_inputs": lambda: self._random(SEQUENCES, self._number("task_seq_len")),
            "visual_feats": lambda: self._random(SEQUENCES, 5, self._number("visual_feat_dim")),
            "visual_pos": lambda: torch.rand(
                SEQUENCES, 5, self._number("visual_pos_dim"), generator=self._generator
            ),
            "past_values": self._past,
            "past_values_padding": lambda: torch.zeros_like(self._past(), dtype=torch.int64),
            "freq": lambda: torch.zeros(SEQUENCES, 1, dtype=torch.int64),
            "past_observed_mask": lambda: torch.ones_like(self._past()),
            "past_time_features": lambda: self._random(SEQUENCES, self._past_length(), self._time_features()),
            "future_values": lambda: self._random(SEQUENCES, self._number("prediction_length")),
            "future_time_features": lambda: self._random(
                SEQUENCES, self._number("prediction_length"), self._time_features()
            ),
            "input_features_mask": lambda: torch.ones(SEQUENCES, self._frames(), dtype=torch.bool),
            "feature_attention_mask": lambda: torch.ones(SEQUENCES, self._frames(), dtype=torch.int64),
            "feature_lens": lambda: torch.full((SEQUENCES,), self._frames()),
            "audio_mel_mask": lambda: torch.zeros(SEQUENCES, self._frames(), dtype=torch.bool),
        }
        return makers[name]() if name in makers else None

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _first(self, *names: str) -> Any:
        """The first of these attributes that is set, in the config or in one within it."""
        for config in _with_nested(self._config):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def _number(self, *names: str, otherwise: int = 1) -> int:
        value = self._first(*names)
        return value if isinstance(value, int) else otherwise

    def _token_ids(self) -> Tensor:
        limit = min(self._number("vocab_size", otherwise=100), 4096)
        special = {
            token
            for kind in SPECIAL_TOKENS
            for suffix in ("token_id", "token_index")
            for config in _with_nested(self._config)
            for token in _as_list(getattr(config, f"{kind}_{suffix}", None))
        }
        # Padding and separators change masks and positions in some families; plain tokens do so in none.
        plain = torch.tensor([token for token in range(limit) if token not in special] or [0])
        shape = (SEQUENCES, TOKENS, self._codebooks) if self._codebooks else (SEQUENCES, TOKENS)
        return plain[torch.randint(len(plain), shape, generator=self._generator)]  # [B, T] or [B, T, C]

    def _boxes(self) -> Tensor:
        corners = torch.randint(50, (SEQUENCES, TOKENS, 2), generator=self._generator)
        return torch.cat([corners, corners + 10], dim=-1)  # [B, T, 4]

    def _hidden_states(self) -> Tensor:
        if self._image == "packed patches":
            return self._pixels(self._image)
        return self._random(
            SEQUENCES, TOKENS, self._number("input_dim", "hidden_size", "d_model")
        )  # [B, T, d]

    def _patch_positions(self) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        return torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).repeat(SEQUENCES, 1, 1)  # [B, N, 2]

    def _flattened_patches(self) -> Tensor:
        places = self._patch_positions().flip(-1).float()  # [B, N, 2]: row and column
        return torch.cat([places, self._pixels("padded patches")], dim=-1)  # [B, N, 2 + C * p * p]

    def _tiles(self) -> int:
        return self._number("max_num_tiles", otherwise=4)

    def _pixels(self, layout: str) -> Tensor:
        channels = self._number("num_channels", "in_channels", "in_chans", otherwise=3)
        patch = _pair(self._first("patch_size") or 16)
        if layout == "packed patches":
            depth = self._number("temporal_patch_size", "patch_temporal")
            return self._random(SIDE * SIDE, channels * depth * patch[0] * patch[1])
        if layout == "square patches":
            return self._random(SIDE * SIDE, channels, *patch)
        if layout == "strip":
            return self._random(1, channels, patch[0], SIDE * SIDE * patch[1])
        if layout == "padded patches":
            return self._random(SEQUENCES, SIDE * SIDE, channels * patch[0] * patch[1])
        if layout == "square patches by sequence":
            return self._random(1, SIDE * SIDE, channels, *patch)
        if layout == "merged patches":
            merge = self._number("spatial_merge_size")
            return self._random(SIDE * SIDE, merge * patch[0], merge * patch[1], channels)
        height, width = _pair(self._first("image_size", "img_size", "input_size", "crop_size") or FREE_SIDE)
        if layout == "all patches":
            positions = (height // patch[0]) * (width // patch[1])
            positions = self._number("num_position_embeddings", otherwise=positions)
            return self._random(SEQUENCES, positions, channels * patch[0] * patch[1])
        if layout == "images":
            return self._random(SEQUENCES, 1, channels, height, width)
        if layout == "tiles":
            return self._random(SEQUENCES, 1, self._tiles(), channels, height, width)
        frames = self._number("num_frames", "frames_per_clip", otherwise=2)
        if layout == "flat frames":
            return self._random(SEQUENCES * frames, channels, height, width)
        if layout == "frames":
            return self._random(SEQUENCES, frames, channels, height, width)
        return self._random(SEQUENCES, channels, height, width)

    def _past_length(self) -> int:
        lags: list[int] = self._first("lags_sequence") or [0]
        return self._number("context_length", otherwise=64) + max(lags)

    def _time_features(self) -> int:
        return self._number("num_time_features")

    def _past(self) -> Tensor:
        channels = self._first("num_input_channels")  # of a series of several channels
        return self._random(SEQUENCES, self._past_length(), *([channels] if channels else []))

    def _frames(self) -> int:
        half = self._number("n_window", otherwise=0)
        if half:  # sound is cut into windows of twice this many frames
            return 2 * half
        by_token = self._number("audio_length_per_tok", otherwise=0)
        if by_token:  # every token of the text has frames of its own
            return TOKENS * by_token
        # Convolutions in front of [B, bins, frames] ask for an exact length.
        return 2 * self._number("max_source_positions", otherwise=64) if self._sound == "bins first" else 64

    def _sounds(self, name: str) -> Tensor:
        bins, frames = self._number(*BINS, otherwise=80), self._frames()
        if name == "input_values" and self._first(*BINS):
            frames = self._number("max_length", otherwise=frames)
        return {
            "bins first": lambda: self._random(SEQUENCES, bins, frames),
            "frames first": lambda: self._random(SEQUENCES, frames, bins),
            "samples": lambda: self._random(SEQUENCES, 8000),
            "channel": lambda: self._random(SEQUENCES, 1, 8000),
            "channel of frames": lambda: self._random(SEQUENCES, 1, frames, bins),
            "joined": lambda: self._random(bins, SEQUENCES * frames),
        }[self._sound]()


def codebooks_of(config: PreTrainedConfig) -> int:
    """How many codebooks share a config's own vocabulary; 0 where it counts none."""
    for name in ("num_codebooks", "num_channels"):
        value = getattr(config, name, None)
        if isinstance(value, int) and isinstance(getattr(config, "vocab_size", None), int):
            return value
    return 0


def _with_nested(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and those within it, outermost first."""
    waiting = [config]
    while waiting:
        current = waiting.pop(0)
        yield current
        waiting += [value for value in vars(current).values() if isinstance(value, PreTrainedConfig)]


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
