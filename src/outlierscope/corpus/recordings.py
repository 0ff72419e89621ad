"""Recordings: decoding audio files into one channel at the rate that a model hears."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outlierscope.corpus.media import Given, MediaError
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""Kinds of files that count as recordings; all other files of a folder are passed over."""


def require_audio_libraries() -> None:
    """Raises:
    UserError: when the audio extra is not installed.
    """
    try:
        import scipy.signal  # noqa: F401
        import soundfile  # noqa: F401
    except (ImportError, OSError):  # OSError: soundfile without its C library
        raise UserError(
            "reading recordings needs soundfile and scipy; pip install 'outlierscope[audio]'"
        ) from None


def mono_samples(recording: Path | bytes | Any, rate: int) -> Samples:
    """[N] float32, one channel (the mean of all) at ``rate`` samples per second.

    Rates are changed by ``scipy.signal.resample_poly`` (polyphase filter with a Kaiser window).

    Args:
        recording: a file, the bytes of one, or samples with their rate: ([N] or [N, channels], int).
        rate: samples per second that are wanted.

    Raises:
        MediaError: when it cannot be decoded, is empty or holds what is no finite number.
    """
    if isinstance(recording, (Path, bytes)):
        samples, own = _decoded(recording)
    else:
        samples, own = np.asarray(recording[0], dtype=np.float32), int(recording[1])
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise MediaError("no samples in it")
    if not np.isfinite(samples).all():
        raise MediaError("samples that are no finite numbers")
    return resampled(samples, own, rate)


def _decoded(recording: Path | bytes) -> tuple[Samples, int]:
    import soundfile

    try:
        samples, rate = soundfile.read(
            io.BytesIO(recording) if isinstance(recording, bytes) else recording,
            dtype="float32",
            always_2d=True,
        )
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise MediaError(str(reason).strip().rstrip(".") or type(error).__name__) from None
    return samples, int(rate)


def given_recordings(items: Iterable[Any]) -> Given:
    """Paths, or samples with their rate, handed over from Python.

    Args:
        items: each a path, a pair of samples ([N] or [N, channels]) and rate, or a mapping with ``array`` and
            ``sampling_rate`` as data sets of transformers have it.

    Raises:
        UserError: for anything else, or nothing.
    """
    recordings: list[Any] = []
    for index, item in enumerate(items):
        if isinstance(item, (str, Path)):
            if not Path(item).is_file():
                raise UserError(f"recordings[{index}]: no such file: {item}")
            recordings.append(Path(item))
        elif isinstance(item, Mapping) and {"array", "sampling_rate"} <= item.keys():
            recordings.append((item["array"], item["sampling_rate"]))
        elif isinstance(item, tuple) and len(item) == 2:
            recordings.append(item)
        else:
            raise UserError(
                f"recordings[{index}] is a {type(item).__name__}; expected a path, or a pair of samples and rate"
            )
    if not recordings:
        raise UserError("no recordings were given")
    return Given(
        recordings,
        "audio",
        "recordings",
        lambda pair: f"{pair[1]}:{np.shape(pair[0])}:".encode() + np.asarray(pair[0], np.float32).tobytes(),
    )


def resampled(samples: Samples, own: int, wanted: int) -> Samples:
    """[M] float32, the same sound with ``wanted`` samples per second.

    >>> len(resampled(np.zeros(44100, dtype=np.float32), 44100, 16000))
    16000
    """
    if own == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(own, wanted)
    changed: Samples = resample_poly(samples, wanted // common, own // common).astype(np.float32)
    return changed
