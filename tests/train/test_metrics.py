from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_inputs import video, vmask
from random_networks import random_perceptual
from torch import Tensor

from vshard.train.metrics import (
    BOOTSTRAP_DRAWS,
    METRICS,
    PSNR_MAX,
    RING_PX,
    LpipsMap,
    estimate,
    estimates,
    psnr,
    regions,
    score,
)

SSIM_REACH_PX = 5


class Squares:
    """A distance that is known: the squared error, averaged over channels."""

    source = "squares"

    def distance_map(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(dim=1, keepdim=True)


def clip(seed: int = 3) -> Tensor:
    return torch.from_numpy(video(12, 3, 64, 72, seed))


def bar(left: int = 20, width: int = 6) -> Tensor:
    hole = torch.zeros(12, 1, 64, 72, dtype=torch.bool)
    hole[..., 10:50, left : left + width] = True
    return hole


def test_the_truth_scores_best() -> None:
    hole = torch.from_numpy(vmask(12, 64, 72, 1)) > 0
    found = score(clip(), clip(), hole, Squares())
    assert found.keys() == METRICS.keys()
    for name, value in found.items():
        best = PSNR_MAX if name.startswith("psnr") else 1 if name.startswith("ssim") else 0
        assert value == pytest.approx(best, abs=1e-6), name


def test_numbers_are_those_of_their_definitions() -> None:
    target, hole = clip(), bar()
    output = target.clone()
    error = torch.linspace(0.01, 0.1, 12)[:, None, None, None]
    output += torch.where(hole, error, 0) * torch.where(target > 0.5, -1, 1)
    found = score(output, target, hole, Squares())
    mse = float(error.square().mean())
    assert found["psnr_hole"] == pytest.approx(10 * math.log10(1 / mse), abs=1e-3)
    assert found["psnr_ring"] == PSNR_MAX
    assert found["psnr_frame"] == pytest.approx(10 * math.log10(64 * 72 / (mse * 240)), abs=1e-3)
    assert found["psnr_hole_first"] == pytest.approx(40, abs=1e-3)
    assert found["psnr_hole_last"] == pytest.approx(20, abs=1e-3)
    middle = float(error[5:7].square().mean())
    assert found["psnr_hole_middle"] == pytest.approx(10 * math.log10(1 / middle), abs=1e-3)
    assert found["lpips_hole"] == pytest.approx(mse, rel=1e-4)
    assert found["lpips_frame"] == pytest.approx(mse * 240 / (64 * 72), rel=1e-4)
    assert "lpips_hole" not in score(output, target, hole)


def test_a_fill_that_stands_still_is_charged_for_what_moves() -> None:
    target, hole = clip(), bar()
    still = torch.where(hole, target[:1], target)
    moving = float(target.diff(dim=0).abs()[hole[1:].expand(-1, 3, -1, -1)].mean())
    assert score(still, target, hole)["temporal_hole"] == pytest.approx(255 * moving, rel=1e-4)
    brighter = torch.where(hole, target + 0.1, target)
    assert score(brighter, target, hole)["temporal_hole"] == pytest.approx(0, abs=1e-3)


def test_temporal_error_counts_where_holes_come_and_go() -> None:
    target, hole = clip(), torch.cat([bar(10 + 2 * frame)[:1] for frame in range(12)])
    found = score(torch.where(hole, target + 0.1, target), target, hole)
    # Of the 8 columns that are a hole in one of two frames or both, 2 come and 2 go.
    assert found["temporal_hole"] == pytest.approx(255 * 0.1 * 4 / 8, rel=1e-4)


@pytest.mark.parametrize("region", ["hole", "ring"])
def test_what_is_outside_a_region_does_not_count(region: str) -> None:
    target, hole = clip(), bar()
    output = (target + 0.05 * torch.from_numpy(video(12, 3, 64, 72, 9))).clamp(0, 1)
    inside = regions(hole)[region]
    near = torch.nn.functional.max_pool2d(inside.float(), 2 * SSIM_REACH_PX + 1, 1, SSIM_REACH_PX) > 0
    names = [name for name in METRICS if region in name]
    before = score(output, target, hole, Squares())
    after = score(torch.where(near, output, 1 - output), target, hole, Squares())
    assert [after[name] for name in names] == pytest.approx([before[name] for name in names], abs=1e-5)
    # Nor is it that nothing counts.
    changed = score(torch.where(inside, 1 - output, output), target, hole, Squares())
    assert all(abs(changed[name] - before[name]) > 1e-3 for name in names if "temporal" not in name)


def test_ring_is_within_eight_pixels() -> None:
    hole = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    hole[..., 20, 20] = True
    ring = regions(hole)["ring"][0, 0]
    assert int(ring.sum()) == (2 * RING_PX + 1) ** 2 - 1
    assert ring[12, 12] and ring[28, 28] and not ring[20, 20] and not ring[11, 20]
    assert regions(hole)["frame"].all()


def test_no_hole_gives_no_number() -> None:
    found = score(clip(), clip(), torch.zeros(12, 1, 64, 72, dtype=torch.bool), Squares())
    missing = {name for name, value in found.items() if math.isnan(value)}
    assert missing == {name for name in METRICS if "frame" not in name}
    assert math.isnan(psnr(clip(), clip(), torch.zeros(12, 1, 64, 72, dtype=torch.bool)))


def test_videos_count_equally_and_are_what_is_drawn() -> None:
    values = [1.0, 2.0, 3.0, 10.0, math.nan]
    found = estimate(values, ["a", "a", "a", "b", "c"], seed=5)
    assert found is not None and found.mean == 6 and found.videos == 2
    # Of two videos a draw is (a, a), (a, b) or (b, b): the interval reaches from one to the other.
    assert (found.low, found.high) == (2, 10)
    assert estimate(values, ["a", "a", "a", "b", "c"], seed=5) == found
    assert estimate([1.0, 2.0], ["a", "a"], seed=5) == (1.5, None, None, 1)
    assert estimate([math.nan], ["a"], seed=5) is None


def test_interval_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(30, 4, 400)
    found = estimate(values.tolist(), [str(number) for number in range(400)], seed=71)
    other = estimate(values.tolist(), [str(number) for number in range(400)], seed=72)
    assert found is not None and other is not None and found.low is not None and found.high is not None
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert other != found
    assert BOOTSTRAP_DRAWS == 2000


def test_each_metric_has_its_own_estimate() -> None:
    found = estimates([{"x": 1.0, "y": math.nan}, {"x": 3.0, "y": math.nan}], ["a", "b"], seed=1)
    assert found["x"] is not None and found["x"].mean == 2
    assert found["y"] is None


def test_lpips_map_averages_to_lpips() -> None:
    network = random_perceptual()
    target = torch.from_numpy(video(2, 3, 90, 100, 3))
    output = (target + 0.2 * torch.from_numpy(video(2, 3, 90, 100, 9))).clamp(0, 1)
    found = LpipsMap(network).distance_map(output, target)
    assert found.shape == (2, 1, 90, 100)
    assert float(found.mean()) == pytest.approx(float(network(output, target)), rel=0.1)
    assert float(LpipsMap(network).distance_map(target, target).abs().max()) == 0
    # What differs here is seen here.
    marked = target.clone()
    marked[:, :, 10:20, 10:20] = 1 - marked[:, :, 10:20, 10:20]
    found = LpipsMap(network).distance_map(marked, target)[:, 0].mean(0)
    row, column = divmod(int(found.argmax()), 100)
    assert 6 <= row < 24 and 6 <= column < 24
