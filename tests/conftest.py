"""Fixtures shared by the tests: a small moving clip, written once, and a dataset made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from filming import moving_frames, write_video

# Tests need no network, and find what a test puts there, not what the machine's user has downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"

# Two test processes on two processors: more threads than that only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that are downloaded are neither in a cache nor to be had, but where a test provides them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr("vshard.masks.mlbw.MASK_WEIGHTS_URL", "http://127.0.0.1:9/none.pth")
    monkeypatch.setattr("vshard.train.perceptual.VGG_URL", "http://127.0.0.1:9/none.pth")


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
