"""Opening a corpus: which reader a piece of data needs, and whether it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.batching import Sampling
from outlierscope.corpus.default import PythonReference
from outlierscope.corpus.document import ChatReader, Reader, read_pair, read_text
from outlierscope.corpus.documents import JsonLines, Parquet, TextFile
from outlierscope.corpus.hub import PREFIX, HubAddress, HubDocuments, HubRows
from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.corpus.open_media import open_audio, open_images
from outlierscope.corpus.paths import existing
from outlierscope.corpus.pictures import IMAGE_SUFFIXES
from outlierscope.corpus.recordings import AUDIO_SUFFIXES
from outlierscope.corpus.text import TextCorpus
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

    from outlierscope.corpus.corpus import Corpus
    from outlierscope.corpus.documents import DocumentSource
    from outlierscope.corpus.open_media import Hearing, Sight
    from outlierscope.corpus.writer import Writer

DEFAULT_LENGTH = 512
"""Tokens of a window, or what the model allows if that is less."""

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")

MEDIA = {"image": "images", "audio": "audio"}
"""What models of these kinds read, in messages."""


def open_corpus(
    data: str | Path | Iterable[Any] | None = None,
    *,
    kind: str,
    stack: str,
    causal: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sight: Sight | None = None,
    hearing: Hearing | None = None,
    processor_problem: str = "",
    max_length: int | None = None,
    vocabulary_size: int | None = None,
    writer: Writer | None = None,
    text: str | None = None,
    column: str | None = None,
    tokens: int | None = None,
    length: int | None = None,
    batch_size: int | None = None,
    bos: bool | None = None,
    chat: bool = False,
    sample_every: int = 32,
) -> Corpus:
    """The corpus that ``data`` names, ready to be read.

    Args:
        data: a path, an iterable (see ``GivenDocuments``, ``given_pictures``, ``given_recordings``), or ``None``
            for the default text.
        kind: what the model reads: ``text``, ``image`` or ``audio``.
        stack: stack of the model that sees the tokens.
        causal: whether that is a decoder.
        tokenizer: the model's tokenizer; not needed for token ids.
        sight: how the model sees; needed for images.
        hearing: how it hears; needed for audio.
        processor_problem: why it comes without what is needed, for messages.
        max_length: most tokens that the model's positions allow; ``None``: no limit.
        vocabulary_size: rows of the token embedding, to refuse ids beyond.
        writer: for text, the decoder that gets it as well.
        text: one text given as such, instead of ``data``.
        column: field of a .jsonl or column of a .parquet file or data set; default ``text``, or ``messages`` with
            ``chat``; two, with a comma between them, are read as pairs.
        tokens: stop at this many real tokens.
        length: tokens of a full window; default ``DEFAULT_LENGTH``, or ``max_length`` if that is less.
        batch_size: sequences of a batch; default as many as make ``BATCH_TOKENS`` tokens.
        bos: special tokens at the start of windows; see ``special_tokens``.
        chat: read conversations, which go through the tokenizer's chat template; see ``ChatReader``.
        sample_every: compute the dear statistics on every so many batches, after the first ones; 1: on all.

    Raises:
        UserError: one line for anything that is wrong with the data or the settings. An empty corpus and
            broken data at its beginning are found here, not later.
    """
    _check_counts(tokens=tokens, length=length, batch_size=batch_size, sample_every=sample_every)
    if text is not None and data is not None:
        raise UserError("--text and --data exclude each other; give one of them")
    sampling = Sampling(every=sample_every)
    why = f" ({processor_problem})" if processor_problem else ""
    if kind in ("image", "audio"):
        for option, value in {
            "--text": text,
            "--length": length,
            "--column": column,
            "--bos": bos,
            "--chat": chat or None,
        }.items():
            if value is not None:
                raise UserError(f"{option} is for text models, and this model reads {MEDIA[kind]}")
    if kind == "image":
        if sight is None:
            raise UserError(f"this model comes without the image processor that pictures need{why}")
        return open_images(data, sight, stack=stack, batch_size=batch_size, tokens=tokens, sampling=sampling)
    if kind == "audio":
        if hearing is None:
            raise UserError(f"this model comes without the feature extractor that recordings need{why}")
        return open_audio(data, hearing, stack=stack, batch_size=batch_size, tokens=tokens, sampling=sampling)
    if kind != "text":
        raise UserError(f"this model reads {kind} input; only text, images and audio can be scanned")
    if length is None:
        length = min(DEFAULT_LENGTH, max_length or DEFAULT_LENGTH)
    elif max_length is not None and length > max_length:
        raise UserError(
            f"--length {length} is more than the model's {max_length} positions; give at most that"
        )
    if chat and bos is not None:
        raise UserError(
            "--bos/--no-bos: with --chat the chat template says which special tokens there are; leave it out"
        )
    source = _document_source(data, text, column, ChatReader(tokenizer) if chat else None)
    first = next(iter(source), None)
    if tokenizer is None and first is not None and first.token_ids is None:
        raise UserError(
            f"{first.name} is text, but this model comes without a tokenizer{why}; "
            "give token ids instead (a list column of .jsonl or .parquet)"
        )
    corpus = TextCorpus(
        source,
        tokenizer,
        stack=stack,
        causal=causal,
        length=length,
        batch_size=batch_size,
        tokens=tokens,
        bos=bos,
        sampling=sampling,
        vocabulary_size=vocabulary_size,
        chat_template=str(tokenizer.chat_template) if chat and tokenizer is not None else None,
        writer=writer,
    )
    next(corpus.batches())  # a corpus without tokens raises here
    return corpus


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            option = {"batch_size": "--batch"}.get(name, "--" + name.replace("_", "-"))
            raise UserError(f"{option} {value}: must be a whole number of at least 1")


def _document_source(
    data: str | Path | Iterable[Any] | None, text: str | None, column: str | None, chat: ChatReader | None
) -> DocumentSource:
    suffix = Path(data).suffix.lower() if isinstance(data, (str, Path)) else None
    hub = isinstance(data, str) and data.startswith(PREFIX)
    if column is not None and not hub and suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--column {column}: only .jsonl and .parquet files and data sets have columns")
    given = not isinstance(data, (str, Path)) and data is not None
    if chat and not hub and not given and suffix not in (".jsonl", ".parquet"):
        raise UserError(
            "--chat: only .jsonl and .parquet files and data sets hold conversations; give one as --data"
        )
    if text is not None:
        return GivenDocuments([text], "--text")
    if data is None:
        return PythonReference()
    if isinstance(data, (str, Path)):
        if hub:
            address = HubAddress.parse(str(data))
            columns, read = _columns(column or address.column, chat)
            return HubDocuments(HubRows(address), columns, read)
        return _file_source(existing(data), *_columns(column, chat))
    if chat:
        conversations = (
            chat([item], f"texts[{index}]", f"texts[{index}]").token_ids for index, item in enumerate(data)
        )
        return GivenDocuments(conversations)
    return GivenDocuments(data)


def _columns(column: str | None, chat: ChatReader | None) -> tuple[tuple[str, ...], Reader]:
    """The columns to read, and how.

    >>> _columns("first,second", None)[0]
    ('first', 'second')
    """
    if chat is not None:
        return (column or "messages",), chat
    columns = tuple((column or "text").split(","))
    if len(columns) > 2 or not all(columns):
        raise UserError(f"--column {column}: name one column, or two with a comma between them")
    return columns, read_pair if len(columns) == 2 else read_text


def _file_source(path: Path, columns: tuple[str, ...], read: Reader) -> DocumentSource:
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, and this model reads text; give one of {', '.join(TEXT_SUFFIXES)}"
        )
    if suffix == ".txt":
        return TextFile(path)
    if suffix == ".jsonl":
        return JsonLines(path, columns, read)
    if suffix == ".parquet":
        return Parquet(path, columns, read)
    if suffix in IMAGE_SUFFIXES + AUDIO_SUFFIXES:
        what = "picture" if suffix in IMAGE_SUFFIXES else "recording"
        raise UserError(
            f"{path} is a {what}, and this model reads text; give one of {', '.join(TEXT_SUFFIXES)}"
        )
    raise UserError(
        f"{path}: unknown file type {path.suffix!r}; known are {', '.join(TEXT_SUFFIXES)} "
        "and folders of pictures or recordings"
    )
