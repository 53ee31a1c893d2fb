from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_masks import slow_nonwarp_mask
from torch import Tensor

from vshard.masks.warp import nonwarp_mask

with np.load(GOLDEN / "forward_warp.npz") as _stored:
    ARRAYS = {key: torch.from_numpy(_stored[key]) for key in _stored}
# "steps:96x160:div=5.0:conv=0.0:view=right"
CASES = [key.removeprefix("mask2x:") for key in ARRAYS if key.startswith("mask2x:")]


def assert_equal_but_for_1_in_10000(found: Tensor, expected: Tensor) -> None:
    assert (found == expected).double().mean() >= 0.9999


@pytest.mark.parametrize("case", CASES)
def test_the_slow_way_meets_the_original_and_the_fast_one_meets_it(case: str) -> None:
    name, size_text, *fields = case.split(":")
    given_by = dict(field.split("=") for field in fields)
    height, width = map(int, size_text.split("x"))
    depth = ARRAYS["depth:lowres" if name == "lowres" else f"depth:{name}:{size_text}"]
    shifts: dict[str, Any] = {
        "divergence": float(given_by["div"]),
        "convergence": float(given_by["conv"]),
        "view": given_by["view"],
    }
    slow = slow_nonwarp_mask(depth, (height, width), **shifts)
    assert_equal_but_for_1_in_10000(slow * 2, ARRAYS[f"mask2x:{case}"].float())
    assert_equal_but_for_1_in_10000(nonwarp_mask(depth, (height, width), **shifts), slow)


@st.composite
def layered_depth(draw: st.DrawFn) -> Tensor:
    """A slope or noise with boxes before and behind it: (1 or 2, 1, h, w) in [0, 1]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 12)), draw(st.integers(4, 70))
    depth = np.broadcast_to(np.linspace(0, rng.random(), width), (frames, 1, height, width)).copy()
    if draw(st.booleans()):
        depth = rng.random(depth.shape)
    for _ in range(draw(st.integers(0, 6))):
        top, left = rng.integers(height), rng.integers(width)
        depth[:, :, top : top + rng.integers(1, height + 1), left : left + rng.integers(1, 30)] = rng.random()
    return torch.from_numpy(depth.astype(np.float32))


@settings(deadline=None, max_examples=150)
@given(
    depth=layered_depth(),
    divergence=st.floats(0, 40),
    convergence=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
    view=st.sampled_from(["left", "right"]),
)
def test_fast_and_slow_agree_on_layers(
    depth: Tensor, divergence: float, convergence: float, view: Any
) -> None:
    size = (depth.shape[2], depth.shape[3])
    shifts: dict[str, Any] = {"divergence": divergence, "convergence": convergence, "view": view}
    assert_equal_but_for_1_in_10000(
        nonwarp_mask(depth, size, **shifts), slow_nonwarp_mask(depth, size, **shifts)
    )


def test_fast_and_slow_agree_on_resized_depth() -> None:
    depth = ARRAYS["depth:lowres"]
    shifts: dict[str, Any] = {"divergence": 8.0, "convergence": 0.3, "view": "right"}
    fast = nonwarp_mask(depth, (72, 111), **shifts)
    assert fast.any()
    assert_equal_but_for_1_in_10000(fast, slow_nonwarp_mask(depth, (72, 111), **shifts))
