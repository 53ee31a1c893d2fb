"""The estimator without weights: right order of depth, steady, the same bytes, and never an exception."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vshard.base.errors import OptionError
from vshard.clips.render import RenderOptions, render_frames
from vshard.depth.parallax import NEAREST, WORKING_SHORT_SIDE, _fill, _texture, estimate_depth
from vshard.depth.refine import guided


def rendered(motion: str, seed: int, frames: int = 12, fps: int = 30) -> tuple[torch.Tensor, np.ndarray]:
    """Frames (T, 3, 288, 512) in [0, 1] and true inverse depth (T, 288, 512)."""
    options = RenderOptions(512, 288, fps=fps, frames=frames, seed=seed, motion=motion)
    pictures, depths = zip(*render_frames(options), strict=True)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, np.stack(depths)


def rank(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(rank(estimate.ravel()), rank(truth.ravel()))[0, 1])


@pytest.fixture(scope="module", params=["pan", "walk"])
def estimated(request: pytest.FixtureRequest) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Frames, true inverse depth and estimated (T, 288, 512)."""
    frames, truth = rendered(request.param, seed=1)
    return frames, truth, estimate_depth(frames)[:, 0].numpy()


def test_near_and_far_are_in_the_right_order(
    estimated: tuple[torch.Tensor, np.ndarray, np.ndarray],
) -> None:
    _, truth, depth = estimated
    assert depth.shape == truth.shape and depth.dtype == np.float32
    assert np.isfinite(depth).all() and depth.min() >= 0 and depth.max() <= NEAREST
    found = [spearman(d[::4, ::4], t[::4, ::4]) for d, t in zip(depth, truth, strict=True)]
    assert np.median(found) > 0.9 and min(found) > 0.85
    # the ground rule alone gets much less right: it is the motion that tells
    rows = np.broadcast_to(np.linspace(0, 1, 288)[:, None], (288, 512))
    assert np.median(found) > spearman(rows[::4, ::4], truth[6, ::4, ::4]) + 0.1


def test_its_edges_lie_on_the_edges_of_depth(
    estimated: tuple[torch.Tensor, np.ndarray, np.ndarray],
) -> None:
    """Where true depth jumps by more than half, so does the estimate, within 3 px."""
    _, truth, depth = estimated
    for d, t in zip(depth[2:-2:3], truth[2:-2:3], strict=True):
        square = np.ones((3, 3))
        jumps = (cv2.dilate(t, square) > 2 * cv2.erode(t, square)) & (cv2.dilate(t, square) > 0.08)
        change = cv2.dilate(d, square) - cv2.erode(d, square)
        nearby = cv2.dilate(change, np.ones((7, 7)))
        assert np.median(nearby[jumps]) > 4 * np.median(nearby[~jumps])


def test_it_is_steady_over_the_sequence(estimated: tuple[torch.Tensor, np.ndarray, np.ndarray]) -> None:
    """One frame's depth differs from the next by little more than the truth does, both in shares of their spread."""
    _, truth, depth = estimated
    for before, after, truly, truly_after in zip(depth, depth[1:], truth, truth[1:], strict=False):
        assert abs(np.median(after) / np.median(before) - 1) < 0.1
        change = np.abs(after - before).mean() / depth.std()
        assert change < 0.05 + 1.5 * np.abs(truly_after - truly).mean() / truth.std()


def test_things_that_move_along_the_cameras_way_do_not_seem_nearest() -> None:
    """Carts and balloons overtake a camera that creeps sideways: taken for parallax they would dwarf the rest."""
    frames, truth = rendered("objects", seed=2, frames=16)
    depth = estimate_depth(frames)[:, 0].numpy()
    assert np.median([spearman(d[::4, ::4], t[::4, ::4]) for d, t in zip(depth, truth, strict=True)]) > 0.85


def test_a_slow_camera_is_looked_at_over_more_frames() -> None:
    frames, truth = rendered("pan", seed=1, frames=12, fps=200)
    depth = estimate_depth(frames)[:, 0].numpy()
    assert np.median([spearman(d[::4, ::4], t[::4, ::4]) for d, t in zip(depth, truth, strict=True)]) > 0.9


