"""Image classes: where the positions of an image encoder come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outlierscope.corpus.batch import IMAGE_CLASSES
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CLS, REGISTER, BORDER, INNER = range(len(IMAGE_CLASSES))


@dataclass(frozen=True)
class PatchGrid:
    """How an image encoder lays out its positions: special ones first, then the patches row by row.

    Attributes:
        special: positions before the patches: [CLS], then registers or a distillation token.
        rows: rows of patches.
        columns: patches of a row.
        patch_height: pixels of a patch.
        patch_width: pixels of a patch.
    """

    special: int
    rows: int
    columns: int
    patch_height: int
    patch_width: int

    @property
    def positions(self) -> int:
        """Length of the sequence."""
        return self.special + self.rows * self.columns

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture of this many pixels has these patches."""
        return (height // self.patch_height, width // self.patch_width) == (self.rows, self.columns)

    def classes(self) -> Tensor:
        """[positions] uint8 index into ``IMAGE_CLASSES``.

        >>> PatchGrid(2, 3, 3, 16, 16).classes().tolist()
        [0, 1, 2, 2, 2, 2, 3, 2, 2, 2, 2]
        """
        patches = torch.full((self.rows, self.columns), BORDER, dtype=torch.uint8)
        patches[1:-1, 1:-1] = INNER
        special = torch.full((self.special,), REGISTER, dtype=torch.uint8)
        special[:1] = CLS
        return torch.cat([special, patches.flatten()])

    def place(self, position: int) -> tuple[int, int] | None:
        """Row and column of a position's patch, from 0; ``None`` for a special position.

        >>> PatchGrid(1, 14, 14, 16, 16).place(15)
        (1, 0)
        """
        patch = position - self.special
        return None if patch < 0 else divmod(patch, self.columns)


def patch_grid(positions: int, height: int, width: int, patch: int | Sequence[int]) -> PatchGrid:
    """The layout of a model that sees ``positions`` positions for a picture of ``height`` x ``width`` pixels.

    Args:
        positions: length of the sequence, as seen in a forward pass.
        height: pixels of the picture that the model gets.
        width: the same across.
        patch: pixels of a patch (height and width).

    Raises:
        UserError: when the patches alone are more than the positions (a model that merges patches).
    """
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = height // patch_height, width // patch_width
    if rows * columns > positions:
        raise UserError(
            f"the model has {positions} positions, fewer than the {rows} x {columns} patches of its "
            "pictures; image encoders that merge patches are not supported"
        )
    return PatchGrid(positions - rows * columns, rows, columns, patch_height, patch_width)
