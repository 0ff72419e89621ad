"""Batch: the model's inputs together with everything that statistics need to know about each token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from outlierscope.corpus.token_order import TokenOrder

TEXT_CLASSES = ("initial", "special", "strong_delimiter", "weak_semantic", "other")
"""Classes of text tokens; An et al. 2025 (Systematic Outliers), with ``special`` split off."""

IMAGE_CLASSES = ("cls", "register", "border_flat", "border_textured", "inner_flat", "inner_textured")
"""Classes of the positions of an image encoder."""

AUDIO_CLASSES = ("cls", "register", "quiet", "sound")
"""Classes of the positions of an audio encoder."""

Cursor = dict[str, Any]
"""Where reading goes on: plain values, as each corpus understands them."""


@dataclass
class Batch:
    """One forward pass: inputs and the identity of every token of every stack that it feeds.

    The fields speak of one stack. Where the pass feeds more of them (the decoder of an encoder-decoder), each
    has a batch of the same sequences of its own in ``further``: ask ``of`` for the one of a stack.

    Attributes:
        number: index of the batch in the whole corpus, from 0, whatever the number of processes.
        stack: the stack whose positions these tokens are.
        inputs: keyword arguments of the model's forward pass.
        token_ids: [B, T] int64; -1 where a position has no token (image patches, audio frames, padding).
        real: [B, T] bool; false for padding. The real tokens of a row are contiguous.
        classes: [B, T] uint8 index into ``class_names``.
        class_names: ``TEXT_CLASSES``, ``IMAGE_CLASSES`` or ``AUDIO_CLASSES``.
        sequence_ids: [B] int64, numbered over the whole corpus from 0.
        documents: where each sequence came from, for messages ("my.jsonl:17", a picture's file name).
        dear: whether the dear statistics (full patterns, histograms, medians) are computed on this batch.
        cursor: where the corpus goes on after this batch.
        further: the same sequences in further stacks that ``inputs`` feed; these have no inputs of their own.
    """

    number: int
    stack: str
    inputs: dict[str, Any]
    token_ids: Tensor
    real: Tensor
    classes: Tensor
    class_names: tuple[str, ...]
    sequence_ids: Tensor
    documents: list[str]
    dear: bool = True
    cursor: Cursor | None = None
    further: tuple[Batch, ...] = ()

    @property
    def views(self) -> tuple[Batch, ...]:
        """The tokens of every stack that is fed, this one's first."""
        return (self, *self.further)

    def of(self, stack: str) -> Batch | None:
        """The tokens of a stack; ``None`` where the pass does not feed it."""
        return next((view for view in self.views if view.stack == stack), None)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return int(self.real.sum())

    @cached_property
    def order(self) -> TokenOrder:
        """The real tokens by sequence and class; computed once for all sites of the forward pass.

        Raises:
            ValueError: where a real token has a class beyond ``class_names``.
        """
        if bool((self.classes[self.real] >= len(self.class_names)).any()):
            raise ValueError(f"a token has a class beyond the {len(self.class_names)} that are named")
        return TokenOrder.of(self.real, self.classes)

    def rows(self, sequence: int) -> slice:
        """The real positions of the batch's ``sequence``-th row, as a slice of T."""
        real = self.real[sequence].nonzero()  # [T_real, 1]
        if not len(real):
            return slice(0, 0)
        return slice(int(real[0]), int(real[-1]) + 1)

    def split(self) -> tuple[Batch, Batch]:
        """Two halves with the same number, for when the whole does not fit into memory."""
        half = len(self.sequence_ids) // 2
        return self.take(slice(0, half)), self.take(slice(half, None))

    def take(self, rows: slice) -> Batch:
        """Some of the sequences, whole."""
        return Batch(
            number=self.number,
            stack=self.stack,
            inputs={
                key: value[rows] if isinstance(value, torch.Tensor) else value
                for key, value in self.inputs.items()
            },
            token_ids=self.token_ids[rows],
            real=self.real[rows],
            classes=self.classes[rows],
            class_names=self.class_names,
            sequence_ids=self.sequence_ids[rows],
            documents=self.documents[rows],
            dear=self.dear,
            cursor=self.cursor,
            further=tuple(view.take(rows) for view in self.further),
        )
