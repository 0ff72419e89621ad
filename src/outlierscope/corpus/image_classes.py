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

CLS, REGISTER, BORDER_FLAT, BORDER_TEXTURED, INNER_FLAT, INNER_TEXTURED = range(len(IMAGE_CLASSES))

FLAT_SHARE = 0.01
"""A patch is flat when its variance is at most this share of its picture's: its standard deviation at most a tenth.
Relative, because processors scale pixels in different ways and pictures differ in contrast; ours."""


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

    def classes(self, pixels: Tensor) -> Tensor:
        """[B, positions] uint8 index into ``IMAGE_CLASSES``.

        Args:
            pixels: [B, channels, height, width] float32, as the model sees them.

        >>> pixels = torch.zeros(1, 3, 6, 6)
        >>> pixels[..., :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(3, 1)
        >>> PatchGrid(2, 3, 3, 2, 2).classes(pixels).tolist()
        [[0, 1, 3, 2, 2, 3, 4, 2, 3, 2, 2]]
        """
        patches = torch.full((self.rows, self.columns), BORDER_FLAT, dtype=torch.uint8)
        patches[1:-1, 1:-1] = INNER_FLAT
        textured = (~self._flat(pixels)).to(torch.uint8)  # [B, R, C]; one more than flat in either place
        special = torch.full((len(pixels), self.special), REGISTER, dtype=torch.uint8)
        special[:, :1] = CLS
        return torch.cat([special, (patches + textured).flatten(1)], dim=1)

    def _flat(self, pixels: Tensor) -> Tensor:
        """[B, R, C] bool: variance within a patch, mean over channels, next to that of the whole picture."""
        seen = pixels.double()[..., : self.rows * self.patch_height, : self.columns * self.patch_width]
        patches = seen.reshape(
            *seen.shape[:2], self.rows, self.patch_height, self.columns, self.patch_width
        )  # [B, channels, R, h, C, w]
        within = patches.var(dim=(3, 5), correction=0).mean(1)  # [B, R, C]
        whole = seen.var(dim=(2, 3), correction=0).mean(1)  # [B]
        flat: Tensor = within <= FLAT_SHARE * whole[:, None, None]
        return flat

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
