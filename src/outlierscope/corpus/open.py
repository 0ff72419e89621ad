"""Opening a corpus: which reader a piece of data needs, and whether it fits the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.batching import Sampling
from outlierscope.corpus.default import PythonReference
from outlierscope.corpus.documents import JsonLines, Parquet, TextFile
from outlierscope.corpus.image_classes import patch_grid
from outlierscope.corpus.images import ImageCorpus, first_pixels
from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.corpus.pictures import IMAGE_SUFFIXES, folder_pictures, given_pictures
from outlierscope.corpus.text import TextCorpus
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

    from outlierscope.corpus.corpus import Corpus
    from outlierscope.corpus.documents import DocumentSource

DEFAULT_LENGTH = 512
"""Tokens of a window, or what the model allows if that is less."""

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")


def open_corpus(
    data: str | Path | Iterable[Any] | None = None,
    *,
    kind: str,
    stack: str,
    causal: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    processor: BaseImageProcessor | None = None,
    processor_problem: str = "",
    max_length: int | None = None,
    vocabulary_size: int | None = None,
    patch: int | Sequence[int] | None = None,
    positions: int | None = None,
    text: str | None = None,
    column: str | None = None,
    tokens: int | None = None,
    length: int | None = None,
    batch_size: int | None = None,
    bos: bool | None = None,
    sample_every: int = 32,
) -> Corpus:
    """The corpus that ``data`` names, ready to be read.

    Args:
        data: a path, an iterable (see ``GivenDocuments``; paths or PIL images for an image model), or
            ``None`` for the default text.
        kind: what the model reads: ``text`` or ``image``.
        stack: stack of the model that sees the tokens.
        causal: whether that is a decoder.
        tokenizer: the model's tokenizer; not needed for token ids.
        processor: the model's image processor; needed for images.
        processor_problem: why there is none of them, for messages.
        max_length: most tokens that the model's positions allow; ``None``: no limit.
        vocabulary_size: rows of the token embedding, to refuse ids beyond.
        patch: for images, pixels of a patch (or height and width).
        positions: for images, how many positions the model makes of one picture.
        text: one text given as such, instead of ``data``.
        column: field of a .jsonl or column of a .parquet file; default ``text``.
        tokens: stop at this many real tokens.
        length: tokens of a full window; default ``DEFAULT_LENGTH``, or ``max_length`` if that is less.
        batch_size: sequences of a batch; default as many as make ``BATCH_TOKENS`` tokens.
        bos: special tokens at the start of windows; see ``special_tokens``.
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
    if kind == "image":
        for option, value in {"--text": text, "--length": length, "--column": column, "--bos": bos}.items():
            if value is not None:
                raise UserError(f"{option} is for text models, and this model reads images")
        folder, pictures = _pictures(data)
        if processor is None:
            raise UserError(f"this model comes without the image processor that pictures need{why}")
        return _image_corpus(
            pictures,
            processor,
            folder,
            stack,
            patch,
            positions,
            batch_size,
            tokens,
            sampling,
        )
    if kind != "text":
        raise UserError(f"this model reads {kind} input; only text and images can be scanned")
    if length is None:
        length = min(DEFAULT_LENGTH, max_length or DEFAULT_LENGTH)
    elif max_length is not None and length > max_length:
        raise UserError(
            f"--length {length} is more than the model's {max_length} positions; give at most that"
        )
    source = _document_source(data, text, column)
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
    )
    next(corpus.batches())  # a corpus without tokens raises here
    return corpus


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            option = {"batch_size": "--batch"}.get(name, "--" + name.replace("_", "-"))
            raise UserError(f"{option} {value}: must be a whole number of at least 1")


def _document_source(
    data: str | Path | Iterable[Any] | None, text: str | None, column: str | None
) -> DocumentSource:
    suffix = Path(data).suffix.lower() if isinstance(data, (str, Path)) else None
    if column is not None and suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--column {column}: only .jsonl and .parquet files have columns")
    if text is not None:
        return GivenDocuments([text], "--text")
    if data is None:
        return PythonReference()
    if isinstance(data, (str, Path)):
        return _file_source(_existing(data), column)
    return GivenDocuments(data)


def _existing(data: str | Path) -> Path:
    """The path, which exists and may be read."""
    if str(data).startswith("hub:"):
        raise UserError(
            f"{data}: data sets are not fetched from the hub; download it and give its .parquet file"
        )
    path = Path(data).expanduser()
    try:
        path.stat()
    except (OSError, ValueError):
        raise UserError(f"no such file or folder: {path}") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read; change its permissions")
    return path


def _file_source(path: Path, column: str | None) -> DocumentSource:
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, and this model reads text; give one of {', '.join(TEXT_SUFFIXES)}"
        )
    if suffix == ".txt":
        return TextFile(path)
    if suffix == ".jsonl":
        return JsonLines(path, column or "text")
    if suffix == ".parquet":
        return Parquet(path, column or "text")
    if suffix in IMAGE_SUFFIXES:
        raise UserError(
            f"{path} is a picture, and this model reads text; give one of {', '.join(TEXT_SUFFIXES)}"
        )
    raise UserError(
        f"{path}: unknown file type {path.suffix!r}; known are {', '.join(TEXT_SUFFIXES)} "
        "and folders of pictures"
    )


def _pictures(data: str | Path | Iterable[Any] | None) -> tuple[Path | None, list[Path | Image]]:
    """The folder that names are told relative to, and the pictures."""
    if data is None:
        raise UserError(
            "this model reads images, and there is no default set; give a folder with --data FOLDER"
        )
    if not isinstance(data, (str, Path)):
        return None, given_pictures(data)
    path = _existing(data)
    if path.is_dir():
        return path, [*folder_pictures(path)]
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path.parent, [path]
    raise UserError(f"{path} is no picture, and this model reads images; give a folder with --data FOLDER")


def _image_corpus(
    pictures: list[Path | Image],
    processor: BaseImageProcessor,
    folder: Path | None,
    stack: str,
    patch: int | Sequence[int] | None,
    positions: int | None,
    batch_size: int | None,
    tokens: int | None,
    sampling: Sampling,
) -> ImageCorpus:
    if patch is None or positions is None:
        raise UserError(
            "this model's config names no patch_size; only image encoders with patches are supported"
        )
    pixels = first_pixels(pictures, processor)  # [1, channels, height, width]
    return ImageCorpus(
        pictures,
        processor,
        folder=folder,
        stack=stack,
        grid=patch_grid(positions, pixels.shape[-2], pixels.shape[-1], patch),
        batch_size=batch_size,
        tokens=tokens,
        sampling=sampling,
    )
