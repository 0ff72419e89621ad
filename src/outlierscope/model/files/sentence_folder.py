"""Sentence folder: which part of a sentence-transformers model is the transformer.

``modules.json`` lists modules that run one after the other: a transformer in the folder itself or in a subfolder such as
``0_Transformer``, then pooling, dense layers, normalisation
(https://sbert.net/docs/sentence_transformer/usage/custom_models.html, "Structure of Sentence Transformer Models").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError
from outlierscope.model.files.shards import read_json

if TYPE_CHECKING:
    from pathlib import Path

MODULES = "modules.json"


@dataclass(frozen=True)
class SentenceFolder:
    """What ``modules.json`` says.

    Attributes:
        subfolder: where the transformer is; empty for the folder itself.
        others: the other modules, by their class.
    """

    subfolder: str
    others: tuple[str, ...]

    def describe(self, folder: Path) -> dict[str, Any]:
        """As plain values for ``scan.json``.

        Args:
            folder: the transformer's own.
        """
        return {
            "transformer": self.subfolder or ".",
            "max_seq_length": _longest_text(folder),
            "not_scanned": list(self.others),
        }


def read_sentence_folder(name: str, folder: Path) -> SentenceFolder | None:
    """What a folder's ``modules.json`` says; ``None`` where there is none.

    Raises:
        UserError: when it is broken, or names a place outside of the folder.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} lists no modules of sentence-transformers") from None
    place = next((number for number, (kind, _) in enumerate(listed) if kind == "Transformer"), None)
    if place is None:
        kinds = ", ".join(kind for kind, _ in listed) or "none"
        raise UserError(
            f"{name} is a sentence-transformers model without a Transformer (its modules: {kinds})"
        )
    subfolder = PurePosixPath(listed[place][1])
    if subfolder.is_absolute() or ".." in subfolder.parts:
        raise UserError(f"{path} names a folder outside of its own: {str(subfolder)!r}")
    others = tuple(kind for number, (kind, _) in enumerate(listed) if number != place)
    return SentenceFolder("/".join(subfolder.parts), others)


def _longest_text(folder: Path) -> int | None:
    """How many tokens of a text sentence-transformers uses; ``None`` where it sets no limit of its own."""
    # The file is named after the family that it was first written for: sentence_bert_config.json and others.
    for path in sorted(folder.glob("sentence_*_config.json")):
        longest = read_json(path).get("max_seq_length")
        if isinstance(longest, int) and longest > 0:
            return longest
    return None
