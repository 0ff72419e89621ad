"""State of Stats whose fields are plain sums: saving, restoring and merging them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def added(mine: Tensor, other: Tensor) -> Tensor:
    """The sum of two accumulators, one of which may still be empty because it has seen no batch."""
    if not mine.numel():
        return other
    return mine + other if other.numel() else mine


def save_fields(stat: object, names: Iterable[str]) -> dict[str, Tensor]:
    """The named fields as tensors; integers as 0-d int64."""
    fields: dict[str, Any] = {name: getattr(stat, name) for name in names}
    return {
        name: torch.tensor(value, dtype=torch.int64) if isinstance(value, int) else value.contiguous()
        for name, value in fields.items()
    }


def load_fields(stat: object, names: Iterable[str], state: dict[str, Tensor]) -> None:
    """What ``save_fields`` returned, back into its fields."""
    for name in names:
        value: Any = state[name]
        setattr(stat, name, int(value) if isinstance(getattr(stat, name), int) else value)


def merge_fields(stat: object, other: object, names: Iterable[str]) -> None:
    """Add the named sums of another Stat to those of this one."""
    for name in names:
        mine, theirs = getattr(stat, name), getattr(other, name)
        setattr(stat, name, mine + theirs if isinstance(mine, int) else added(mine, theirs))
