"""The corpus that fits a model: what is asked of the corpus by what the model is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from outlierscope.corpus.open import DEFAULT_LENGTH, open_corpus
from outlierscope.corpus.open_media import Sight
from outlierscope.corpus.pictures import IMAGE_SUFFIXES
from outlierscope.corpus.recordings import AUDIO_SUFFIXES
from outlierscope.errors import UserError
from outlierscope.model.observed import PARTS, stack_kind
from outlierscope.scanning.listening import hearing
from outlierscope.scanning.writing import writer_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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
    kind, stack = _fed(model, data)
    reads = kind == "text"  # models that hear have no such method that works
    embedding = getattr(model.runner(stack.name), "get_input_embeddings", lambda: None)() if reads else None
    processor = model.part(kind) if kind in PARTS else None
    return open_corpus(
        data,
        kind=kind,
        stack=stack.name,
        causal=any(layer.attention.causal for layer in stack.layers if layer.attention),
        tokenizer=processor if reads else None,
        sight=_sight(model, stack, processor) if kind == "image" and processor is not None else None,
        hearing=hearing(model, stack) if kind == "audio" and processor is not None else None,
        processor_problem=model.processor_problem,
        max_length=model.max_length,
        vocabulary_size=getattr(embedding, "num_embeddings", None),
        writer=writer_of(model, stack) if reads else None,
        text=text,
        column=column,
        chat=chat,
        tokens=settings.tokens,
        length=_length(model, settings),
        batch_size=settings.batch_size,
        bos=settings.bos,
        sample_every=1 if settings.exact else settings.sample_every,
    )


def _fed(model: ObservedModel, data: object) -> tuple[str, StackAnatomy]:
    """What kind of data it is, and the stack that it enters."""
    stacks = list(model.anatomy.stacks.values())
    if not stacks:
        raise UserError(f"{model.name}: {model.anatomy.reason or 'no stack of transformer blocks was found'}")
    # A stack with cross attention is fed along with the one that it reads: an encoder-decoder's decoder.
    entered = [stack for stack in stacks if not _reads_another(stack)] or stacks
    reached = [stack for stack in entered if _takes_data(model, stack)]
    if not reached:
        raise UserError(
            f"{model.name}: its stacks were proved with hidden states given to {entered[0].entry}, and no kind of data "
            "reaches them; only its weights can be scanned (--only weight)"
        )
    entered = reached
    by_kind: dict[str, StackAnatomy] = {}
    for stack in entered:
        by_kind.setdefault(stack_kind(stack.name), stack)
    if len(by_kind) == 1:
        return model.kind, entered[0]
    wanted = _kind_of(data, by_kind)
    return (wanted, by_kind[wanted]) if wanted in by_kind else next(iter(by_kind.items()))


def _takes_data(model: ObservedModel, stack: StackAnatomy) -> bool:
    """Whether what is run to feed a stack is a model with inputs of its own, not a part that takes hidden states."""
    runner = model.runner(stack.name)
    first = next(iter(inspect.signature(runner.forward).parameters), "")
    return not stack.entry or (isinstance(runner, PreTrainedModel) and not first.endswith("hidden_states"))


def _kind_of(data: object, known: Collection[str]) -> str:
    """What data hold, among the kinds that a model of several reads."""
    first = data[0] if isinstance(data, list | tuple) and data else data
    if hasattr(first, "convert"):  # a PIL image
        return "image"
    if not isinstance(first, str | Path):
        return "text"
    if Path(first).suffix.lower() in AUDIO_SUFFIXES:
        return "audio"
    pictures = Path(first).suffix.lower() in IMAGE_SUFFIXES
    if pictures or (len(str(first)) < 4096 and Path(first).is_dir()):
        return "image" if "image" in known else "audio"
    return "text"


def _reads_another(stack: StackAnatomy) -> bool:
    """Whether some block of a stack attends to another stack."""
    return any(layer.cross_attention is not None for layer in stack.layers)


def _length(model: ObservedModel, settings: ScanSettings) -> int | None:
    """Tokens of a window: what was asked for, else no more than the model is shown in use, else left open."""
    if settings.length is not None or model.usual_length is None or model.kind != "text":
        return settings.length
    return min(DEFAULT_LENGTH, model.usual_length, model.max_length or DEFAULT_LENGTH)


def _sight(model: ObservedModel, stack: StackAnatomy, processor: Any) -> Sight:
    """How a model sees; how long a sequence it makes of a picture is found by showing it a blank one."""
    from PIL import Image

    runner = model.runner(stack.name)
    pixels = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = runner(**model.placed({"pixel_values": pixels}))
    positions = int(output[0].shape[1])  # of [1, positions, d]
    config = getattr(runner, "config", None)
    return Sight(processor, getattr(config, "patch_size", None), positions)
