from __future__ import annotations

import json
from typing import Any

import pytest
from golden_inputs import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from vshard.depth.sizes import View, depth_anything_view, depth_pro_view, zoe_view

CASES = json.loads((GOLDEN / "depth.json").read_text(encoding="utf-8"))
# The original's sides (landscape, portrait) for networks of patches of 32 and of 14.
ZOE_SIDES = {"32": (384, 512), "14": (392, 518)}
sides = st.integers(64, 4500)
resolutions = st.none() | st.integers(112, 2160)


@pytest.mark.parametrize("row", CASES["depth_anything_sizes"], ids=str)
def test_depth_anything_sizes_are_the_originals(row: list[Any]) -> None:
    height, width, resolution, *expected = row
    assert depth_anything_view(height, width, resolution) == View(*expected)


@pytest.mark.parametrize("multiple", ["32", "14"])
def test_zoe_sizes_are_the_originals(multiple: str) -> None:
    assert len(CASES["zoedepth_sizes"][multiple]) == 48
    landscape, portrait = ZOE_SIDES[multiple]
    for height, width, resolution, *expected in CASES["zoedepth_sizes"][multiple]:
        view = zoe_view(
            height,
            width,
            resolution,
            landscape_height=landscape,
            portrait_height=portrait,
            multiple=int(multiple),
        )
        assert view == View(*expected), (height, width, resolution)


def test_without_options_zoe_has_the_sizes_of_its_published_weights() -> None:
    for height, width, resolution, *expected in CASES["zoedepth_sizes"]["32"]:
        assert zoe_view(height, width, resolution) == View(*expected)


@given(sides, sides, resolutions)
def test_depth_anything_sees_whole_patches_in_the_frames_aspect(
    height: int, width: int, resolution: int | None
) -> None:
    view = depth_anything_view(height, width, resolution)
    assert depth_anything_view(width, height, resolution) == View(view.width, view.height)
    short, long = sorted(view[:2])
    assert short == -(-(resolution or 392) // 14) * 14
    assert long % 14 == 0
    aspect = min(max(height, width) / min(height, width), 4)
    assert short * aspect - 15 < long <= max(short * aspect + 1e-6, short)
    assert (view.height - view.width) * (height - width) >= 0


def test_a_square_stays_one_where_the_scale_rounds_below_it() -> None:
    assert int(139 * (392 / 139)) == 391
    assert depth_anything_view(139, 139, None) == View(392, 392)


@given(sides, sides, resolutions)
def test_zoe_leaves_the_frame_most_of_the_picture(height: int, width: int, resolution: int | None) -> None:
    view = zoe_view(height, width, resolution)
    assert view.height % 32 == 0
    assert view.width % 32 == 0
    inner_height, inner_width = view.height - 2 * view.pad_height, view.width - 2 * view.pad_width
    assert 0 < inner_height <= height
    assert inner_width > 0
    if width <= height:
        assert view.height == view.width
        assert abs(inner_width - width * inner_height / height) <= 1


def test_a_frame_that_zoe_need_not_shrink_is_cut_down_to_whole_patches() -> None:
    assert zoe_view(384, 683, None)[:2] == (384, 672)
    assert zoe_view(385, 684, None)[:2] == (384, 704)


def test_depth_pro_has_one_size() -> None:
    assert depth_pro_view(1080, 1920, None) == depth_pro_view(720, 720, None) == View(1536, 1536, 0, 0)
