"""Documents that are handed over from Python: strings, token ids, or the batches of a DataLoader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outlierscope.corpus.document import Document
from outlierscope.errors import UserError


class GivenDocuments:
    """An iterable of texts, of token id sequences, or of batches of either.

    An item may be a ``str``; a list of ``str``; a sequence of token ids (list, tuple, NumPy array,
    [T] tensor); a batch of them ([B, T] tensor); or a mapping with ``input_ids`` (and ``attention_mask``,
    whose zeros are dropped) or with ``text``, as DataLoaders give them.

    What a one-shot iterator yields is kept, so that it can be read again; only as much is read as is needed.

    Args:
        items: the iterable.
        title: what the documents are called in messages.

    Raises (while reading):
        UserError: for an item of another kind.
    """

    def __init__(self, items: Iterable[Any], title: str = "texts") -> None:
        self._items = items
        self._title = title
        # What is no sequence is read once only: a DataLoader that shuffles would change the next time.
        self._rest = None if isinstance(items, Sequence) else iter(items)
        self._kept: list[Any] = []

    @property
    def characters(self) -> int | None:
        """Characters of a list of strings, else ``None``."""
        if isinstance(self._items, Sequence) and all(isinstance(item, str) for item in self._items):
            return sum(len(item) for item in self._items)
        return None

    def _read(self) -> Iterator[Any]:
        if self._rest is None:
            yield from self._items
            return
        index = 0
        while True:
            if index == len(self._kept):
                try:
                    self._kept.append(next(self._rest))
                except StopIteration:
                    return
            yield self._kept[index]
            index += 1

    def __iter__(self) -> Iterator[Document]:
        for index, item in enumerate(self._read()):
            yield from _documents(item, f"{self._title}[{index}]")

    def fingerprint(self) -> str:
        """SHA-256 of what was given (of an iterator: of what was read of it so far)."""
        digest = hashlib.sha256()
        items = self._kept if self._rest is not None else self._items
        for index, item in enumerate(items):
            for document in _documents(item, f"{self._title}[{index}]"):
                is_text = document.token_ids is None
                content = "".join(document.blocks) if is_text else repr(document.token_ids)
                digest.update(f"{is_text}:{len(content)}:{content}".encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """That it came from Python."""
        return {"kind": "given", "path": None, "title": self._title}


def _documents(item: object, name: str) -> Iterator[Document]:
    if isinstance(item, str):
        yield Document(name, (item,))
    elif isinstance(item, Mapping):
        yield from _mapping_documents(item, name)
    elif hasattr(item, "tolist"):  # tensors and NumPy arrays
        yield from _documents(item.tolist(), name)
    elif isinstance(item, Sequence) and not isinstance(item, bytes):
        if all(isinstance(value, int) and not isinstance(value, bool) for value in item):
            yield Document(name, token_ids=list(item))
        elif len(item) > 1 and all(getattr(value, "ndim", 0) > 1 for value in item):
            raise UserError(
                f"{name} is {len(item)} tensors, and nothing tells which are token ids; "
                "let batches be mappings with input_ids and attention_mask"
            )
        else:
            for row, value in enumerate(item):
                yield from _documents(value, f"{name}[{row}]")
    else:
        raise UserError(
            f"{name} is a {type(item).__name__}; expected str, a sequence of token ids, "
            "or a mapping with input_ids or text"
        )


def _mapping_documents(item: Mapping[str, Any], name: str) -> Iterator[Document]:
    if "input_ids" in item:
        rows = [document.token_ids for document in _documents(item["input_ids"], name)]
        mask = item.get("attention_mask")
        masks = [None] * len(rows) if mask is None else [d.token_ids for d in _documents(mask, name)]
        single = len(rows) == 1
        for index, (row, seen) in enumerate(zip(rows, masks, strict=True)):
            if row is None:
                raise UserError(f"{name}: input_ids must be token ids")
            kept = row if seen is None else [token for token, real in zip(row, seen, strict=True) if real]
            yield Document(name if single else f"{name}[{index}]", token_ids=kept)
    elif "text" in item:
        yield from _documents(item["text"], name)
    else:
        keys = ", ".join(str(key) for key in item)
        raise UserError(f"{name} has neither input_ids nor text; there are: {keys}")
