"""The corpus that fits a model: what is asked of the corpus by what the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.open import DEFAULT_LENGTH, open_corpus
from outlierscope.corpus.open_media import Sight
from outlierscope.errors import UserError
from outlierscope.scanning.listening import hearing
from outlierscope.scanning.writing import writer_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from outlierscope.corpus.corpus import Corpus
    from outlierscope.model.anatomy import StackAnatomy
    from outlierscope.model.observed import ObservedModel
    from outlierscope.scanning.settings import ScanSettings


def corpus_for(
    model: ObservedModel,
    settings: ScanSettings,
    data: str | Path | Iterable[Any] | None,
    *,
    text: str | None = None,
    column: str | None = None,
    chat: bool = False,
) -> Corpus:
    """Open the data as the model can read it.

    Raises:
        UserError: for data that do not fit the model, and for a model without transformer blocks.
    """
    stacks = list(model.anatomy.stacks.values())
    if not stacks:
        raise UserError(f"{model.name}: {model.anatomy.reason or 'no stack of transformer blocks was found'}")
    # Text enters where no stack is read by cross attention: an encoder-decoder's encoder.
    stack = next((stack for stack in stacks if not _reads_another(stack)), stacks[0])

    reads = model.kind == "text"  # models that hear have no such method that works
    embedding = getattr(model.module, "get_input_embeddings", lambda: None)() if reads else None
    return open_corpus(
        data,
        kind=model.kind,
        stack=stack.name,
        causal=any(layer.attention.causal for layer in stack.layers if layer.attention),
        tokenizer=model.processor if model.kind == "text" else None,
        sight=_sight(model) if model.kind == "image" and model.processor is not None else None,
        hearing=hearing(model, stack) if model.kind == "audio" and model.processor is not None else None,
        processor_problem=model.processor_problem,
        max_length=model.max_length,
        vocabulary_size=getattr(embedding, "num_embeddings", None),
        writer=writer_of(model, stack) if model.kind == "text" else None,
        text=text,
        column=column,
        chat=chat,
        tokens=settings.tokens,
        length=_length(model, settings),
        batch_size=settings.batch_size,
        bos=settings.bos,
        sample_every=1 if settings.exact else settings.sample_every,
    )


def _reads_another(stack: StackAnatomy) -> bool:
    """Whether some block of a stack attends to another stack."""
    return any(layer.cross_attention is not None for layer in stack.layers)


def _length(model: ObservedModel, settings: ScanSettings) -> int | None:
    """Tokens of a window: what was asked for, else no more than the model is shown in use, else left open."""
    if settings.length is not None or model.usual_length is None or model.kind != "text":
        return settings.length
    return min(DEFAULT_LENGTH, model.usual_length, model.max_length or DEFAULT_LENGTH)


def _sight(model: ObservedModel) -> Sight:
    """How a model sees; how long a sequence it makes of a picture is found by showing it a blank one."""
    from PIL import Image

    pixels = model.processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = model.module(**model.placed({"pixel_values": pixels}))
    positions = int(output[0].shape[1])  # of [1, positions, d]
    return Sight(model.processor, getattr(model.config, "patch_size", None), positions)
