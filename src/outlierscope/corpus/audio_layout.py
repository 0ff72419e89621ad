"""Audio layout: what the positions of an audio encoder stand for, and which of them are quiet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlierscope.corpus.batch import AUDIO_CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CLS, REGISTER, QUIET, SOUND = range(len(AUDIO_CLASSES))

QUIET_DECIBELS = -25.0
"""Frames this far below the loudest frame of their window, or further, are quiet: Praat's default threshold for
silences ("To TextGrid (silences)"), which is likewise relative to the maximum."""


@dataclass(frozen=True)
class AudioLayout:
    """How an audio encoder lays out its positions: special ones first, then frames.

    A model that sees a spectrogram in patches has several bands of frequency, one after the other, each of
    them with all frames; others have one.

    Attributes:
        rate: samples per second that the model hears.
        hop: samples from one frame to the next.
        window: most samples of one sequence.
        frames: frames of every sequence, or ``None`` where they follow from the samples.
        special: positions before the frames: [CLS], then others.
        bands: bands of frequency.
        masked: whether the model is told which frames are padding.
    """

    rate: int
    hop: float
    window: int
    frames: int | None = None
    special: int = 0
    bands: int = 1
    masked: bool = False

    def frames_heard(self, samples: int, frames: int) -> int:
        """How many of a sequence's ``frames`` hear any of its samples; the rest are padding."""
        return min(frames, math.ceil(samples / self.hop)) if self.frames is not None else frames

    def positions(self, frames: int) -> int:
        """Length of a sequence with so many frames.

        >>> AudioLayout(16000, 1600.0, 164080, frames=101, special=2, bands=12).positions(101)
        1214
        """
        return self.special + self.bands * frames

    def place(self, position: int) -> dict[str, Any] | None:
        """Frame and seconds from the start of the window, and the band where there are several.

        >>> AudioLayout(16000, 320.0, 480000).place(50)
        {'frame': 50, 'seconds': 1.0}
        """
        index = position - self.special
        if index < 0:
            return None
        band = {}
        if self.frames is not None and self.bands > 1:
            row, index = divmod(index, self.frames)
            band = {"band": row}
        return {"frame": index, "seconds": round(index * self.hop / self.rate, 3)} | band

    def classes(self, samples: NDArray[np.float32], frames: int) -> Tensor:
        """[positions] uint8 index into ``AUDIO_CLASSES``.

        Args:
            samples: [N] of the window.
            frames: of the sequence.
        """
        quiet = torch.from_numpy(quiet_frames(samples, self.hop, frames))  # [F] bool
        of_frame = torch.where(quiet, QUIET, SOUND).to(torch.uint8)
        special = torch.full((self.special,), REGISTER, dtype=torch.uint8)
        special[:1] = CLS
        return torch.cat([special, of_frame.repeat(self.bands)])


def quiet_frames(samples: NDArray[np.float32], hop: float, frames: int) -> NDArray[np.bool_]:
    """[F] whether each frame's mean square is at least 25 dB below that of the loudest frame.

    Frames without any samples are quiet, and so is all of a silent window.

    >>> quiet_frames(np.array([1, -1, 0.5, 0.5, 0.01, 0.01], dtype=np.float32), 2.0, 4).tolist()
    [False, False, True, True]
    """
    edges = np.minimum(np.floor(np.arange(frames + 1) * hop).astype(np.int64), len(samples))
    sums = np.concatenate([[0.0], np.square(samples, dtype=np.float64).cumsum()])  # [N + 1]
    counts = np.maximum(np.diff(edges), 1)
    power = np.diff(sums[edges]) / counts  # [F]
    quiet: NDArray[np.bool_] = power <= power.max() * 10 ** (QUIET_DECIBELS / 10)
    return quiet
