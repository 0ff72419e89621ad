"""Loading report: what a checkpoint lacked or had too much of, judged; and libraries kept quiet meanwhile."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError
from outlierscope.model.files.shards import some

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADS = re.compile(
    r"(?:[A-Za-z_]\w*\.)*(?:\w*pooler\w*|\w*head|classifier|score|cls|qa_outputs|predictions)(?:\.|$)"
)
"""Names of what comes after the last block, so under no number; it may be missing or have another size."""


def judge_report(name: str, prefix: str, report: dict[str, Any]) -> dict[str, list[str]]:
    """What loading left open: an error where the backbone is concerned, else a note.

    Args:
        name: the model, for messages.
        prefix: what goes before the backbone's names, such as ``model.``.
        report: ``output_loading_info`` of transformers' ``from_pretrained``.

    Raises:
        UserError: when a size does not match, or a weight of the backbone is missing.
    """
    wrong = [
        f"{key} is {list(there)} there and {list(expected)} in the model"
        for key, there, expected in sorted(report["mismatched_keys"])
        if not _is_head(key, prefix)
    ]
    if wrong:
        raise UserError(f"{name}: weights do not match config.json: {some(wrong)}")
    missing = sorted({*report["missing_keys"], *(key for key, _, _ in report["mismatched_keys"])})
    unused = sorted(report["unexpected_keys"])
    backbone = [key for key in missing if not _is_head(key, prefix)]
    if backbone:
        unknown = f"; the checkpoint has names that the model has not: {some(unused)}" if unused else ""
        raise UserError(
            f"{name}: the checkpoint lacks {len(backbone)} weights of the model: {some(backbone)}{unknown}"
        )
    return {"newly_initialized": missing, "unused": unused}


def _is_head(key: str, prefix: str) -> bool:
    return not key.startswith(prefix) or bool(HEADS.match(key.removeprefix(prefix)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings: what matters of them is judged and told by us."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.log_levels["error"])
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
