"""TextCorpus: documents as numbered batches of token ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.corpus.batching import Sampling, gathered
from outlierscope.corpus.context_text import context_text
from outlierscope.corpus.documents import documents_from
from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.corpus.token_classes import OTHER, class_table, text_classes, vocabulary_pieces
from outlierscope.corpus.tokenization import SpecialTokens, space_rule, special_tokens
from outlierscope.corpus.windows import LEAST_CONTENT, Window, content_windows, framed, pair_window
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from outlierscope.corpus.batch import Cursor
    from outlierscope.corpus.document import Document
    from outlierscope.corpus.documents import DocumentSource
    from outlierscope.corpus.writer import Writer

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class _Tally:
    """What was met while reading, from the beginning of the corpus up to now; all that decides how it goes on.

    Attributes:
        documents: documents begun.
        of_document: windows of the last of them, dropped ones included.
        windows: windows in all, without dropped ones.
        tokens: their tokens, special ones included.
        empty_documents: documents without any window.
        short_windows: windows dropped because they were too short.
        cut_pairs: pairs that were longer than a window.
    """

    documents: int = 0
    of_document: int = 0
    windows: int = 0
    tokens: int = 0
    empty_documents: int = 0
    short_windows: int = 0
    cut_pairs: int = 0


class TextCorpus:
    """Documents cut into windows, windows gathered into batches; always the same ones in the same order.

    Args:
        source: the documents.
        tokenizer: a transformers tokenizer; ``None`` when all documents are token ids.
        stack: stack of the model that sees the tokens.
        causal: whether it is a decoder; see ``special_tokens``.
        length: tokens of a full window, special tokens included.
        batch_size: sequences of a batch; ``None``: as many as make ``BATCH_TOKENS`` tokens.
        tokens: stop with the window that brings the real tokens to this number; ``None``: read all.
        bos: special tokens at the start of windows; see ``special_tokens``. Documents of token ids are
            taken as they are, and get special tokens only with ``True``.
        sampling: on which batches the dear statistics are computed.
        vocabulary_size: rows of the model's token embedding; ids beyond are an error.
        chat_template: what conversations went through, if they did.
        writer: the decoder that gets the same text, where ``stack`` is the encoder of an encoder-decoder.

    Raises:
        UserError: for a ``length`` that leaves no room for text, and while reading for whatever the readers
            complain about, text without a tokenizer, ids beyond the vocabulary, or a corpus without tokens.
    """

    def __init__(
        self,
        source: DocumentSource,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        stack: str,
        causal: bool,
        length: int,
        batch_size: int | None,
        tokens: int | None = None,
        bos: bool | None = None,
        sampling: Sampling | None = None,
        vocabulary_size: int | None = None,
        chat_template: str | None = None,
        writer: Writer | None = None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.stack = stack
        self.causal = causal
        self.length = length
        self.batch_size = batch_size
        self.tokens = tokens
        self.bos = bos
        self.sampling = sampling or Sampling()
        self.vocabulary_size = vocabulary_size
        self.chat_template = chat_template
        self.writer = writer
        self._tally = _Tally()
        if tokenizer is None:
            if bos:
                raise UserError("--bos needs the model's tokenizer, and this model comes without one")
            self._special = SpecialTokens((), ())
            self._join = None
            self._table = torch.full((1,), OTHER, dtype=torch.uint8)
            self._pieces: list[str] = []
            self._pad = 0
        else:
            self._special = special_tokens(tokenizer, causal=causal, bos=bos)
            self._join = space_rule(tokenizer)
            self._pieces = vocabulary_pieces(tokenizer)
            self._table = class_table(tokenizer, self._pieces)
            self._pad = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        least = self._special.count + LEAST_CONTENT
        if length < least:
            raise UserError(f"--length {length} leaves no room for text; at least {least} is needed here")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the token classes."""
        return TEXT_CLASSES

    def batches(self, start: int = 0, cursor: Cursor | None = None) -> Iterator[Batch]:
        """All batches from number ``start`` on; the k-th one is the same whatever ``start`` is.

        Without the ``cursor`` of the batch before, what comes before ``start`` is tokenized again and dropped.
        """
        tally = _Tally() if cursor is None else _Tally(**cursor)
        number, first_sequence = (0, 0) if cursor is None else (start, tally.windows)
        for windows in gathered(self._windows(tally), self.batch_size):
            if number >= start:
                yield self._batch(number, first_sequence, windows)
            number, first_sequence = number + 1, first_sequence + len(windows)

    def _windows(self, tally: _Tally) -> Iterator[Window]:
        self._note(tally)
        if self._enough(tally):  # of a cursor at the end
            return
        if tally.of_document:  # the document is begun once more, and what was read of it passed over
            done = tally.of_document
            tally = replace(tally, documents=tally.documents - 1)
        else:
            done = 0
        for document in documents_from(self.source, tally.documents):
            tally = replace(tally, documents=tally.documents + 1, of_document=done)
            for window in islice(self._document_windows(document), done, None):
                tally = replace(tally, of_document=tally.of_document + 1)
                if len(window.token_ids) - window.special_tokens < LEAST_CONTENT:
                    tally = replace(tally, short_windows=tally.short_windows + 1)
                    continue
                tally = replace(
                    tally,
                    windows=tally.windows + 1,
                    tokens=tally.tokens + len(window.token_ids),
                    cut_pairs=tally.cut_pairs + window.cut,
                )
                self._note(tally)
                yield replace(window, cursor=asdict(tally))
                if self._enough(tally):
                    return
            tally = replace(tally, empty_documents=tally.empty_documents + (tally.of_document == 0))
            self._note(tally)
            done = 0
        if not tally.windows:
            raise self._nothing_found(tally)

    def _enough(self, tally: _Tally) -> bool:
        return self.tokens is not None and tally.tokens >= self.tokens

    def _note(self, tally: _Tally) -> None:
        if (tally.documents, tally.of_document) >= (self._tally.documents, self._tally.of_document):
            self._tally = tally  # this reading is the one that came furthest

    def _document_windows(self, document: Document) -> Iterator[Window]:
        if document.pair is not None:
            whole = self.bos is not False
            yield pair_window(document.name, document.pair, self.tokenizer, self.length, special=whole)
            return
        special = self._special
        if document.token_ids is not None and not self.bos:
            special = SpecialTokens((), ())
        for content in content_windows(document, self.tokenizer, self._join, self.length - special.count):
            yield Window(document.name, framed(content, special), special.count)

    def _nothing_found(self, tally: _Tally) -> UserError:
        source = self.source.describe()
        place = source.get("path") or source.get("title")
        if not tally.documents:
            return UserError(f"{place} is empty; give a file with text in it")
        if not tally.short_windows:
            return UserError(f"{place} holds only white space; give a file with text in it")
        return UserError(f"{place} has no text of at least {LEAST_CONTENT} tokens; give a longer one")

    def _batch(self, number: int, first: int, windows: list[Window]) -> Batch:
        longest = max(len(window.token_ids) for window in windows)
        token_ids = torch.full((len(windows), longest), -1, dtype=torch.int64)  # [B, T]
        for row, window in enumerate(windows):
            token_ids[row, : len(window.token_ids)] = self._checked(window)
        real = torch.arange(longest) < torch.tensor([[len(window.token_ids)] for window in windows])  # [B, T]
        inputs = {"input_ids": token_ids.where(real, self._pad)}
        if not real.all():
            inputs["attention_mask"] = real.long()
        if any(window.segments is not None for window in windows):
            segments = torch.zeros_like(token_ids)  # [B, T]
            for row, window in enumerate(windows):
                segments[row, : len(window.token_ids)] = torch.tensor(window.segments)
            inputs["token_type_ids"] = segments
        batch = Batch(
            number=number,
            stack=self.stack,
            inputs=inputs,
            token_ids=token_ids,
            real=real,
            classes=text_classes(token_ids, self._table),
            class_names=TEXT_CLASSES,
            sequence_ids=torch.arange(first, first + len(windows)),
            documents=[window.document for window in windows],
            dear=self.sampling.dear(number, first),
            cursor=windows[-1].cursor,
        )
        return batch if self.writer is None else self._with_writer(batch, self.writer)

    def _with_writer(self, batch: Batch, writer: Writer) -> Batch:
        written = writer.shifted(batch.token_ids)  # [B, T]
        inputs = {"decoder_input_ids": written.where(batch.real, self._pad)}
        if "attention_mask" in batch.inputs:
            inputs["decoder_attention_mask"] = batch.real.long()
        tokens = replace(
            batch,
            stack=writer.stack,
            inputs={},
            token_ids=written,
            classes=text_classes(written, self._table),
        )
        return replace(batch, inputs=batch.inputs | inputs, further=(tokens,))

    def _checked(self, window: Window) -> Tensor:
        token_ids = torch.tensor(window.token_ids, dtype=torch.int64)  # [T]
        smallest, largest = int(token_ids.min()), int(token_ids.max())
        if smallest < 0:
            raise UserError(f"{window.document} holds the token id {smallest}; ids start at 0")
        if self.vocabulary_size is not None and largest >= self.vocabulary_size:
            raise UserError(
                f"{window.document} holds the token id {largest}, but the model knows {self.vocabulary_size} "
                "tokens; were they made with another tokenizer?"
            )
        return token_ids

    def fingerprint(self) -> str:
        """SHA-256 over the content, the tokenizer's vocabulary and all settings that decide about batches."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if isinstance(self.source, GivenDocuments):
            for _ in self._windows(_Tally()):  # reads as much of an iterator as a scan does
                pass
        settings = {
            "source": self.source.fingerprint(),
            "column": self.source.describe().get("column"),
            "chat_template": self.chat_template,
            "vocabulary": hashlib.sha256("\n".join(self._pieces).encode()).hexdigest(),
            "special": asdict(self._special),
            "bos": self.bos,
            "stack": self.stack,
            "writer": None if self.writer is None else self.writer.stack,
            "length": self.length,
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "sampling": asdict(self.sampling),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What was read and how, for ``scan.json``; the counts reach as far as ``batches`` has come."""
        return {
            "source": self.source.describe(),
            "length": self.length,
            "batch_size": self.batch_size,
            "tokens_wanted": self.tokens,
            "shifted_right": None if self.writer is None else self.writer.stack,
            "bos": self.bos,
            "chat": self.chat_template is not None,
            "special_tokens_before": [self.token_text(token) for token in self._special.prefix],
            "special_tokens_after": [self.token_text(token) for token in self._special.suffix],
            # Whether long documents, tokenized piece by piece, have exactly the tokens of the whole.
            "pieces_exact": self.tokenizer is None or self._join is not None,
            "sampling": asdict(self.sampling),
            "documents": self._tally.documents,
            "empty_documents": self._tally.empty_documents,
            "short_windows_dropped": self._tally.short_windows,
            "pairs_cut": self._tally.cut_pairs,
        }

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes a token; ``None`` without a tokenizer."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None

    def context(self, batch: Batch, row: int, position: int) -> str | None:
        """The text around a token; ``None`` without a tokenizer."""
        if self.tokenizer is None:
            return None
        return context_text(self.tokenizer, batch.token_ids[row, batch.rows(row)].tolist(), position)

    def place(self, position: int) -> None:
        """Nothing: a position says it all."""

    @property
    def estimated_tokens(self) -> int | None:
        """About how many tokens there will be, for progress bars; ``None`` when unknown."""
        characters = self.source.characters
        if characters is None:
            return self.tokens
        guess = max(1, characters // _CHARACTERS_PER_TOKEN)
        return guess if self.tokens is None else min(guess, self.tokens)
