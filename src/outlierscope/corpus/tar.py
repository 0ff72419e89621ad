"""Pictures or recordings in a .tar, as WebDataset stores them: read member by member, nothing is extracted."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.documents import file_fingerprint
from outlierscope.corpus.media import Item
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")


class TarMembers:
    """The files of some kinds in an archive, in the order in which they are stored; hidden ones are passed over.

    Raises:
        UserError: when it is no archive, or damaged.
    """

    def __init__(self, path: Path, suffixes: tuple[str, ...], kind: str) -> None:
        self.path = path
        self.suffixes = suffixes
        self.kind = kind

    @property
    def count(self) -> None:
        """Unknown: only reading it all would tell."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """Members by name."""
        seen = 0
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    wanted = name.suffix.lower() in self.suffixes and not name.name.startswith(".")
                    if not member.isreg() or not wanted:
                        continue
                    seen += 1
                    file = archive.extractfile(member) if seen > start else None
                    if file is not None:
                        yield Item(member.name, file.read())
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{self.path}: damaged after {seen} files, or no .tar ({error})") from None

    def fingerprint(self, wanted: int | None) -> str:  # noqa: ARG002  (one file is hashed as one)
        """SHA-256 of the archive."""
        return file_fingerprint(self.path)

    def describe(self) -> dict[str, Any]:
        """The archive."""
        return {"kind": self.kind, "path": str(self.path)}
