"""Pickles: weights in PyTorch's older files, read with the restricted unpickler unless more is allowed."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch

from outlierscope.errors import UserError, first_line
from outlierscope.model.device import check_memory
from outlierscope.model.files.shards import indexed_shards

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.files.source import Source


def read_pickles(source: Source, *, allow_pickle: bool) -> dict[str, Tensor]:
    """All tensors of ``pytorch_model.bin``, or of the shards that its index names.

    Raises:
        UserError: when they do not fit into memory, a file is missing or broken, or it holds more than tensors
            and ``allow_pickle`` is not given.
    """
    index = source.folder / "pytorch_model.bin.index.json"
    names = sorted(indexed_shards(index)) if index.is_file() else ["pytorch_model.bin"]
    paths = [source.folder / name for name in names]
    check_memory(source.name, sum(path.stat().st_size for path in paths))
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            content = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
        except pickle.UnpicklingError:
            if allow_pickle:
                raise UserError(f"{path} is corrupt or no PyTorch file; download it again") from None
            raise UserError(
                f"{path} is a pickle that holds more than tensors, and loading it could run any code; "
                "convert it to safetensors or, if you trust it, pass --allow-pickle (allow_pickle=True)"
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, ImportError) as error:
            raise UserError(f"{path} cannot be read as a PyTorch file: {first_line(error)}") from error
        if not isinstance(content, dict) or not all(
            isinstance(item, torch.Tensor) for item in content.values()
        ):
            raise UserError(f"{path} holds no dictionary of tensors")
        state |= content
    return state
