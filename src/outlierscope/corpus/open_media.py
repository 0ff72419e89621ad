"""Opening pictures and recordings: where they come from, and whether they fit the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.audio import AudioCorpus
from outlierscope.corpus.hub import PREFIX, HubAddress, HubMedia, HubRows
from outlierscope.corpus.image_classes import patch_grid
from outlierscope.corpus.images import ImageCorpus, first_pixels
from outlierscope.corpus.media import Files, folder_files
from outlierscope.corpus.paths import existing
from outlierscope.corpus.pictures import IMAGE_SUFFIXES, given_pictures
from outlierscope.corpus.recordings import AUDIO_SUFFIXES, given_recordings, require_audio_libraries
from outlierscope.corpus.tar import TAR_SUFFIXES, TarMembers
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import BaseImageProcessor

    from outlierscope.corpus.audio_layout import AudioLayout
    from outlierscope.corpus.batching import Sampling
    from outlierscope.corpus.media import MediaSource


@dataclass(frozen=True)
class Sight:
    """How a model sees pictures.

    Attributes:
        processor: its image processor.
        patch: pixels of a patch, or height and width.
        positions: how many positions it makes of one picture.
    """

    processor: BaseImageProcessor
    patch: int | Sequence[int] | None
    positions: int


@dataclass(frozen=True)
class Hearing:
    """How a model hears recordings.

    Attributes:
        extractor: its feature extractor (transformers).
        input_name: what it calls its input.
        layout: its positions.
        frames_of: frames from steps of features, where their number is not always the same.
        time_axis: axis of those steps.
    """

    extractor: Any
    input_name: str
    layout: AudioLayout
    frames_of: Callable[[int], int] | None = None
    time_axis: int = 1


def open_images(
    data: str | Path | Iterable[Any] | None,
    sight: Sight,
    *,
    stack: str,
    batch_size: int | None,
    tokens: int | None,
    sampling: Sampling,
) -> ImageCorpus:
    """The pictures that ``data`` names; arguments as in ``open_corpus``.

    Raises:
        UserError: when there are none, or the model does not see them in patches.
    """
    if sight.patch is None:
        raise UserError(
            "this model's config names no patch_size; only image encoders with patches are supported"
        )
    source = media_source(data, "picture", "images", IMAGE_SUFFIXES)
    pixels = first_pixels(source, sight.processor)  # [1, channels, height, width]
    return ImageCorpus(
        source,
        sight.processor,
        stack=stack,
        grid=patch_grid(sight.positions, pixels.shape[-2], pixels.shape[-1], sight.patch),
        batch_size=batch_size,
        tokens=tokens,
        sampling=sampling,
    )


def open_audio(
    data: str | Path | Iterable[Any] | None,
    heard: Hearing,
    *,
    stack: str,
    batch_size: int | None,
    tokens: int | None,
    sampling: Sampling,
) -> AudioCorpus:
    """The recordings that ``data`` names; arguments as in ``open_corpus``.

    Raises:
        UserError: when there are none that the model can hear, or the libraries for them are not installed.
    """
    require_audio_libraries()
    source = media_source(data, "recording", "audio", AUDIO_SUFFIXES)
    corpus = AudioCorpus(
        source,
        heard.extractor,
        input_name=heard.input_name,
        stack=stack,
        layout=heard.layout,
        frames_of=heard.frames_of,
        time_axis=heard.time_axis,
        batch_size=batch_size,
        tokens=tokens,
        sampling=sampling,
    )
    next(corpus.batches())  # nothing to hear raises here
    return corpus


def media_source(
    data: str | Path | Iterable[Any] | None, noun: str, kind: str, suffixes: tuple[str, ...]
) -> MediaSource:
    """The pictures or recordings that ``data`` names.

    Raises:
        UserError: for anything that is none.
    """
    if data is None:
        raise UserError(
            f"this model reads {kind}, and there is no default set; give a folder with --data FOLDER"
        )
    if not isinstance(data, (str, Path)):
        return given_pictures(data) if noun == "picture" else given_recordings(data)
    if str(data).startswith(PREFIX):
        return HubMedia(HubRows(HubAddress.parse(str(data))), "Image" if noun == "picture" else "Audio")
    path = existing(data)
    if path.name.lower().endswith(TAR_SUFFIXES) and path.is_file():
        return TarMembers(path, suffixes, kind)
    if path.is_dir():
        return folder_files(path, suffixes, f"{noun}s", kind)
    if path.suffix.lower() in suffixes:
        return Files([path], path.parent, kind)
    raise UserError(f"{path} is no {noun}, and this model reads {kind}; give a folder with --data FOLDER")
