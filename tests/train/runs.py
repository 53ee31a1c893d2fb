"""Training runs of seconds, and what they leave, to be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from vshard.base.report import Report, Silent
from vshard.base.stopping import StopRequest
from vshard.train import run as module
from vshard.train.checkpoint import load_checkpoint
from vshard.train.plan import TrainOptions
from vshard.train.ranks import Ranks

NAME = "inpaint.light_video_inpaint_v1"
TINY = {"base_dim": 4, "lv2_mlp_ratio": 1}


def options(data: Path, model_dir: Path, **changes: object) -> TrainOptions:
    chosen = TrainOptions(
        data, model_dir, video=True, arch="tiny", max_epoch=2, num_samples=12 * 5, backward_step=2, eval_step=1,
        save_eval_step=1, num_workers=0, gpu=-1, checkpoint_minutes=0, learning_rate=1e-3,
        loss="temporal_l1",
    )  # fmt: skip
    return replace(chosen, **changes)


def opened(wanted: TrainOptions, report: Report) -> module._Run:
    """A run before its first step."""
    return module._Run(wanted, report, StopRequest(), Ranks(0, 1, torch.device("cpu")))


def final_state(model_dir: Path) -> dict:
    content = load_checkpoint(model_dir / f"{NAME}.checkpoint.pth")
    return {
        k: content[k] for k in ("state_dict", "optimizer_state_dict", "best_loss", "last_epoch", "vshard")
    }


def killed_and_resumed(wanted: TrainOptions, model_dir: Path, kill_at: int) -> dict:
    """What a run ends with that is killed at its step ``kill_at`` and goes on."""
    step = module.Steps._step
    calls = 0

    def dying_step(self: module.Steps) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise KeyboardInterrupt
        step(self)

    with patch.object(module.Steps, "_step", dying_step), pytest.raises(KeyboardInterrupt):
        module.train(replace(wanted, model_dir=model_dir), Silent())
    module.train(replace(wanted, model_dir=model_dir, resume=True), Silent())
    return final_state(model_dir)


def assert_same(one: object, other: object, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        # Losses that are not there yet are NaN.
        assert torch.allclose(one, other, rtol=0, atol=0, equal_nan=True), where
    else:
        assert one == other, where
