"""Media: pictures and recordings as they come, one after the other, and what became of those that are broken."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from outlierscope.corpus.batch import Cursor

T = TypeVar("T")

LISTED_FAILURES = 100
"""How many of the items that could not be read are listed by name."""


class MediaError(Exception):
    """A picture or recording that cannot be decoded; the text is the reason."""


@dataclass(frozen=True)
class Item:
    """One picture or recording, not decoded yet.

    Attributes:
        name: where it came from, for messages.
        content: a path, the bytes of a file, or what was handed over from Python.
    """

    name: str
    content: Any


class MediaSource(Protocol):
    """Items that can be read again, from any of them on."""

    @property
    def count(self) -> int | None:
        """How many items there are; ``None`` when only reading them all would tell."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """All items from index ``start`` on, always the same ones in the same order."""

    def fingerprint(self, wanted: int | None) -> str:
        """A hash of the content, in hexadecimal; of the first ``wanted`` items where hashing all would cost."""

    def describe(self) -> dict[str, Any]:
        """Where the items come from, for ``scan.json``."""


class Files:
    """Files, read when their turn comes.

    Args:
        paths: the files.
        folder: what their names are told relative to.
        kind: what they are, for ``describe``.
    """

    def __init__(self, paths: Sequence[Path], folder: Path | None, kind: str) -> None:
        self.paths = paths
        self.folder = folder
        self.kind = kind

    @property
    def count(self) -> int:
        """How many files."""
        return len(self.paths)

    def items(self, start: int = 0) -> Iterator[Item]:
        """The paths themselves."""
        for path in self.paths[start:]:
            yield Item(self._name(path), path)

    def _name(self, path: Path) -> str:
        if self.folder is not None and path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return path.name

    def fingerprint(self, wanted: int | None) -> str:
        """SHA-256 over all names and sizes, and the content of the first ``wanted`` files."""
        digest = hashlib.sha256()
        for index, path in enumerate(self.paths):
            digest.update(f"{self._name(path)}:{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if wanted is None or index < wanted else b"")
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The folder."""
        return {"kind": self.kind, "path": None if self.folder is None else str(self.folder)}


class Given:
    """What was handed over from Python: paths, or contents in memory.

    Args:
        contents: the items.
        kind: what they are, for ``describe``.
        nouns: the same in messages, such as ``pictures``.
        as_bytes: the content of an item that is no path, for the fingerprint.
    """

    def __init__(
        self, contents: Sequence[Any], kind: str, nouns: str, as_bytes: Callable[[Any], bytes]
    ) -> None:
        self.contents = contents
        self.kind = kind
        self.nouns = nouns
        self.as_bytes = as_bytes

    @property
    def count(self) -> int:
        """How many items."""
        return len(self.contents)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Paths by name, others by index."""
        for index, content in enumerate(self.contents[start:], start):
            yield Item(self._name(content, index), content)

    def _name(self, content: Any, index: int) -> str:
        return content.name if isinstance(content, Path) else f"{self.nouns}[{index}]"

    def fingerprint(self, wanted: int | None) -> str:
        """SHA-256 over names and sizes, and the content of the first ``wanted`` items."""
        digest = hashlib.sha256()
        for index, content in enumerate(self.contents):
            if isinstance(content, Path):
                digest.update(f"{content.name}:{content.stat().st_size}\n".encode())
            if wanted is None or index < wanted:
                digest.update(content.read_bytes() if isinstance(content, Path) else self.as_bytes(content))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """That they came from Python."""
        return {"kind": self.kind, "path": None, "title": self.nouns}


def folder_files(folder: Path, suffixes: tuple[str, ...], nouns: str, kind: str) -> Files:
    """The files of some kinds in a folder and its subfolders, sorted by path; hidden files are passed over.

    Raises:
        UserError: when there are none.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise UserError(f"{folder}: a folder without {nouns} ({', '.join(suffixes)})")
    return Files(sorted(found, key=lambda path: path.relative_to(folder).as_posix()), folder, kind)


@dataclass(frozen=True)
class Reached:
    """How far a reading of a source has come.

    Attributes:
        items: items taken from the source.
        decoded: those of them that could be decoded.
        failed: those that could not.
        failures: names and reasons of the first of those.
    """

    items: int = 0
    decoded: int = 0
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()

    def cursor(self) -> Cursor:
        """As plain values."""
        return asdict(self) | {"failures": [list(failure) for failure in self.failures]}

    @classmethod
    def at(cls, cursor: Cursor) -> Reached:
        """The inverse of ``cursor``.

        >>> reached = Reached(3, 2, 1, (("a.png", "truncated"),))
        >>> Reached.at(reached.cursor()) == reached
        True
        """
        counts = {name: int(cursor[name]) for name in ("items", "decoded", "failed")}
        return cls(**counts, failures=tuple((name, reason) for name, reason in cursor["failures"]))


@dataclass
class Decoded(Generic[T]):
    """The items of a source that can be decoded; the others are skipped, counted and listed.

    Attributes:
        source: the items.
        decode: makes something of an item's content; raises ``MediaError`` where it cannot.
        furthest: how far the reading has come that came furthest.
    """

    source: MediaSource
    decode: Callable[[Any], T]
    furthest: Reached = field(default_factory=Reached)

    def read(self, reached: Reached | None = None) -> Iterator[tuple[str, T, Reached]]:
        """Names and decoded contents from ``reached`` on, each with how far that is."""
        reached = reached or Reached()
        self._note(reached)
        for item in self.source.items(reached.items):
            try:
                content = self.decode(item.content)
            except MediaError as error:
                listed = reached.failures
                if len(listed) < LISTED_FAILURES:
                    listed = (*listed, (item.name, str(error)))
                reached = replace(
                    reached, items=reached.items + 1, failed=reached.failed + 1, failures=listed
                )
                self._note(reached)
                continue
            reached = replace(reached, items=reached.items + 1, decoded=reached.decoded + 1)
            self._note(reached)
            yield item.name, content, reached

    def _note(self, reached: Reached) -> None:
        if reached.items >= self.furthest.items:
            self.furthest = reached

    def describe(self, noun: str) -> dict[str, Any]:
        """What was met so far, for ``scan.json``.

        Args:
            noun: what an item is, such as ``picture``.
        """
        return {
            f"{noun}s": self.source.count,
            f"{noun}s_decoded": self.furthest.decoded,
            f"{noun}s_skipped": self.furthest.failed,
            "skipped": [{noun: name, "reason": reason} for name, reason in self.furthest.failures],
        }


def nothing_decoded(source: MediaSource, reached: Reached, nouns: str) -> UserError:
    """The error for a source of which nothing can be decoded."""
    if not reached.failures:
        return UserError(f"{source.describe()['path']}: no {nouns} were found in it; give others")
    name, reason = reached.failures[0]
    return UserError(f"none of the {reached.failed} {nouns} can be decoded ({name}: {reason}); give others")