def test_a_camera_that_speeds_up_does_not_change_the_scale() -> None:
    at = [0, 1, 2, 3, 5, 7, 9, 12, 15, 18]
    frames, truth = rendered("pan", seed=1, frames=19)
    depth = estimate_depth(frames[at])[:, 0].numpy()
    slopes = [
        np.polyfit(t[::4, ::4].ravel(), d[::4, ::4].ravel(), 1)[0]
        for d, t in zip(depth, truth[at], strict=True)
    ]
    assert max(slopes) / min(slopes) < 1.25


def test_untrusted_places_take_the_depth_of_their_colour() -> None:
    """Two colours with a winding border; a few places of each are trusted, and tell the depth of all of it."""
    y, x = np.mgrid[0:96, 0:128]
    red = x + 12 * np.sin(y / 9) > 64
    picture = np.where(red[..., None], (0.8, 0.2, 0.2), (0.2, 0.5, 0.3)).astype(np.float32)
    wanted = np.where(red, 0.9, 0.4)
    trust = (np.random.default_rng(3).random((96, 128)) < 0.2).astype(np.float32)
    rho = np.where(trust > 0, wanted, 0).astype(np.float32)
    ground = np.full((96, 1), 0.1, np.float32)
    depth = _fill(picture, rho, trust, np.zeros_like(rho), ground)
    assert np.abs(depth - wanted).mean() < 0.04


def test_the_same_frames_give_the_same_bytes(estimated: tuple[torch.Tensor, np.ndarray, np.ndarray]) -> None:
    frames, _, depth = estimated
    assert estimate_depth(frames)[:, 0].numpy().tobytes() == depth.tobytes()


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    """Of OpenCV, torch and BLAS, the last of which takes its number at the start of a process."""
    frames, _ = rendered("walk", seed=4, frames=6)
    np.save(tmp_path / "frames.npy", frames.numpy())
    code = (
        "import sys, hashlib, cv2, numpy as np, torch; from vshard.depth.parallax import estimate_depth\n"
        "cv2.setNumThreads(int(sys.argv[2])); torch.set_num_threads(int(sys.argv[2]))\n"
        "depth = estimate_depth(torch.from_numpy(np.load(sys.argv[1])))\n"
        "print(hashlib.sha256(depth.numpy().tobytes()).hexdigest())\n"
    )
    digests = set()
    for threads in ("1", "5"):
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "frames.npy"), threads],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert digests == {hashlib.sha256(estimate_depth(frames).numpy().tobytes()).hexdigest() + "\n"}


def test_a_single_frame_is_ground_that_comes_nearer() -> None:
    frames, _ = rendered("pan", seed=1, frames=1)
    depth = estimate_depth(frames)
    assert depth.shape == (1, 1, 288, 512) and bool(depth.isfinite().all())
    rows = depth[0, 0].mean(1)[::32]
    assert bool((rows.diff() > -0.02).all()) and rows[-1] > rows[0] + 0.5


def test_a_camera_that_stands_still_gives_the_ground_as_well() -> None:
    frames, _ = rendered("pan", seed=1, frames=1)
    noise = torch.rand(6, 3, 288, 512, generator=torch.Generator().manual_seed(0))
    depth = estimate_depth((frames + 0.02 * noise).clamp(0, 1))
    assert bool(depth.isfinite().all())
    rows = depth.mean((0, 1, 3))[::32]
    assert bool((rows.diff() > -0.02).all()) and rows[-1] > rows[0] + 0.5
    assert (depth[0] - depth[5]).abs().mean() < 0.02


def test_a_camera_that_only_turns_gives_no_false_depth() -> None:
    """A picture turned about the optical axis and shifted as by a small pan: no parallax, so it is the ground."""
    picture = rendered("pan", seed=1, frames=1)[0][0].permute(1, 2, 0).numpy()
    turned = []
    for i in range(6):
        matrix = cv2.getRotationMatrix2D((255.5, 143.5), 0.4 * i, 1)
        turned.append(cv2.warpAffine(picture, matrix, (512, 288), borderMode=cv2.BORDER_REPLICATE))
    frames = torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2)
    depth = estimate_depth(frames)[:, 0].numpy()
    rows = np.broadcast_to(np.linspace(0, 1, 288)[:, None], (288, 512))
    assert all(spearman(d[::4, ::4], rows[::4, ::4]) > 0.75 for d in depth)


