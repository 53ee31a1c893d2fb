"""Rendered clips: the same bytes for a seed, true depth, and a video file as others read it."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vshard.base.errors import OptionError, OutputError
from vshard.clips.render import FAR_METRES, MOTIONS, RenderOptions, camera_pose, render_frames, write_clip

SMALL = RenderOptions(width=320, height=180, frames=8)


def small(motion: str, seed: int = 0, frames: int = 8) -> RenderOptions:
    return RenderOptions(width=320, height=180, frames=frames, seed=seed, motion=motion)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_same_options_give_the_same_frames(motion: str) -> None:
    first, second = list(render_frames(small(motion))), list(render_frames(small(motion)))
    for (picture, depth), (again, depth_again) in zip(first, second, strict=True):
        assert picture.dtype == np.uint8 and picture.shape == (180, 320, 3)
        assert depth.dtype == np.float32 and depth.shape == (180, 320)
        assert (picture == again).all() and (depth == depth_again).all()
    assert np.abs(first[0][0].astype(int) - first[-1][0]).mean() > 1  # something moves


def test_another_seed_is_another_scene() -> None:
    (one, one_depth), (two, two_depth) = (next(render_frames(small("pan", seed))) for seed in (0, 1))
    assert np.abs(one.astype(int) - two).mean() > 10
    assert (one_depth != two_depth).mean() > 0.2


def test_a_longer_clip_begins_as_a_shorter_one() -> None:
    short = list(render_frames(small("pan", frames=3)))
    long = list(itertools.islice(render_frames(small("pan", frames=60)), 3))
    for (picture, depth), (same, same_depth) in zip(short, long, strict=True):
        assert (picture == same).all() and (depth == same_depth).all()


def through_depth(options: RenderOptions, frame: int, other: int, depth: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32: where each pixel of ``frame`` lies in ``other``, by depth and the camera alone."""
    height, width = depth.shape
    focal = 0.866 * width
    lens = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    (rotation, place), (rotation_to, place_to) = camera_pose(options, frame), camera_pose(options, other)
    y, x = np.mgrid[0:height, 0:width]
    rays = np.linalg.inv(lens) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    world = rotation.T @ (rays / depth.reshape(1, -1)) + place[:, None]
    there = lens @ rotation_to @ (world - place_to[:, None])
    return (there[:2] / there[2]).T.reshape(height, width, 2).astype(np.float32)


@pytest.mark.parametrize("motion", ["pan", "walk"])
def test_depth_and_camera_carry_one_frame_into_another(motion: str) -> None:
    options = small(motion, seed=3, frames=6)
    frames = list(render_frames(options))
    (picture, depth), (later, later_depth) = frames[0], frames[5]
    at = through_depth(options, 0, 5, depth)
    warped = cv2.remap(later, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    reached = cv2.remap(later_depth, at[..., 0], at[..., 1], cv2.INTER_NEAREST)
    # what is seen in both and lies away from depth's edges; the sky, which goes with the camera, is far enough
    near, far = cv2.dilate(depth, np.ones((5, 5))), cv2.erode(depth, np.ones((5, 5)))
    inside = (at >= 0).all(-1) & (at[..., 0] < 319) & (at[..., 1] < 179) & (near < 1.2 * far)
    seen = inside & (reached < 1.1 * depth)
    assert seen.mean() > 0.6 and (depth[120:] > 2 / FAR_METRES).all()
    error = np.abs(warped.astype(int) - picture).mean(-1)[seen]
    assert error.mean() < 1.4 and (error > 25).mean() < 6e-4  # in 8-bit steps; unmoved: 9 and 6e-2


def test_things_move_by_themselves_only_where_asked() -> None:
    """Under a camera that hardly moves, most of the picture stays; the carts and balloons do not."""
    options = small("objects", frames=6)
    frames = list(render_frames(options))
    moved = np.abs(frames[0][0].astype(int) - frames[5][0]).max(-1) > 40
    assert 0.01 < moved.mean() < 0.3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_written_clip_reopens_with_its_facts(tmp_path: Path, suffix: str) -> None:
    options = RenderOptions(width=320, height=180, fps=24, frames=7, seed=2)
    calls: list[tuple[int, int]] = []
    path = tmp_path / "new" / f"clip{suffix}"
    write_clip(path, options, lambda done, total: calls.append((done, total)))
    assert calls == [(n, 7) for n in range(1, 8)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 320, 180)
        assert stream.average_rate == 24
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited
        assert (context.color_primaries, context.color_trc) == (1, 1)
        frames = list(container.decode(stream))
    assert [round(float(f.time) * 24) for f in frames] == list(range(7))
    for frame, (picture, _) in zip(frames, render_frames(options), strict=True):
        # BT.709 by hand (ITU-R BT.709-6, 3.2 and 3.4), so that a wrong matrix cannot hide in the reader
        luma = frame.to_ndarray()[:180].astype(float)
        wanted = 16 + 219 / 255 * (picture @ [0.2126, 0.7152, 0.0722])
        assert abs((luma - wanted).mean()) < 1 and np.abs(luma - wanted).mean() < 4


def test_a_clip_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(path, SMALL, stop)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_a_clip_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"clip\.avi.*\.mp4"):
        write_clip(tmp_path / "clip.avi", SMALL)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file"):
        write_clip(tmp_path / "file" / "clip.mp4", SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 321}, "width is 321"),
        ({"height": 62}, "height is 62"),
        ({"frames": 0}, "frames is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"motion": "fly"}, "pan, walk, objects"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RenderOptions(**wrong)
