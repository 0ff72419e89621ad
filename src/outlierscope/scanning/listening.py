"""Listening: how an audio encoder hears, found by letting it hear noise."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlierscope.corpus.audio_layout import AudioLayout
from outlierscope.corpus.open_media import Hearing
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from outlierscope.model.anatomy import StackAnatomy
    from outlierscope.model.observed import ObservedModel

WINDOW_SECONDS = 30
"""Length of a window where the model sets none; what Whisper, which sets one, was given."""

FRAME_COUNTERS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
"""What transformers calls the method that counts a model's frames, in its older and in its newer encoders."""

PROBE_SECONDS = 64
"""No window that a model sets is longer than this."""


def hearing(model: ObservedModel, stack: StackAnatomy) -> Hearing:
    """How a model hears.

    Raises:
        UserError: for a model without a feature extractor, or one whose frames cannot be told.
    """
    extractor = getattr(model.processor, "feature_extractor", model.processor)
    rate = getattr(extractor, "sampling_rate", None)
    if rate is None:
        why = f" ({model.processor_problem})" if model.processor_problem else ""
        raise UserError(f"this model comes without the feature extractor that recordings need{why}")
    ear = _Ear(model, stack, extractor, int(rate))
    short, long = ear.features(2 * ear.rate), ear.features(4 * ear.rate)
    if short.shape == long.shape:
        layout = _fixed_layout(ear, long)
        return Hearing(extractor, ear.input_name, layout)
    (axis, *others) = [index for index in range(short.ndim) if short.shape[index] != long.shape[index]]
    few, many = ear.positions(short), ear.positions(long)
    frames_of = _frame_counter(model)
    if (
        others
        or frames_of is None
        or few == many
        or [frames_of(short.shape[axis]), frames_of(long.shape[axis])] != [few, many]
    ):
        raise UserError(
            f"{model.name}: cannot tell which of its frames are padding; it has no method "
            f"{' or '.join(FRAME_COUNTERS)} that counts them"
        )
    layout = AudioLayout(
        rate=ear.rate,
        hop=2 * ear.rate / (many - few),
        window=WINDOW_SECONDS * ear.rate,
        masked=ear.masked,
    )
    return Hearing(extractor, ear.input_name, layout, frames_of, axis)


class _Ear:
    """A model that hears noise."""

    def __init__(self, model: ObservedModel, stack: StackAnatomy, extractor: Any, rate: int) -> None:
        self.model = model
        self.rate = rate
        self.input_name = str(getattr(model.module, "main_input_name", ""))
        self.masked = False
        self._extractor = extractor
        self._block = stack.layers[0].module
        self._noise = np.random.default_rng(0).standard_normal(PROBE_SECONDS * rate).astype(np.float32)

    def features(self, samples: int) -> Tensor:
        """What the extractor makes of so many samples."""
        made = self._extractor(self._noise[:samples], sampling_rate=self.rate, return_tensors="pt")
        if self.input_name not in made:
            raise UserError(
                f"{self.model.name}: its feature extractor makes {', '.join(made)}, the model wants {self.input_name}"
            )
        self.masked = "attention_mask" in made
        return made[self.input_name]  # type: ignore[no-any-return]

    def positions(self, features: Tensor) -> int:
        """Positions that the first block sees of them."""
        seen: list[int] = []
        hook = self.model.module.get_submodule(self._block).register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )
        try:
            # Training drops whole layers.
            with self.model.evaluating(), torch.inference_mode():
                self.model.module(**self.model.placed({self.input_name: features}))
        finally:
            hook.remove()
        return seen[0]

    def samples_for(self, features: Tensor, steps: int | None = None) -> int:
        """The fewest samples that decide about the features (or about their first ``steps`` along axis 1)."""
        low, high = self.rate // 10, len(self._noise)
        while high - low > 1:
            middle = (low + high) // 2
            same = torch.equal(self.features(middle)[:, :steps], features[:, :steps])
            low, high = (low, middle) if same else (middle, high)
        return high


def _fixed_layout(ear: _Ear, features: Tensor) -> AudioLayout:
    """Of a model that always hears the same length, padded or cut to it by the extractor."""
    whole = ear.features(len(ear._noise))
    window = ear.samples_for(whole)
    positions = ear.positions(features)
    config = ear.model.config
    strides = [
        stride
        for name in ("frequency_stride", "time_stride", "patch_size")
        if isinstance(stride := getattr(config, name, None), int)
    ]
    if len(strides) < 3:
        return AudioLayout(rate=ear.rate, hop=window / positions, window=window, frames=positions)
    across, along, patch = strides  # patches of a spectrogram [1, steps, bins]
    _, steps, bins = features.shape
    bands, frames = (bins - patch) // across + 1, (steps - patch) // along + 1
    half = steps // 2
    hop = along * (window - ear.samples_for(whole, half)) / (steps - half)
    return AudioLayout(
        rate=ear.rate,
        hop=hop,
        window=window,
        frames=frames,
        special=positions - bands * frames,
        bands=bands,
    )


def _frame_counter(model: ObservedModel) -> Callable[[int], int] | None:
    """The model's own count of frames, as models of one kind after another define it."""
    counts = [count for name in FRAME_COUNTERS if (count := getattr(model.module, name, None)) is not None]
    if not counts:
        return None
    count = counts[0]
    # Adapters come after the last block.
    without = {"add_adapter": False} if "add_adapter" in inspect.signature(count).parameters else {}

    def frames(steps: int) -> int:
        counted = count(torch.tensor(steps), **without)
        return int(counted) if isinstance(counted, torch.Tensor) and counted.ndim == 0 else -1

    return frames