def test_what_moves_by_itself_stands_in_front() -> None:
    """A textured figure walks before a wall under a camera that stands still."""
    rng = np.random.default_rng(2)
    wall, figure = (
        cv2.resize(rng.random((size, size, 3), dtype=np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
        for size in (64, 96)
    )
    wall, figure = 0.4 * wall[:288].clip(0, 1), 0.5 + 0.5 * figure.clip(0, 1)
    frames, inside = [], np.zeros((8, 288, 512), bool)
    for i in range(8):
        left = 180 + 5 * i
        inside[i, 60:240, left : left + 90] = True
        frame = wall.copy()
        frame[60:240, left : left + 90] = figure[60:240, :90]
        frames.append(frame)
    depth = estimate_depth(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))[:, 0].numpy()
    for d, here in zip(depth, inside, strict=True):
        upper = slice(60, 150)  # where the ground rule alone says far
        assert np.median(d[upper][here[upper]]) > np.median(d[upper][~here[upper]]) + 0.2


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 8, 8), (2, 16, 40), (3, 500, 90), (2, 30, 400), (2, 1, 1)]
)
@pytest.mark.parametrize("content", ["black", "noise"])
def test_odd_sizes_and_contents_do_no_harm(count: int, height: int, width: int, content: str) -> None:
    frames = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    depth = estimate_depth(frames * (content == "noise"))
    assert depth.shape[:2] == (count, 1) and bool(depth.isfinite().all())
    assert abs(np.log(depth.shape[3] / depth.shape[2] * height / width)) < 0.02


def test_large_frames_come_back_at_the_working_size() -> None:
    assert estimate_depth(torch.zeros(1, 3, 1080, 1920)).shape == (1, 1, WORKING_SHORT_SIDE, 683)
    assert estimate_depth(torch.zeros(1, 3, 960, 540)).shape == (1, 1, 683, WORKING_SHORT_SIDE)


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (0, 3, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"\(T, 3, H, W\)"):
        estimate_depth(torch.zeros(shape))


def test_the_guided_filter_equals_a_plain_one() -> None:
    """Against He, Sun and Tang's equations solved window by window, with weights, at full size."""
    rng = np.random.default_rng(4)
    picture = rng.random((14, 17, 3), dtype=np.float32)
    values, weight = rng.random((14, 17), dtype=np.float32), rng.random((14, 17), dtype=np.float32) + 0.1
    radius, smooth = 2, 0.01
    padded = [np.pad(a, radius, mode="symmetric") for a in (weight, values, *np.moveaxis(picture, 2, 0))]
    lines = np.empty((14, 17, 4))
    for y in range(14):
        for x in range(17):
            w, p, *colours = (a[y : y + 5, x : x + 5].ravel().astype(float) for a in padded)
            guide, w = np.stack(colours, 1), w / w.sum()
            centred = guide - w @ guide
            slopes = np.linalg.solve(
                (centred * w[:, None]).T @ centred + smooth * np.eye(3),
                (centred * w[:, None]).T @ (p - w @ p),
            )
            lines[y, x] = *slopes, w @ p - slopes @ (w @ guide)
    heavy = cv2.blur(weight, (5, 5), borderType=cv2.BORDER_REFLECT)[..., None]
    mean = cv2.blur(lines * weight[..., None], (5, 5), borderType=cv2.BORDER_REFLECT) / heavy
    wanted = (mean[..., :3] * picture).sum(-1) + mean[..., 3]
    assert np.abs(guided(picture, values, weight, radius, 1, smooth) - wanted).max() < 1e-3


def test_only_what_has_texture_is_trusted() -> None:
    rng = np.random.default_rng(6)
    gray = np.full((40, 80), 90, np.uint8)
    gray[:, 40:] = rng.integers(0, 255, (40, 40))
    texture = _texture(gray)
    assert texture[:, :30].max() < 0.01 and texture[:, 50:].min() > 0.8
