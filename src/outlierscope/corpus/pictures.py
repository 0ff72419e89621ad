"""Pictures: decoding them, and those that are handed over from Python."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.media import Given, MediaError
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Kinds of files that count as pictures; all other files of a folder are passed over."""


def upright_rgb(picture: Path | bytes | Image) -> Image:
    """A picture in RGB, turned as its EXIF orientation says; of an animation the first frame.

    Args:
        picture: a file, the bytes of one, or what was decoded already.

    Raises:
        MediaError: when it cannot be decoded.
    """
    import PIL.Image
    from PIL import ImageOps

    try:
        if isinstance(picture, (Path, bytes)):
            with PIL.Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
        return _rgb(ImageOps.exif_transpose(picture))
    except PIL.UnidentifiedImageError:
        raise MediaError("not a picture, or of an unknown kind") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MediaError(reason) from None


def _rgb(image: Image) -> Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def given_pictures(items: Iterable[Any]) -> Given:
    """Paths and PIL images handed over from Python.

    Raises:
        UserError: for anything else, or nothing.
    """
    import PIL.Image

    pictures: list[Path | Image] = []
    for index, item in enumerate(items):
        if isinstance(item, (str, Path)):
            if not Path(item).is_file():
                raise UserError(f"pictures[{index}]: no such file: {item}")
            pictures.append(Path(item))
        elif isinstance(item, PIL.Image.Image):
            pictures.append(item)
        else:
            raise UserError(f"pictures[{index}] is a {type(item).__name__}; expected a path or a PIL image")
    if not pictures:
        raise UserError("no pictures were given")
    return Given(
        pictures, "images", "pictures", lambda image: f"{image.mode}:{image.size}:".encode() + image.tobytes()
    )
