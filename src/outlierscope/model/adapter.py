"""Adapter: weights that PEFT trained beside a model, merged into its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.model.files.shards import some
from outlierscope.model.loading_report import HEADS
from outlierscope.model.packages import need_package

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from outlierscope.model.files.source import Source

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""The class that an adapter for a task of PEFT was trained on, which its weights' names follow."""


def check_adapter(source: Source) -> None:
    """Refuse an adapter that cannot be merged, before its base model is loaded.

    Raises:
        UserError: when peft is not installed, does not know the adapter's type, or cannot merge that type.
    """
    need_package("peft", f"{source.name}: merging an adapter", "adapters")
    import peft

    kind = source.origin["adapter"]["type"]
    try:
        config = peft.PeftConfig.from_pretrained(str(source.adapter))
    # peft raises whatever it likes for a type or a setting that it does not know.
    except Exception as error:
        raise UserError(
            f"{source.name}: peft {peft.__version__} cannot read this adapter of type {kind} ({first_line(error)}); "
            "a newer one may"
        ) from error
    tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if config.is_prompt_learning or not hasattr(tuner, "merge_and_unload"):
        raise UserError(
            f"{source.name}: adapters of type {kind} do not change weights, so there is nothing to merge; "
            f"scan its base model {source.origin['adapter']['base']} instead, or the live model with outlierscope.wrap"
        )


def adapted_class(source: Source) -> type[Any] | None:
    """The class that the adapter was trained on; ``None`` where it does not say."""
    import transformers

    adapter = source.origin["adapter"]
    name = CLASSES.get(adapter["task"] or "") or (adapter["auto_mapping"] or {}).get("base_model_class")
    found: type[Any] | None = getattr(transformers, str(name), None)
    return found


def merge_adapter(source: Source, folder: Path, base: nn.Module) -> nn.Module:
    """The base model with the adapter in ``folder`` merged into its weights.

    Raises:
        UserError: when the adapter does not fit the base model, or cannot be merged into it.
    """
    import peft

    try:
        # Heads may have other sizes; whether all the rest was taken over is checked below.
        adapted = peft.PeftModel.from_pretrained(
            base, str(folder), ignore_mismatched_sizes=True, autocast_adapter_dtype=False
        )
        astray = _astray(adapted, folder)
    except Exception as error:
        raise _does_not_fit(source, first_line(error)) from error
    if astray:
        raise _does_not_fit(source, f"there is no place for {len(astray)} of its weights: {some(astray)}")
    try:
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise UserError(f"{source.name}: the adapter cannot be merged: {first_line(error)}") from error
    return merged


def _astray(adapted: Any, folder: Path) -> list[str]:
    """Names of the adapter's weights that are not in the adapted model with the values of the file; heads aside."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES
    from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights

    stored = load_peft_weights(str(folder), device="cpu")
    # Left to itself peft asks the hub whether the base model's vocabulary was changed.
    embeddings = any(layer in name for name in stored for layer in EMBEDDING_LAYER_NAMES)
    taken = get_peft_model_state_dict(adapted, save_embedding_layers=embeddings)
    return sorted(
        name
        for name, values in stored.items()
        if not HEADS.match(name)
        and (name not in taken or not torch.equal(taken[name].cpu(), values.to(taken[name].dtype)))
    )


def _does_not_fit(source: Source, why: str) -> UserError:
    return UserError(
        f"{source.name}: the adapter does not fit its base model {source.origin['adapter']['base']}: {why}"
    )
