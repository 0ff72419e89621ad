"""ImageCorpus: pictures as numbered batches of pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.batch import IMAGE_CLASSES, Batch
from outlierscope.corpus.batching import BATCH_TOKENS, Sampling
from outlierscope.corpus.pictures import PictureError, upright_rgb
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

    from outlierscope.corpus.image_classes import PatchGrid

LISTED_FAILURES = 100
"""How many of the pictures that could not be read are listed by name."""


class ImageCorpus:
    """Pictures through the model's own image processor; always the same batches in the same order.

    Pictures that cannot be decoded are skipped, counted and listed.

    Args:
        pictures: paths, or PIL images.
        processor: the model's image processor (transformers).
        folder: what paths are told relative to.
        stack: stack of the model that sees the patches.
        grid: how the model lays out the positions of a picture.
        batch_size: pictures of a batch; ``None``: as many as make ``BATCH_TOKENS`` positions.
        tokens: stop with the picture that brings the positions to this number; ``None``: read all.
        sampling: on which batches the dear statistics are computed.

    Raises:
        UserError: while reading, when the processor makes pictures of different sizes.
    """

    def __init__(
        self,
        pictures: Sequence[Path | Image],
        processor: BaseImageProcessor,
        *,
        folder: Path | None,
        stack: str,
        grid: PatchGrid,
        batch_size: int | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.pictures = pictures
        self.processor = processor
        self.folder = folder
        self.stack = stack
        self.grid = grid
        self.batch_size = batch_size or max(1, BATCH_TOKENS // grid.positions)
        self.tokens = tokens
        self.sampling = sampling or Sampling()
        self._tally = _Tally()
        wanted = len(pictures) if tokens is None else -(-tokens // grid.positions)
        self._wanted = min(len(pictures), wanted)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of positions."""
        return IMAGE_CLASSES

    @property
    def estimated_tokens(self) -> int:
        """How many positions there will be when all pictures can be read."""
        return self._wanted * self.grid.positions

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is.

        Pictures before ``start`` are decoded again, for those that fail must not shift the others.
        """
        readable = islice(self._readable(), self._wanted)
        number = 0
        while group := list(islice(readable, self.batch_size)):
            if number >= start:
                yield self._batch(number, group)
            number += 1

    def _readable(self) -> Iterator[tuple[str, Image]]:
        tally = _Tally()
        for index, picture in enumerate(self.pictures):
            name = self._name(picture, index)
            try:
                image = upright_rgb(picture)
            except PictureError as error:
                tally.failed += 1
                if len(tally.failures) < LISTED_FAILURES:
                    tally.failures.append((name, str(error)))
                continue
            tally.decoded += 1
            if tally.decoded >= self._tally.decoded:  # this reading is the one that came furthest
                self._tally = tally
            yield name, image

    def _name(self, picture: Path | Image, index: int) -> str:
        if not isinstance(picture, Path):
            return f"pictures[{index}]"
        if self.folder is not None and picture.is_relative_to(self.folder):
            return picture.relative_to(self.folder).as_posix()
        return picture.name

    def _batch(self, number: int, pictures: list[tuple[str, Image]]) -> Batch:
        shape = (len(pictures), self.grid.positions)  # [B, T]
        first = number * self.batch_size
        return Batch(
            number=number,
            stack=self.stack,
            inputs={"pixel_values": self._pixels(pictures)},
            token_ids=torch.full(shape, -1, dtype=torch.int64),
            real=torch.ones(shape, dtype=torch.bool),
            classes=self.grid.classes().expand(shape).clone(),
            class_names=IMAGE_CLASSES,
            sequence_ids=torch.arange(first, first + len(pictures)),
            documents=[name for name, _ in pictures],
            dear=self.sampling.dear(number, first),
        )

    def _pixels(self, pictures: list[tuple[str, Image]]) -> Tensor:
        """[B, channels, height, width] float32."""
        made = [picture_pixels(self.processor, image) for _, image in pictures]
        for (name, _), one in zip(pictures, made, strict=True):
            if one.shape != made[0].shape or not self.grid.fits(one.shape[-2], one.shape[-1]):
                size = f"{one.shape[-2]} x {one.shape[-1]}"
                raise UserError(
                    f"the image processor makes {size} pixels of {name}, and another size of other pictures; "
                    "only models that see one size are supported"
                )
        return torch.cat(made)

    def fingerprint(self) -> str:
        """SHA-256 over all names and sizes, the content of the pictures wanted, and the settings."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for index, picture in enumerate(self.pictures):
            name = self._name(picture, index)
            read = index < self._wanted
            if isinstance(picture, Path):
                digest.update(f"{name}:{picture.stat().st_size}\n".encode())
                digest.update(picture.read_bytes() if read else b"")
            else:
                digest.update(f"{name}:{picture.mode}:{picture.size}\n".encode())
                digest.update(picture.tobytes() if read else b"")
        settings = {
            "processor": json.loads(self.processor.to_json_string()),
            "stack": self.stack,
            "grid": asdict(self.grid),
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "sampling": asdict(self.sampling),
        }
        digest.update(json.dumps(settings, sort_keys=True).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What was read and how, for ``scan.json``; the counts reach as far as ``batches`` has come."""
        return {
            "source": {"kind": "images", "path": None if self.folder is None else str(self.folder)},
            "batch_size": self.batch_size,
            "tokens_wanted": self.tokens,
            "pictures": len(self.pictures),
            "grid": asdict(self.grid),
            "sampling": asdict(self.sampling),
            "pictures_decoded": self._tally.decoded,
            "pictures_skipped": self._tally.failed,
            "skipped": [{"picture": name, "reason": reason} for name, reason in self._tally.failures],
        }

    def token_text(self, token_id: int) -> None:
        """Nothing: patches have no vocabulary."""

    def context(self, token_ids: Tensor, position: int) -> str:  # noqa: ARG002
        """Row and column of a patch, from 0."""
        place = self.grid.place(position)
        return "before the patches" if place is None else f"patch in row {place[0]}, column {place[1]}"


@dataclass
class _Tally:
    """What was met while reading, from the beginning up to now; ``failures`` are names with reasons."""

    decoded: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def first_pixels(pictures: Sequence[Path | Image], processor: BaseImageProcessor) -> Tensor:
    """[1, channels, height, width] float32: the first picture that can be decoded, as the model gets it.

    Raises:
        UserError: when none can be decoded.
    """
    reasons = []
    for index, picture in enumerate(pictures):
        try:
            return picture_pixels(processor, upright_rgb(picture))
        except PictureError as error:
            reasons.append(f"{picture if isinstance(picture, Path) else index}: {error}")
    raise UserError(f"none of the {len(reasons)} pictures can be decoded ({reasons[0]}); give others")


def picture_pixels(processor: BaseImageProcessor, image: Image) -> Tensor:
    """[1, channels, height, width] float32: one picture as the model gets it."""
    pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
    return pixels
