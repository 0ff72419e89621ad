"""Windows of recordings, and how far a reading of them has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlierscope.corpus.media import Reached

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Cursor
    from outlierscope.corpus.recordings import Samples


@dataclass(frozen=True)
class AudioWindow:
    """A piece of a recording, as the model hears it.

    Attributes:
        name: the recording, and the second at which the piece starts.
        samples: [N] float32.
        features: [1, ...] float32, what the feature extractor made of it.
        heard: frames that hear any of it.
        frames: frames of the sequence, padding included.
        tally: how far the reading had come with it.
    """

    name: str
    samples: Samples
    features: Tensor
    heard: int
    frames: int
    tally: Tally


@dataclass(frozen=True)
class Tally:
    """How far a reading has come.

    Attributes:
        before: what was read before the recording that the last window is of.
        windows: windows of that recording, dropped ones included.
        sequences: windows in all.
        positions: their positions, padding excluded.
        short: windows dropped because they were too short.
    """

    before: Reached
    windows: int = 0
    sequences: int = 0
    positions: int = 0
    short: int = 0

    def cursor(self) -> Cursor:
        """As plain values."""
        return vars(self) | {"before": self.before.cursor()}

    @classmethod
    def at(cls, cursor: Cursor) -> Tally:
        """The inverse of ``cursor``."""
        return cls(**cursor | {"before": Reached.at(cursor["before"])})
