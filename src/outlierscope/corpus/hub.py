"""Data sets of the Hugging Face hub, streamed: nothing but what is read is downloaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.document import Document, Reader, missing_column, read_text
from outlierscope.corpus.media import Item
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PREFIX = "hub:"

FORM = "hub:NAME:SPLIT, hub:NAME:CONFIG:SPLIT or hub:NAME:CONFIG:SPLIT:COLUMN (CONFIG may be empty)"


@dataclass(frozen=True)
class HubAddress:
    """Which rows of which data set.

    Attributes:
        name: the data set's id on the hub.
        config: its configuration, or ``None`` for the only one.
        split: such as ``train``.
        column: ``None`` for the usual one.
    """

    name: str
    config: str | None
    split: str
    column: str | None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """From ``hub:NAME[:CONFIG]:SPLIT[:COLUMN]``; with three parts the second is the configuration.

        Raises:
            UserError: for anything else.

        >>> HubAddress.parse("hub:wikitext:wikitext-2-raw-v1:test")
        HubAddress(name='wikitext', config='wikitext-2-raw-v1', split='test', column=None)
        >>> HubAddress.parse("hub:me/mine::train:body").column
        'body'
        """
        name, *parts = text.removeprefix(PREFIX).split(":")
        if len(parts) not in (1, 2, 3):
            raise UserError(f"{text}: a data set on the hub is given as {FORM}")
        config = parts[0] if len(parts) > 1 else None
        split = parts[min(1, len(parts) - 1)]
        column = parts[2] if len(parts) == 3 else None
        if not name or not split or column == "":
            raise UserError(f"{text}: a data set on the hub is given as {FORM}")
        return cls(name, config or None, split, column)


class HubRows:
    """The rows of a split, streamed at one commit.

    Args:
        address: which data set.

    Raises:
        UserError: when the library is not installed, or the data set cannot be reached or does not exist.
    """

    def __init__(self, address: HubAddress) -> None:
        try:
            from datasets import load_dataset
        except ImportError:
            raise UserError(
                "data sets of the hub need the library datasets; pip install 'outlierscope[data]'"
            ) from None
        self.address = address
        try:
            self.revision = resolve_revision(address.name)
            self.rows = load_dataset(
                address.name, address.config, split=address.split, revision=self.revision, streaming=True
            )
            self._names = self.rows.column_names or list(next(iter(self.rows), {}))
        # The network and the library's many builders raise whatever they like; the cause stays attached.
        except Exception as error:
            raise UserError(
                f"cannot read {PREFIX}{address.name} ({_reason(error)}); check the name, config, split and the "
                "network, or download it and give the file"
            ) from error

    def check(self, column: str) -> None:
        """Raises:
        UserError: when there is no such column.
        """
        if column not in self._names:
            raise missing_column(f"{PREFIX}{self.address.name}", column, self._names)

    def column_of(self, feature: str) -> str:
        """The first column of a kind (``Image``, ``Audio``).

        Raises:
            UserError: when there is none.
        """
        for name, kind in (self.rows.features or {}).items():
            if type(kind).__name__ == feature:
                return str(name)
        names = ", ".join(self._names)
        raise UserError(
            f"{PREFIX}{self.address.name}: no column holds {feature}; the columns are {names}; name one as COLUMN"
        )

    def cells(self, columns: list[str], start: int, rows: Any = None) -> Iterator[tuple[int, list[Any]]]:
        """Row numbers from 0 and contents of columns, from a row on; those before are not decoded.

        Raises:
            UserError: when the stream breaks off.
        """
        row = start
        stream = iter((self.rows if rows is None else rows).select_columns(columns).skip(start))
        while True:
            try:
                values = next(stream)
            except StopIteration:
                return
            except Exception as error:  # as above
                raise UserError(
                    f"{PREFIX}{self.address.name} broke off after row {row} ({_reason(error)}); "
                    "go on with --resume"
                ) from error
            yield row, [values[column] for column in columns]
            row += 1

    def fingerprint(self, column: str) -> str:
        """SHA-256 over the address and the commit: they decide about the content."""
        facts = asdict(self.address) | {"column": column, "revision": self.revision}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def describe(self, column: str) -> dict[str, Any]:
        """The address and the commit."""
        address = self.address
        return {
            "kind": "hub",
            "path": f"{PREFIX}{address.name}:{address.config or ''}:{address.split}:{column}",
            "revision": self.revision,
            "column": column,
        }


class HubDocuments:
    """Rows as documents.

    Args:
        rows: the data set.
        columns: what is read of it.
        read: makes a document of that.
    """

    def __init__(self, rows: HubRows, columns: Sequence[str], read: Reader = read_text) -> None:
        for column in columns:
            rows.check(column)
        self.rows = rows
        self.columns = [*columns]
        self.column = ",".join(columns)
        self.read = read

    @property
    def characters(self) -> None:
        """Unknown."""

    def __iter__(self) -> Iterator[Document]:
        return self.since(0)

    def since(self, start: int) -> Iterator[Document]:
        """The documents from a row on."""
        name = self.rows.address.name
        for row, cells in self.rows.cells(self.columns, start):
            place = f"{PREFIX}{name}: row {row}: column {self.column!r}"
            yield self.read(cells, f"{name}:{row}", place)

    def fingerprint(self) -> str:
        """Of the address and the commit."""
        return self.rows.fingerprint(self.column)

    def describe(self) -> dict[str, Any]:
        """The address and the commit."""
        return self.rows.describe(self.column)


class HubMedia:
    """A column of pictures or recordings, as the bytes of their files.

    Args:
        rows: the data set.
        feature: ``Image`` or ``Audio``.
    """

    def __init__(self, rows: HubRows, feature: str) -> None:
        import datasets

        self.rows = rows
        self.column = rows.address.column or rows.column_of(feature)
        rows.check(self.column)
        self._stored = rows.rows.cast_column(self.column, getattr(datasets, feature)(decode=False))

    @property
    def count(self) -> None:
        """Unknown."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """Rows by number."""
        for row, (cell,) in self.rows.cells([self.column], start, self._stored):
            yield Item(f"row {row}", _file_bytes(cell))

    def fingerprint(self, wanted: int | None) -> str:  # noqa: ARG002  (the commit says it all)
        """Of the address and the commit."""
        return self.rows.fingerprint(self.column)

    def describe(self) -> dict[str, Any]:
        """The address and the commit."""
        return self.rows.describe(self.column)


def resolve_revision(name: str) -> str:
    """The commit that a data set is at now."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name).sha)


def _file_bytes(cell: dict[str, Any] | None) -> bytes:
    if cell is None:
        return b""
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    import fsspec

    with fsspec.open(cell["path"], "rb") as file:
        content: bytes = file.read()
    return content


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
