"""What a scan resumes from: how far it has come, and the saved state of its statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError
from outlierscope.scanning.store import checksum, read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from outlierscope.corpus.batch import Batch, Cursor
    from outlierscope.stats.measurements import Measurements

FOLDER = "resume"
"""Folder inside the scan folder that holds the state of an unfinished scan; removed when it is complete."""


@dataclass
class Progress:
    """What has been read so far.

    Attributes:
        batches: whole batches committed; also the number of the next batch.
        tokens: real tokens seen.
        sequences: sequences seen.
        longest: tokens of the longest sequence.
        sampled_batches: batches on which dear statistics were computed.
        sampled_tokens: their tokens.
        sampled_sequences: their sequences.
        halved: numbers of the batches that were halved for lack of memory.
        seconds: time spent in passes, over all runs.
        unobserved: site -> why its attention could not be observed in some batch.
        cursor: where the corpus goes on.
    """

    batches: int = 0
    tokens: int = 0
    sequences: int = 0
    longest: int = 0
    sampled_batches: int = 0
    sampled_tokens: int = 0
    sampled_sequences: int = 0
    halved: list[int] = field(default_factory=list)
    seconds: float = 0.0
    unobserved: dict[str, str] = field(default_factory=dict)
    cursor: Cursor | None = None

    def count(self, batch: Batch) -> None:
        """Add one committed batch."""
        tokens, sequences = batch.tokens, len(batch.sequence_ids)
        self.batches = batch.number + 1
        self.cursor = batch.cursor
        self.tokens += tokens
        self.sequences += sequences
        self.longest = max(self.longest, int(batch.real.sum(dim=1).max()))
        if batch.dear:
            self.sampled_batches += 1
            self.sampled_tokens += tokens
            self.sampled_sequences += sequences


def save_progress(
    folder: Path, progress: Progress, measurements: Measurements, identity: dict[str, Any]
) -> None:
    """Save the state so that a kill at any moment leaves the previous or the new state, never half of one."""
    tensors = folder / FOLDER / f"state-{progress.batches:08d}.safetensors"
    digest = write_tensors(tensors, measurements.state())
    cursor = {"identity": identity, "progress": asdict(progress), "file": tensors.name, "sha256": digest}
    write_json(folder / FOLDER / "cursor.json", cursor)
    for old in (folder / FOLDER).glob("state-*.safetensors"):
        if old != tensors:
            old.unlink()


def load_progress(folder: Path, measurements: Measurements, identity: dict[str, Any]) -> Progress:
    """Restore a saved state into ``measurements``.

    Raises:
        UserError: when there is nothing to resume, the state is broken, or the scan was another one.
    """
    path = folder / FOLDER / "cursor.json"
    if not path.exists():
        raise UserError(f"nothing to resume in {folder}; start without --resume")
    cursor = read_json(path)
    for key, value in identity.items():
        if cursor["identity"].get(key) != value:
            raise UserError(
                f"cannot resume {folder}: {key} was {cursor['identity'].get(key)!r} and is {value!r} now; "
                "use the same settings, or --overwrite to start again"
            )
    tensors = folder / FOLDER / cursor["file"]
    if not tensors.exists() or checksum(tensors) != cursor["sha256"]:
        raise UserError(
            f"cannot resume {folder}: {tensors.name} is missing or damaged; start again with --overwrite"
        )
    keys, get = read_tensors(tensors)
    measurements.load_state(get, keys)
    return Progress(**cursor["progress"])


def discard_progress(folder: Path) -> None:
    """Remove the saved state of a scan that is complete or starts again, and nothing else."""
    saved = folder / FOLDER
    for path in saved.glob("*"):
        if is_of_progress(path):
            path.unlink()
    if saved.exists() and not any(saved.iterdir()):
        saved.rmdir()


def is_of_progress(path: Path) -> bool:
    """Whether a file inside of ``FOLDER`` belongs to a saved state, finished or half-written."""
    return path.is_file() and path.name.lstrip(".").startswith(("cursor.json", "state-"))
