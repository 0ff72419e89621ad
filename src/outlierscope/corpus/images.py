"""ImageCorpus: pictures as numbered batches of pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.batch import IMAGE_CLASSES, Batch
from outlierscope.corpus.batching import BATCH_TOKENS, Sampling
from outlierscope.corpus.media import Decoded, Reached, nothing_decoded
from outlierscope.corpus.pictures import upright_rgb
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

    from outlierscope.corpus.batch import Cursor
    from outlierscope.corpus.image_classes import PatchGrid
    from outlierscope.corpus.media import MediaSource


class ImageCorpus:
    """Pictures through the model's own image processor; always the same batches in the same order.

    Pictures that cannot be decoded are skipped, counted and listed.

    Args:
        source: the pictures.
        processor: the model's image processor (transformers).
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
        source: MediaSource,
        processor: BaseImageProcessor,
        *,
        stack: str,
        grid: PatchGrid,
        batch_size: int | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.source = source
        self.processor = processor
        self.stack = stack
        self.grid = grid
        self.batch_size = batch_size or max(1, BATCH_TOKENS // grid.positions)
        self.tokens = tokens
        self.sampling = sampling or Sampling()
        self._decoded = Decoded(source, upright_rgb)
        self._wanted = None if tokens is None else -(-tokens // grid.positions)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of positions."""
        return IMAGE_CLASSES

    @property
    def estimated_tokens(self) -> int | None:
        """How many positions there will be when all pictures can be read; ``None`` when unknown."""
        counts = [count for count in (self._wanted, self.source.count) if count is not None]
        return min(counts) * self.grid.positions if counts else None

    def batches(self, start: int = 0, cursor: Cursor | None = None) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is.

        Without the ``cursor`` of the batch before, pictures before ``start`` are decoded again, for those that
        fail must not shift the others.
        """
        reached = Reached() if cursor is None else Reached.at(cursor)
        left = None if self._wanted is None else self._wanted - reached.decoded
        readable = islice(self._decoded.read(reached), left)
        number = 0 if cursor is None else start
        while group := list(islice(readable, self.batch_size)):
            if number >= start:
                yield self._batch(number, group)
            number += 1

    def _batch(self, number: int, pictures: list[tuple[str, Image, Reached]]) -> Batch:
        shape = (len(pictures), self.grid.positions)  # [B, T]
        first = number * self.batch_size
        pixels = self._pixels(pictures)
        return Batch(
            number=number,
            stack=self.stack,
            inputs={"pixel_values": pixels},
            token_ids=torch.full(shape, -1, dtype=torch.int64),
            real=torch.ones(shape, dtype=torch.bool),
            classes=self.grid.classes(pixels),
            class_names=IMAGE_CLASSES,
            sequence_ids=torch.arange(first, first + len(pictures)),
            documents=[name for name, *_ in pictures],
            dear=self.sampling.dear(number, first),
            cursor=pictures[-1][2].cursor(),
        )

    def _pixels(self, pictures: list[tuple[str, Image, Reached]]) -> Tensor:
        """[B, channels, height, width] float32."""
        made = [picture_pixels(self.processor, image) for _, image, _ in pictures]
        for (name, *_), one in zip(pictures, made, strict=True):
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
        settings = {
            "source": self.source.fingerprint(self._wanted),
            "processor": json.loads(self.processor.to_json_string()),
            "stack": self.stack,
            "grid": asdict(self.grid),
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "sampling": asdict(self.sampling),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What was read and how, for ``scan.json``; the counts reach as far as ``batches`` has come."""
        return {
            "source": self.source.describe(),
            "batch_size": self.batch_size,
            "tokens_wanted": self.tokens,
            "grid": asdict(self.grid),
            "sampling": asdict(self.sampling),
        } | self._decoded.describe("picture")

    def token_text(self, token_id: int) -> None:
        """Nothing: patches have no vocabulary."""

    def context(self, batch: Batch, row: int, position: int) -> str:
        """Row and column of a patch, from 0, and the picture's name."""
        place = self.grid.place(position)
        where = "before the patches" if place is None else f"patch in row {place[0]}, column {place[1]}"
        return f"{where} of {batch.documents[row]}"

    def place(self, position: int) -> dict[str, Any] | None:
        """Row and column of a patch, from 0; ``None`` before the patches."""
        place = self.grid.place(position)
        return None if place is None else {"patch_row": place[0], "patch_column": place[1]}


def first_pixels(source: MediaSource, processor: BaseImageProcessor) -> Tensor:
    """[1, channels, height, width] float32: the first picture that can be decoded, as the model gets it.

    Raises:
        UserError: when none can be decoded.
    """
    decoded = Decoded(source, upright_rgb)
    for _, image, _ in decoded.read():
        return picture_pixels(processor, image)
    raise nothing_decoded(source, decoded.furthest, "pictures")


def picture_pixels(processor: BaseImageProcessor, image: Image) -> Tensor:
    """[1, channels, height, width] float32: one picture as the model gets it."""
    pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
    return pixels
