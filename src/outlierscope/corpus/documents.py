"""Documents: what the readers of files and iterables yield, and the readers themselves.

A plain text file is one long document, because that is how text collections such as WikiText are read; every
row of a .jsonl or .parquet file is a document of its own.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from outlierscope.corpus.document import Document, Reader, kind_of, missing_column, read_text
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyarrow import DataType
    from pyarrow.parquet import ParquetFile

BLOCK_CHARACTERS = 65_536
"""How much of a text file is read at once."""

HASHED_BYTES = 256 * 2**20
"""Files up to this size are hashed as a whole; of larger ones the size, the beginning and the end count."""

SAMPLED_BYTES = 32 * 2**20
"""How much of the beginning and of the end."""


class DocumentSource(Protocol):
    """Documents that can be read again from the beginning."""

    @property
    def characters(self) -> int | None:
        """About how many characters of text there are; ``None`` when unknown. Only an estimate."""

    def __iter__(self) -> Iterator[Document]:
        """All documents, always the same ones in the same order."""

    def fingerprint(self) -> str:
        """A hash of the content, in hexadecimal."""

    def describe(self) -> dict[str, Any]:
        """Where the text comes from, for ``scan.json``."""


@runtime_checkable
class Seekable(Protocol):
    """A source that gets to a document without reading those before it."""

    def since(self, start: int) -> Iterator[Document]:
        """The documents from index ``start`` on."""


def documents_from(source: DocumentSource, start: int) -> Iterator[Document]:
    """The documents from index ``start`` on, those before it passed over."""
    return source.since(start) if isinstance(source, Seekable) else islice(source, start, None)


class TextFile:
    """A .txt file in UTF-8: one document, read block by block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def characters(self) -> int:
        """Its size in bytes; in most scripts a little more than its characters."""
        return self.path.stat().st_size

    def __iter__(self) -> Iterator[Document]:
        yield Document(self.path.name, self._blocks())

    def _blocks(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8-sig") as file:
            try:
                while block := file.read(BLOCK_CHARACTERS):
                    yield block
            except UnicodeDecodeError as error:
                raise _not_utf8(str(self.path), error) from None

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return file_fingerprint(self.path)

    def describe(self) -> dict[str, Any]:
        """The file's name."""
        return {"kind": "txt", "path": str(self.path)}


class JsonLines:
    """A .jsonl file: one JSON object a line, some of whose fields are read.

    Args:
        path: the file.
        columns: the fields.
        read: makes a document of them.

    Raises (while reading):
        UserError: for a line that is not a JSON object, lacks the field or holds something else in it.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ("text",), read: Reader = read_text) -> None:
        self.path = path
        self.columns = columns
        self.read = read

    @property
    def characters(self) -> int:
        """Its size in bytes, the other fields included."""
        return self.path.stat().st_size

    def __iter__(self) -> Iterator[Document]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place = f"{self.path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(place, error) from None
                if text.strip():
                    yield self.read(
                        self._cells(text, place),
                        f"{self.path.name}:{number}",
                        f"{place}: field {','.join(self.columns)!r}",
                    )

    def _cells(self, line: str, place: str) -> list[Any]:
        try:
            row = json.loads(line.strip())
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise UserError(f"{place}: broken JSON ({reason}); every line must hold one object") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: holds {kind_of(row)}; every line must hold one JSON object")
        for column in self.columns:
            if column not in row:
                raise missing_column(place, column, row)
        return [row[column] for column in self.columns]

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return file_fingerprint(self.path)

    def describe(self) -> dict[str, Any]:
        """The file's name and the field that is read."""
        return {"kind": "jsonl", "path": str(self.path), "column": ",".join(self.columns)}


class Parquet:
    """A .parquet file, some of whose columns are read; arguments as for ``JsonLines``.

    Raises:
        UserError: for a file that is not parquet, a missing column or one of another type.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ("text",), read: Reader = read_text) -> None:
        self.path = path
        self.columns = columns
        self.read = read
        with self._open() as file:
            schema = file.schema_arrow
            for column in columns:
                if column not in schema.names:
                    raise missing_column(str(path), column, schema.names)
            kind = schema.field(columns[0]).type
            total = 0
            for group in range(file.metadata.num_row_groups):
                part = file.metadata.row_group(group)
                for index in range(part.num_columns):
                    if part.column(index).path_in_schema.split(".")[0] in columns:
                        total += part.column(index).total_uncompressed_size
        text = _is_text(kind)
        if read is read_text and not text and not _is_token_ids(kind):
            raise UserError(
                f"{path}: column {columns[0]!r} holds {kind}, expected text or lists of token ids; "
                f"the columns are {', '.join(schema.names)}"
            )
        self._characters = total if text else None

    def _open(self) -> ParquetFile:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.path)
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path}: not a readable parquet file ({reason})") from None

    @property
    def characters(self) -> int | None:
        """Uncompressed bytes of the column; ``None`` for token ids."""
        return self._characters

    def __iter__(self) -> Iterator[Document]:
        from pyarrow import ArrowException

        row = 0
        with self._open() as file:
            try:
                for batch in file.iter_batches(batch_size=256, columns=[*self.columns]):
                    for values in batch.to_pylist():
                        row += 1
                        place = f"{self.path}: row {row}: column {','.join(self.columns)!r}"
                        cells = [values[column] for column in self.columns]
                        yield self.read(cells, f"{self.path.name}:{row}", place)
            except (ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{self.path}: damaged after row {row} ({reason})") from None

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return file_fingerprint(self.path)

    def describe(self) -> dict[str, Any]:
        """The file's name and the column that is read."""
        return {"kind": "parquet", "path": str(self.path), "column": ",".join(self.columns)}


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file; of a very large one, that of its size, its first and its last 32 MiB."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= HASHED_BYTES:
            while block := file.read(2**20):
                digest.update(block)
        else:
            digest.update(str(size).encode())
            digest.update(file.read(SAMPLED_BYTES))
            file.seek(max(0, size - SAMPLED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def _not_utf8(place: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{place}: not UTF-8 text (byte 0x{byte:02x}: {error.reason}); convert it to UTF-8 first"
    )


def _is_text(kind: DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_token_ids(kind: DataType) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_integer(kind.value_type))
