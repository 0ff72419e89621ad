"""Pictures: finding them in a folder and decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Kinds of files that count as pictures; all other files of a folder are passed over."""


class PictureError(Exception):
    """A picture that cannot be decoded; the text is the reason."""


def upright_rgb(picture: Path | Image) -> Image:
    """A picture in RGB, turned as its EXIF orientation says; of an animation the first frame.

    Raises:
        PictureError: when it cannot be decoded.
    """
    import PIL.Image
    from PIL import ImageOps

    try:
        if isinstance(picture, Path):
            with PIL.Image.open(picture) as opened:
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
        return _rgb(ImageOps.exif_transpose(picture))
    except PIL.UnidentifiedImageError:
        raise PictureError("not a picture, or of an unknown kind") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(reason) from None


def _rgb(image: Image) -> Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def folder_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted by path; hidden files are passed over.

    Raises:
        UserError: when there are none.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise UserError(f"{folder}: a folder without pictures ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def given_pictures(items: Iterable[Any]) -> list[Path | Image]:
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
    return pictures
