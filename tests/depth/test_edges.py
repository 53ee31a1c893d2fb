from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import GOLDEN
from torch import Tensor

from vshard.depth.edges import dilate_edges, normalize, window_max


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(GOLDEN / "dilation.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


@pytest.mark.parametrize("steps", [1, 2, 3, (2, 1), (0, 2)])
def test_dilate_edges_meets_the_original(arrays: dict[str, Tensor], steps: Any) -> None:
    depth = arrays["edge_input"]
    name = f"dilate_edge:n={list(steps) if isinstance(steps, tuple) else steps}"
    tolerance = 2e-5 * (depth.amax((1, 2, 3)) - depth.amin((1, 2, 3)))
    error = (dilate_edges(depth, steps) - arrays[name]).abs().amax((1, 2, 3))
    assert (error <= tolerance).all()


def test_no_step_and_flat_depth_change_nothing(arrays: dict[str, Tensor]) -> None:
    assert torch.equal(dilate_edges(arrays["edge_input"], 0), arrays["edge_input"])
    torch.testing.assert_close(dilate_edges(arrays["const_input"], 2), arrays["dilate_edge_const:n=2"])


def test_every_frame_is_dilated_on_its_own(arrays: dict[str, Tensor]) -> None:
    depth = arrays["edge_input"]
    alone = torch.cat([dilate_edges(frame, 2) for frame in depth.split(1)])
    torch.testing.assert_close(dilate_edges(depth, 2), alone)


def test_normalize_scales_each_frame_and_only_clips_a_constant_one() -> None:
    depth = torch.tensor([[1.0, 3.0, 2.0], [-7.0, -3.0, -5.0], [5.0] * 3, [-3.0] * 3, [0.25] * 3])
    expected = [[0, 1, 0.5], [0, 1, 0.5], [1] * 3, [0] * 3, [0.25] * 3]
    assert normalize(depth[:, None, None])[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("reach", [(0, 0), (1, 1), (2, 0), (0, 3), (2, 2), (9, 9)])
def test_window_max_is_max_pooling(reach: tuple[int, int]) -> None:
    image = torch.rand((2, 1, 7, 9), generator=torch.Generator().manual_seed(1))
    before = image.clone()
    padded = F.pad(image, (reach[1], reach[1], reach[0], reach[0]), value=-torch.inf)
    pooled = F.max_pool2d(padded, (2 * reach[0] + 1, 2 * reach[1] + 1), stride=1)
    assert torch.equal(window_max(image, reach), pooled)
    assert torch.equal(image, before)
