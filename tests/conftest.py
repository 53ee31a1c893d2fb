"""Fixtures shared by the tests: a small moving clip, written once, and a dataset made of it."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

# Tests need no network, and find what a test puts there, not what the machine's user has downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"

# Two test processes on two processors: more threads than that only get in each other's way.
torch.set_num_threads(1)


def moving_frames(count: int, height: int, width: int) -> np.ndarray:
    """(count, H, W, 3) uint8: a textured square moves before a textured background."""
    rng = np.random.default_rng(7)
    far = rng.integers(40, 120, (height // 8, (width + 400) // 8, 3), dtype=np.uint8)
    far = far.repeat(8, axis=0).repeat(8, axis=1)
    near = rng.integers(120, 250, (height // 16, height // 16, 3), dtype=np.uint8)
    near = near.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frames[t] = far[:height, t : t + width]
        left = width // 4 + 4 * t % (width // 3)
        frames[t, height // 4 : height // 4 + len(near), left : left + len(near)] = near
    return frames


def write_video(
    path: Path, frames: np.ndarray, *, rate: int = 30, pts: list[int] | None = None, **tags: object
) -> Path:
    """Write frames losslessly in YCbCr (libx264, 4:4:4, qp 0); ``pts`` in units of 1/rate s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv444p"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, rate)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(autouse=True)
def nothing_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mask network's weights are neither in a cache nor to be had, but where a test provides them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr("vshard.masks.mlbw.MASK_WEIGHTS_URL", "http://127.0.0.1:9/none.pth")


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 640x480 clip of 48 frames."""
    return write_video(tmp_path_factory.mktemp("clips") / "small.mp4", moving_frames(48, 480, 640))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, clip_path: Path) -> Path:
    """A dataset made of the clip as a user would: train/ and eval/ with record folders and shards."""
    from vshard.base.report import Silent
    from vshard.records.plan import GenerateOptions
    from vshard.shards.run import run_generation

    root = tmp_path_factory.mktemp("dataset")
    for split, skip in (("train", 0), ("eval", 12)):
        options = GenerateOptions(
            video=str(clip_path), output=root / split, prefix=split, seq=12, skip_first=skip, skip_interval=0,
            size=256, divergence_level=2, gpu=-1, backward_mask="gradient",
        )  # fmt: skip
        state = run_generation(options, Silent())
        assert state.records >= 2
    return root
