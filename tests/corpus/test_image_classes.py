from __future__ import annotations

import pytest

from outlierscope.corpus.batch import IMAGE_CLASSES
from outlierscope.corpus.image_classes import patch_grid
from outlierscope.errors import UserError

CASES = [
    # positions, height, width, patch, special, rows, columns
    (197, 224, 224, 16, 1, 14, 14),
    (196, 224, 224, 16, 0, 14, 14),
    (198, 224, 224, 16, 2, 14, 14),  # [CLS] and a distillation token
    (261, 224, 224, 14, 5, 16, 16),  # [CLS] and four registers
    (25, 64, 96, (16, 16), 1, 4, 6),
    (13, 64, 96, [16, 32], 1, 4, 3),
    (197, 230, 239, 16, 1, 14, 14),  # pixels that fill no patch are left over
]


@pytest.mark.parametrize(("positions", "height", "width", "patch", "special", "rows", "columns"), CASES)
def test_layout(positions, height, width, patch, special, rows, columns):
    grid = patch_grid(positions, height, width, patch)
    assert (grid.special, grid.rows, grid.columns, grid.positions) == (special, rows, columns, positions)
    assert grid.fits(height, width)
    assert not grid.fits(height + 32, width)
    names = [IMAGE_CLASSES[value] for value in grid.classes().tolist()]
    assert names[:special] == (["cls"] + ["register"] * (special - 1))[:special]
    for position, name in enumerate(names):
        place = grid.place(position)
        if position < special:
            assert place is None
            continue
        assert place is not None
        row, column = place
        assert position == special + row * columns + column
        at_border = row in (0, rows - 1) or column in (0, columns - 1)
        assert name == ("border" if at_border else "inner")


def test_models_that_merge_patches_are_refused():
    with pytest.raises(
        UserError, match=r"^the model has 49 positions, fewer than the 56 x 56 patches of its"
    ):
        patch_grid(49, 224, 224, 4)
