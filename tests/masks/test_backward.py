from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mlbw import ARRAYS, FACTS, golden_network
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.clips.render import MOTIONS, RenderOptions, render_frames
from vshard.depth.edges import normalize
from vshard.masks import warp
from vshard.masks.backward import gradient_mask, hole_logits, left_view, mlbw_mask
from vshard.masks.mappers import map_depth
from vshard.masks.warp import close_mask, nonwarp_mask

MASKS = FACTS["masks"]


def shifts_of(case: dict[str, Any]) -> dict[str, float]:
    return {"divergence": case["divergence"], "convergence": case["convergence"]}


@pytest.mark.parametrize("case", MASKS, ids=lambda case: f"{case['index']}-{case['mapper']}")
def test_both_passes_and_the_mask_meet_the_original(case: dict[str, Any]) -> None:
    network, depth, mapper = golden_network(case["weights"]), ARRAYS[case["depth"]], case["mapper"]
    warped, logits = (ARRAYS[f"{name}{case['index']}"] for name in ("warped_depth", "mask_logits"))
    seen = left_view(network, depth, mapper=mapper, **shifts_of(case))
    torch.testing.assert_close(seen[: len(warped)], warped, rtol=0, atol=1e-5)
    found = hole_logits(network, map_depth(seen, mapper), **shifts_of(case))
    torch.testing.assert_close(found[: len(logits)], logits, rtol=0, atol=2e-4)

    size = tuple(case["image_size"])
    mask = mlbw_mask(network, depth, size, mapper=mapper, **shifts_of(case))
    assert (mask.shape, mask.dtype) == ((2, 1, *size), torch.float32)
    assert (mask != ARRAYS[f"mask{case['index']}"]).float().mean() <= 0.001


def test_the_first_frames_of_the_original_pipeline() -> None:
    cases = json.loads((GOLDEN / "pipeline_forward.json").read_text())
    network = golden_network("hashm")
    with np.load(GOLDEN / "pipeline_forward.npz") as stored:
        for index, case in enumerate(cases):
            depth = normalize(torch.from_numpy(stored[f"depth_raw{index}"]))
            mask = mlbw_mask(
                network, depth, tuple(case["output_hw"]), mapper=case["mapper"], **shifts_of(case)
            )
            assert (mask != ARRAYS[f"pipeline_backward{index}"]).float().mean() <= 0.001


def test_a_frame_of_the_network_does_not_depend_on_the_others() -> None:
    case = MASKS[0]
    network, depth = golden_network("hashm"), ARRAYS[case["depth"]]
    named = {"size": (60, 99), "mapper": "mul_2", **shifts_of(case)}
    alone = [mlbw_mask(network, frame, **named) for frame in depth.split(1)]
    assert torch.equal(mlbw_mask(network, depth, **named), torch.cat(alone))


def test_depth_seen_by_the_left_eye_stays_in_its_range() -> None:
    nearest = torch.ones(1, 1, 49, 75)
    seen = left_view(golden_network("hashm"), nearest, divergence=5, convergence=0.5, mapper="none")
    assert seen.max() <= 1
    torch.testing.assert_close(seen, nearest)


def test_an_unknown_mapper_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^mapper 'div_7' is unknown; use one of none"):
        mlbw_mask(
            golden_network("std"),
            torch.zeros(1, 1, 8, 40),
            (8, 40),
            mapper="div_7",
            divergence=2,
            convergence=0,
        )


