"""AudioCorpus: recordings as numbered batches of what an audio encoder hears."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.audio_windows import AudioWindow, Tally
from outlierscope.corpus.batch import AUDIO_CLASSES, Batch
from outlierscope.corpus.batching import BATCH_TOKENS, Sampling
from outlierscope.corpus.media import Decoded, Reached, nothing_decoded
from outlierscope.corpus.recordings import mono_samples
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from outlierscope.corpus.audio_layout import AudioLayout
    from outlierscope.corpus.batch import Cursor
    from outlierscope.corpus.media import MediaSource
    from outlierscope.corpus.recordings import Samples

LEAST_FRAMES = 2
"""Windows with fewer frames than this are dropped: there is nothing to attend to."""

LEAST_SECONDS = 0.1
"""Windows shorter than this are dropped: feature extractors want some samples to begin with."""


class AudioCorpus:
    """Recordings through the model's own feature extractor; always the same batches in the same order.

    Recordings are cut into windows of what the model hears at once, one after the other and without overlap; no
    window holds two recordings. Recordings that cannot be decoded are skipped, counted and listed.

    Args:
        source: the recordings.
        extractor: the model's feature extractor (transformers).
        input_name: what the model calls its input.
        stack: stack of the model that sees the frames.
        layout: how the model lays out its positions.
        frames_of: frames that the model makes of so many samples or steps of features; for layouts whose
            number of frames is not always the same.
        time_axis: axis of the features along which those lie; likewise.
        batch_size: windows of a batch; ``None``: as many as make ``BATCH_TOKENS`` positions.
        tokens: stop with the window that brings the real positions to this number; ``None``: read all.
        sampling: on which batches the dear statistics are computed.

    Raises:
        UserError: while reading, when there is nothing that the model can hear.
    """

    def __init__(
        self,
        source: MediaSource,
        extractor: Any,
        *,
        input_name: str,
        stack: str,
        layout: AudioLayout,
        frames_of: Callable[[int], int] | None = None,
        time_axis: int = 1,
        batch_size: int | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.source = source
        self.extractor = extractor
        self.input_name = input_name
        self.stack = stack
        self.layout = layout
        self.frames_of = frames_of
        self.time_axis = time_axis
        frames = layout.frames or round(layout.window / layout.hop)
        self.batch_size = batch_size or max(1, BATCH_TOKENS // layout.positions(frames))
        self.tokens = tokens
        self.sampling = sampling or Sampling()
        self._decoded = Decoded(source, partial(mono_samples, rate=layout.rate))
        self._furthest = Tally(Reached())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of positions."""
        return AUDIO_CLASSES

    @property
    def estimated_tokens(self) -> None:
        """Unknown: only reading the recordings tells how long they are."""

    def batches(self, start: int = 0, cursor: Cursor | None = None) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is.

        Without the ``cursor`` of the batch before, what lies before ``start`` is decoded again.
        """
        tally = Tally(Reached()) if cursor is None else Tally.at(cursor)
        number, first = (0, 0) if cursor is None else (start, tally.sequences)
        for group in self._groups(tally):
            if number >= start:
                yield self._batch(number, first, group)
            number, first = number + 1, first + len(group)

    def _groups(self, tally: Tally) -> Iterator[list[AudioWindow]]:
        """Consecutive windows; of one length where the model is not told which frames are padding."""
        group: list[AudioWindow] = []
        for window in self._windows(tally):
            alike = not group or self.layout.masked or window.features.shape == group[0].features.shape
            if len(group) == self.batch_size or not alike:
                yield group
                group = []
            group.append(window)
        if group:
            yield group

    def _windows(self, tally: Tally) -> Iterator[AudioWindow]:
        layout = self.layout
        self._note(tally)
        if self._enough(tally):  # of a cursor at the end
            next(self._decoded.read(tally.before))  # so that this recording counts as decoded
            return
        done = tally.windows
        for name, samples, reached in self._decoded.read(tally.before):
            for start in range(done * layout.window, len(samples), layout.window):
                window = self._window(name, start, samples[start : start + layout.window])
                tally = replace(tally, windows=tally.windows + 1)
                if window is None:
                    tally = replace(tally, short=tally.short + 1)
                else:
                    tally = replace(
                        tally,
                        sequences=tally.sequences + 1,
                        positions=tally.positions + layout.positions(window.heard),
                    )
                self._note(tally)
                if window is not None:
                    yield replace(window, tally=tally)
                    if self._enough(tally):
                        return
            tally, done = replace(tally, before=reached, windows=0), 0
        if not tally.sequences:
            raise self._nothing_heard(tally)

    def _enough(self, tally: Tally) -> bool:
        return self.tokens is not None and tally.positions >= self.tokens

    def _note(self, tally: Tally) -> None:
        if (tally.sequences, tally.short) >= (self._furthest.sequences, self._furthest.short):
            self._furthest = tally  # this reading is the one that came furthest

    def _window(self, name: str, start: int, samples: Samples) -> AudioWindow | None:
        """The window, or ``None`` where it is too short."""
        layout = self.layout
        # Bands come one after the other, so that padding would lie between them.
        least = layout.window if layout.bands > 1 else LEAST_SECONDS * layout.rate
        if len(samples) < least:
            return None
        features: Tensor = self.extractor(samples, sampling_rate=layout.rate, return_tensors="pt")[
            self.input_name
        ]
        if layout.frames is not None:
            frames = layout.frames
        else:
            assert self.frames_of is not None  # noqa: S101  (given for such layouts)
            frames = self.frames_of(features.shape[self.time_axis])
        heard = layout.frames_heard(len(samples), frames)
        if heard < LEAST_FRAMES:
            return None
        seconds = start / layout.rate
        return AudioWindow(f"{name} from {seconds:g} s", samples, features, heard, frames, Tally(Reached()))

    def _nothing_heard(self, tally: Tally) -> UserError:
        if not self._decoded.furthest.decoded:
            return nothing_decoded(self.source, self._decoded.furthest, "recordings")
        need = self.layout.window / self.layout.rate if self.layout.bands > 1 else LEAST_SECONDS
        return UserError(
            f"no recording is as long as {need:.4g} s, which this model needs ({tally.short} are shorter); "
            "give longer ones"
        )

    def _batch(self, number: int, first: int, windows: list[AudioWindow]) -> Batch:
        longest = max(window.frames for window in windows)
        positions = self.layout.positions(longest)
        heard = torch.tensor([[self.layout.positions(window.heard)] for window in windows])
        real = torch.arange(positions) < heard  # [B, T]
        return Batch(
            number=number,
            stack=self.stack,
            inputs=self._inputs([window.features for window in windows]),
            token_ids=torch.full(real.shape, -1, dtype=torch.int64),
            real=real,
            classes=torch.stack([self.layout.classes(window.samples, longest) for window in windows]),
            class_names=AUDIO_CLASSES,
            sequence_ids=torch.arange(first, first + len(windows)),
            documents=[window.name for window in windows],
            dear=self.sampling.dear(number, first),
            cursor=windows[-1].tally.cursor(),
        )

    def _inputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """The features as one tensor, padded on the right; where that was needed, the mask as well."""
        axis = self.time_axis
        lengths = torch.tensor([[one.shape[axis]] for one in features])  # [B, 1]
        longest = int(lengths.max())
        value = float(getattr(self.extractor, "padding_value", 0.0))
        padded = []
        for one in features:
            shape = [*one.shape[:axis], longest - one.shape[axis], *one.shape[axis + 1 :]]
            padded.append(torch.cat([one, one.new_full(shape, value)], dim=axis))
        inputs = {self.input_name: torch.cat(padded)}
        if self.layout.masked:
            inputs["attention_mask"] = (torch.arange(longest) < lengths).long()  # [B, L]
        return inputs

    def fingerprint(self) -> str:
        """SHA-256 over all names and sizes, the content of the recordings that may be read, and the settings."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Each gives one window or more, and each window its least number of frames.
        least = self.layout.positions(LEAST_FRAMES)
        wanted = None if self.tokens is None else -(-self.tokens // least)
        settings = {
            "source": self.source.fingerprint(wanted),
            "extractor": json.loads(self.extractor.to_json_string()),
            "stack": self.stack,
            "layout": asdict(self.layout),
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
            "layout": asdict(self.layout),
            "sampling": asdict(self.sampling),
            "short_windows_dropped": self._furthest.short,
        } | self._decoded.describe("recording")

    def token_text(self, token_id: int) -> None:
        """Nothing: frames have no vocabulary."""

    def context(self, batch: Batch, row: int, position: int) -> str:
        """Where in which recording a frame is."""
        place = self.layout.place(position)
        if place is None:
            return f"before the frames of {batch.documents[row]}"
        band = f", band {place['band']}" if "band" in place else ""
        return f"frame {place['frame']}{band}, {place['seconds']:g} s into {batch.documents[row]}"

    def place(self, position: int) -> dict[str, Any] | None:
        """Frame, seconds from the start of the window and band of a position; ``None`` before the frames."""
        return self.layout.place(position)
