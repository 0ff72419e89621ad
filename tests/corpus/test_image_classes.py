from __future__ import annotations

import numpy as np
import pytest
import torch

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
    pixels = torch.zeros(1, 3, height, width)
    names = [IMAGE_CLASSES[value] for value in grid.classes(pixels)[0].tolist()]
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
        assert name == ("border_flat" if at_border else "inner_flat")


def test_flat_patches_one_by_one():
    """Against the variances of the patches, cut out one after the other."""
    rng = np.random.default_rng(0)
    contrast = rng.choice([0.0, 0.02, 0.1, 0.5], (2, 1, 6, 1, 5, 1))
    pixels = (contrast * rng.standard_normal((2, 3, 6, 8, 5, 16))).reshape(2, 3, 48, 80)
    pixels += rng.standard_normal((2, 3, 1, 1))  # an offset is no texture
    grid = patch_grid(32, 48, 80, (8, 16))
    found = grid.classes(torch.from_numpy(pixels).float())
    for picture, classes in zip(pixels, found.tolist(), strict=True):
        limit = 0.01 * np.mean([channel.var() for channel in picture])
        for position, value in enumerate(classes[2:], start=2):
            row, column = grid.place(position)
            patch = picture[:, 8 * row : 8 * row + 8, 16 * column : 16 * column + 16]
            flat = np.mean([channel.var() for channel in patch]) <= limit
            assert IMAGE_CLASSES[value].endswith("flat" if flat else "textured")
    assert len(found[:, 2:].unique()) == 4


def test_scaling_of_pixels_changes_no_class():
    pixels = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    pixels[..., :16, :] *= 0.05
    grid = patch_grid(31, 48, 80, (8, 16))
    assert torch.equal(grid.classes(pixels), grid.classes(pixels * 4.0 - 1.0))


def test_models_that_merge_patches_are_refused():
    with pytest.raises(
        UserError, match=r"^the model has 49 positions, fewer than the 56 x 56 patches of its"
    ):
        patch_grid(49, 224, 224, 4)
