from __future__ import annotations

import numpy as np
import pytest
import torch

from vshard.masks.backward import gradient_mask
from vshard.masks.warp import close_mask, nonwarp_mask
from vshard.train.baselines import BASELINES, shifted, telea, unfilled

SIZE = (64, 192)
NEAR = (slice(20, 44), slice(80, 120))


def scene() -> tuple[np.ndarray, torch.Tensor]:
    """A near green square before a far background of columns that differ; its depth."""
    rgb = np.zeros((1, *SIZE, 3), np.uint8)
    rgb[..., 2] = np.arange(SIZE[1])
    rgb[0][NEAR] = (0, 255, 0)
    depth = torch.zeros(1, 1, *SIZE)
    depth[0, 0][NEAR] = 1
    return rgb, depth


@pytest.mark.parametrize("method", ["right", "left", "gradient"])
def test_shifting_fills_from_the_background(method: str) -> None:
    rgb, depth = scene()
    shifts = {"divergence": 6.0, "convergence": 0.5}
    if method == "gradient":
        mask = gradient_mask(depth, SIZE, **shifts)
    else:
        mask = close_mask(nonwarp_mask(depth, SIZE, view=method, **shifts))
    hole = mask[:, 0].numpy() > 0
    assert hole.sum() > 24 * 3
    found = shifted(rgb, hole)
    assert (found[hole][:, 1] == 0).all(), "no hole took the colour of what is near"
    assert (found[hole][:, 2] >= 120).all()
    assert np.array_equal(found[~hole], rgb[~hole])
    # From the other side it would have.
    mirrored = shifted(rgb[:, :, ::-1], hole[:, :, ::-1])[:, :, ::-1]
    assert (mirrored[hole][:, 1] == 255).mean() > 0.9


def test_shifting_takes_the_nearest_known_pixel_to_the_right() -> None:
    row = np.arange(1, 9, dtype=np.uint8)[None, None, :, None].repeat(3, axis=3)
    for holes, expected in (
        ("..xx....", [1, 2, 5, 5, 5, 6, 7, 8]),
        ("x.x.x...", [2, 2, 4, 4, 6, 6, 7, 8]),
        (".....xxx", [1, 2, 3, 4, 5, 5, 5, 5]),
        ("xxxxxxxx", [0] * 8),
    ):
        hole = np.array([[[mark == "x" for mark in holes]]])
        assert shifted(row, hole)[0, 0, :, 1].tolist() == expected


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_changes_holes_alone_and_never_sees_into_them(name: str) -> None:
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    hole = np.zeros((3, 40, 48), bool)
    for frame in range(3):
        hole[frame, 8:30, 10 + frame : 18 + frame] = True
    before = rgb.copy()
    found = BASELINES[name](rgb, hole)
    assert found.dtype == np.uint8 and np.array_equal(found[~hole], rgb[~hole])
    assert np.array_equal(rgb, before)
    other = np.where(hole[..., None], 255 - rgb, rgb)
    assert np.array_equal(BASELINES[name](other, hole), found)


def test_unfilled_is_black_and_telea_continues_a_slope() -> None:
    slope = np.broadcast_to((np.arange(40) * 5).astype(np.uint8)[:, None, None], (2, 40, 40, 3)).copy()
    hole = np.zeros((2, 40, 40), bool)
    hole[:, 10:30, 16:22] = True
    assert (unfilled(slope, hole)[hole] == 0).all()
    assert np.abs(telea(slope, hole)[hole].astype(int) - slope[hole]).max() < 12
