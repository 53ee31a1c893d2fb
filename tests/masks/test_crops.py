from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN

from vshard.base.errors import OptionError
from vshard.base.seeds import generator
from vshard.masks.crops import MIN_MASK_AREA_PX, best_crop, draw_places, resize_short_side, rotate_and_crop

FACTS: dict[str, Any] = json.loads((GOLDEN / "crop_resize.json").read_text())
SAVED: list[dict[str, Any]] = json.loads((GOLDEN / "save_mask.json").read_text())


class Scripted:
    """Stands in for a generator: gives the rows, then the columns, and notes the highest allowed."""

    def __init__(self, positions: list[list[int]]) -> None:
        self.draws = np.array(positions).T
        self.highest: list[int] = []

    def integers(self, low: int, high: int, size: int, endpoint: bool) -> np.ndarray:
        assert (low, size, endpoint) == (0, self.draws.shape[1], True)
        self.highest.append(high)
        return self.draws[len(self.highest) - 1]


@pytest.mark.parametrize("case", FACTS["cases"], ids=lambda case: case["key"])
def test_rotating_and_resizing_meet_the_original(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / "crop_resize.npz") as stored:
        frames, expected = torch.from_numpy(stored[case["input"]]), stored[case["key"]]
    if case["angle_degrees"] is not None:
        frames = rotate_and_crop(frames, case["angle_degrees"])
    result = resize_short_side(frames, case["short_side"], case["mode"])
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_sizes_meet_the_original(mode: Any) -> None:
    assert len(FACTS["sizes"]) == 36
    for case in FACTS["sizes"]:
        frames = torch.zeros(1, 1, *case["input_hw"])
        if case["rotate_crop"]:
            frames = rotate_and_crop(frames, 30.0)
            assert frames.shape[-2:] == (case["crop_size"], case["crop_size"])
        resized = resize_short_side(frames, case["short_side"], mode)
        assert list(resized.shape[-2:]) == case["output_hw"]
        assert (resized is not frames) == case["resized"]


@pytest.mark.parametrize(("height", "width"), [(64, 97), (51, 40), (33, 33)])
def test_no_border_shows_at_any_angle(height: int, width: int) -> None:
    for angle in range(-45, 46, 5):
        square = rotate_and_crop(torch.ones(2, 3, height, width), angle)
        torch.testing.assert_close(square, torch.ones_like(square))


def test_not_rotating_is_a_centre_crop() -> None:
    frames = torch.rand((2, 3, 20, 31), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(rotate_and_crop(frames, 0.0), frames[..., 3:17, 8:22])


@pytest.mark.parametrize("case", SAVED)
def test_the_crop_with_most_hole_is_kept_and_the_first_wins(case: dict[str, Any]) -> None:
    with np.load(GOLDEN / "save_mask.npz") as stored:
        mask = torch.from_numpy(stored["mask"]) / 2
    scripted: Any = Scripted(case["candidates_row_col"])
    crop = best_crop(mask, draw_places((40, 60), 24, scripted), 24)
    assert scripted.highest == [40 - 24, 60 - 24]
    best = case["mask_sums"].index(max(case["mask_sums"]))
    assert [crop.row, crop.column] == case["candidates_row_col"][best]
    assert crop.mask_area_px == case["mask_sums"][best]
    assert (crop.mask_area_px > MIN_MASK_AREA_PX * len(mask)) == case["saved"]
    if case["saved"]:
        assert [crop.row, crop.column] == case["chosen_row_col"]


@pytest.mark.parametrize("positions", [[[3, 1], [5, 0]], [[0, 4], [5, 5]], [[5, 5], [0, 0]]])
def test_on_equal_areas_the_first_wins(positions: list[list[int]]) -> None:
    places = [(row, column) for row, column in positions]
    assert best_crop(torch.ones(1, 1, 9, 9), places, 4)[:2] == places[0]


def test_every_position_is_drawn_equally_often() -> None:
    counts = np.zeros((4, 3))
    for index in range(6000):
        ((row, column),) = draw_places((7, 6), 4, generator(0, "crop", index), candidates=1)
        counts[row, column] += 1
    assert np.abs(counts - 500).max() < 4 * np.sqrt(6000 * (1 / 12) * (11 / 12))


def test_a_crop_may_fill_the_frame_but_not_exceed_it() -> None:
    assert {row for row, _ in draw_places((8, 9), 8, generator(0))} == {0}
    with pytest.raises(OptionError, match=r"crop of 9x9 does not fit into frames of 9x8"):
        draw_places((8, 9), 9, generator(0))


def test_the_area_is_exact_beyond_float32() -> None:
    side = 4097  # its square is odd and above 2**24
    mask = torch.ones(1, 1, 1, 1).expand(1, 1, side, side)
    assert best_crop(mask, [(0, 0)], side).mask_area_px == side**2
