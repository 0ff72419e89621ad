"""Writer: how the decoder of an encoder-decoder gets the text that its encoder reads, shifted right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

IGNORED = -100
"""What stands for padding in labels (PyTorch's cross-entropy ignores it)."""


@dataclass(frozen=True)
class Writer:
    """A decoder that is fed what it would be trained on: at each position the tokens before it.

    Attributes:
        stack: its name.
        start: id of the token that it begins with.
        family: the family's own way from labels ([B, T] int64, ``IGNORED`` in the padding) to the decoder's
            input ids [B, T], where it has one: some families begin with another token than ``start``.
    """

    stack: str
    start: int
    family: Callable[[Tensor], Tensor] | None = None

    def shifted(self, token_ids: Tensor) -> Tensor:
        """[B, T] int64 ids of the decoder's tokens, for those of the encoder; -1 in the padding of both.

        >>> import torch
        >>> Writer("decoder", 0).shifted(torch.tensor([[7, 8, 1], [9, 1, -1]]))
        tensor([[ 0,  7,  8],
                [ 0,  9, -1]])
        """
        real = token_ids >= 0
        if self.family is not None:
            return self.family(token_ids.where(real, IGNORED)).where(real, -1)
        shifted = token_ids.roll(1, dims=1)
        shifted[:, 0] = self.start
        return shifted.where(real, -1)