def shared(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Intersection over union of two masks, and the found one's area over the expected one's."""
    a, b = found > 0, expected > 0
    return float((a & b).sum() / (a | b).sum()), float(a.sum() / b.sum())


def scores(depth: Tensor, divergence: float, convergence: float) -> tuple[float, float]:
    size, shifts = (depth.shape[2], depth.shape[3]), {"divergence": divergence, "convergence": convergence}
    forward = close_mask(nonwarp_mask(depth, size, view="right", **shifts))
    return shared(gradient_mask(depth, size, **shifts), forward)


@pytest.mark.parametrize("convergence", [0.0, 0.3, 1.0])
def test_on_painted_depth_the_gradient_finds_the_forward_mask(convergence: float) -> None:
    with np.load(GOLDEN / "forward_warp.npz") as stored:
        for name in ("steps:96x160", "blobs:96x160", "blobs:97x131"):
            overlap, area = scores(torch.from_numpy(stored[f"depth:{name}"]), 9, convergence)
            assert overlap > 0.9, name
            assert 0.9 < area < 1.1, name


@pytest.mark.parametrize("motion", MOTIONS)
def test_on_true_depth_the_gradient_finds_the_forward_mask(motion: str) -> None:
    options = RenderOptions(width=960, height=540, frames=1, seed=4, motion=motion)
    ((_, inverse_depth),) = render_frames(options)
    depth = normalize(torch.from_numpy(inverse_depth)[None, None])
    found = [scores(depth, divergence, 0.5) for divergence in (2, 4, 6, 9)]
    overlap, area = np.median(found, axis=0)
    assert overlap > 0.9
    assert 0.95 < area < 1.05


def square(width: int = 400, edge: int = 100, side: int = 60, near: float = 1.0, far: float = 0.0) -> Tensor:
    depth = torch.full((1, 1, 40, width), far)
    depth[..., 10:30, edge : edge + side] = near
    return depth


@pytest.mark.parametrize("convergence", [0.0, 0.4, 1.0])
def test_the_hole_lies_right_of_a_near_square(convergence: float) -> None:
    mask = gradient_mask(square(), (40, 400), divergence=10, convergence=convergence)
    hole = torch.zeros_like(mask)
    hole[..., 10:30, 160:180] = 1  # the square moves 20 pixels further than what is behind it
    assert mask[..., :159].sum() == mask[..., 181:].sum() == 0
    overlap, area = shared(mask, hole)
    assert overlap > 0.9
    assert 0.9 < area <= 1
    forward = nonwarp_mask(square(), (40, 400), divergence=10, convergence=convergence, view="right")
    assert shared(mask, close_mask(forward))[0] > 0.9


def test_the_hole_grows_in_proportion_to_the_divergence() -> None:
    depth, size = square(near=0.9, far=0.1), (40, 400)
    widths = [
        float(gradient_mask(depth, size, divergence=divergence, convergence=0.5)[0, 0, 20].sum())
        for divergence in range(13)
    ]
    assert widths[0] == 0
    # 400 · 0.8 / 200 pixels a percent, in whole columns.
    np.testing.assert_allclose(widths[2:], [1.6 * percent for percent in range(2, 13)], rtol=0, atol=1)


def test_the_hole_does_not_depend_on_where_the_square_stands() -> None:
    named = {"size": (40, 2000), "divergence": 5, "convergence": 0.45}
    at_100 = gradient_mask(square(2000, near=0.9, far=0.3), **named)
    assert at_100.any()
    for edge in range(101, 1801, 17):
        mask = gradient_mask(square(2000, edge, near=0.9, far=0.3), **named)
        assert torch.equal(mask[..., edge - 50 :], at_100[..., 50 : 2100 - edge]), edge


@settings(deadline=None, max_examples=60)
@given(
    level=st.floats(0, 1),
    divergence=st.floats(0, 12),
    convergence=st.floats(0, 1),
    width=st.integers(2, 90),
)
def test_flat_depth_has_no_hole(level: float, divergence: float, convergence: float, width: int) -> None:
    depth = torch.full((1, 1, 3, width), level)
    assert not gradient_mask(depth, (3, width), divergence=divergence, convergence=convergence).any()


def test_a_slope_and_no_divergence_have_no_hole() -> None:
    noise = torch.rand((2, 1, 20, 70), generator=torch.Generator().manual_seed(3))
    assert not gradient_mask(noise, (20, 70), divergence=0, convergence=0.5).any()
    for slope in (torch.linspace(0, 1, 400), torch.linspace(1, 0, 400)):
        assert not gradient_mask(slope.expand(1, 1, 4, 400), (4, 400), divergence=12, convergence=0.5).any()


def test_in_the_mirror_the_hole_lies_at_the_other_side_of_the_square() -> None:
    depth, named = square(edge=150), {"size": (40, 400), "divergence": 8.0, "convergence": 0.5}
    mask, mirrored = gradient_mask(depth, **named), gradient_mask(depth.flip(-1), **named).flip(-1)
    columns, behind = (m.amax(dim=(0, 1, 2)).nonzero()[:, 0] for m in (mask, mirrored))
    assert columns.min() >= 210
    assert behind.max() < 150
    assert mask.sum() == mirrored.sum()


def noisy_layers() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    coarse = torch.rand((2, 1, 6, 10), generator=generator).repeat_interleave(10, 2).repeat_interleave(12, 3)
    return (coarse + 0.02 * torch.rand(coarse.shape, generator=generator)).clamp(0, 1)


def test_upside_down_frames_give_upside_down_masks() -> None:
    depth, named = noisy_layers(), {"size": (60, 120), "divergence": 9.0, "convergence": 0.3}
    mask = gradient_mask(depth, **named)
    assert 0.02 < mask.mean() < 0.5
    assert torch.equal(gradient_mask(depth.flip(-2), **named).flip(-2), mask)


def test_threads_and_slices_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, named = noisy_layers(), {"size": (540, 960), "divergence": 6.0, "convergence": 0.5}
    assert torch.get_num_threads() == 1
    mask = gradient_mask(depth, **named)
    assert mask.any()
    assert torch.equal(gradient_mask(depth[1:], **named), mask[1:])
    try:
        torch.set_num_threads(3)
        assert torch.equal(gradient_mask(depth, **named), mask)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(warp, "CHUNK_PIXELS_ONE_THREAD", 10_000)
    assert torch.equal(gradient_mask(depth, **named), mask)


def test_depth_of_another_size_is_resized_first() -> None:
    depth, named = noisy_layers(), {"divergence": 9.0, "convergence": 0.5}
    resized = torch.nn.functional.interpolate(
        depth, (75, 171), mode="bilinear", align_corners=True, antialias=True
    )
    assert torch.equal(gradient_mask(depth, (75, 171), **named), gradient_mask(resized, (75, 171), **named))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same_masks() -> None:
    depth, named = noisy_layers(), {"size": (60, 120), "divergence": 9.0, "convergence": 0.5}
    assert (
        gradient_mask(depth.cuda(), **named).cpu() != gradient_mask(depth, **named)
    ).float().mean() <= 0.001
    network = golden_network("hashm")
    on_cpu = mlbw_mask(network, depth, mapper="div_6", **named)
    on_gpu = mlbw_mask(network.cuda(), depth.cuda(), mapper="div_6", **named).cpu()
    assert (on_cpu != on_gpu).float().mean() <= 0.01
