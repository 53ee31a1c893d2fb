"""A run's loss compares by one network from its first step to its last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making import Listening
from runs import NAME, options
from torch import Tensor, nn

from vshard.base.errors import CheckpointError
from vshard.base.report import Silent
from vshard.train import losses
from vshard.train.checkpoint import load_checkpoint
from vshard.train.perceptual import PerceptualError
from vshard.train.run import train

pytestmark = pytest.mark.usefixtures("tiny")
LPIPS = "temporal_l1lpips"


class Stand(nn.Module):
    """In place of VGG16: quick, and the same everywhere."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is found where, and refused where a run began with another, as `find_perceptual` does."""
    here = {"network": "one"}

    def find(_weights: Path | None, stored: str | None, _say: object) -> Stand:
        if stored is not None and stored != here["network"]:
            raise PerceptualError(f"this run's perceptual loss is {stored}")
        return Stand(here["network"])

    monkeypatch.setitem(losses._NETWORKS, losses.LPIPS, find)
    return here


def stored_loss(folder: Path) -> object:
    return load_checkpoint(folder / f"{NAME}.checkpoint.pth")["vshard"]["loss"]


def test_it_is_told_kept_and_never_exchanged(data: Path, tmp_path: Path, found: dict[str, str]) -> None:
    report = Listening()
    train(options(data, tmp_path, loss=LPIPS, max_epoch=1), report)
    assert f"--loss {LPIPS} compares by one" in report.said
    assert stored_loss(tmp_path) == {"name": LPIPS, "network": "one"}
    found["network"] = "another"
    with pytest.raises(PerceptualError, match="this run's perceptual loss is one"):
        train(options(data, tmp_path, loss=LPIPS, resume=True), Silent())
    assert stored_loss(tmp_path) == {"name": LPIPS, "network": "one"}
    # The weights alone are a new run's, which may choose.
    train(options(data, tmp_path, loss=LPIPS, max_epoch=1, resume=True, reset_state=True), Silent())
    assert stored_loss(tmp_path) == {"name": LPIPS, "network": "another"}


def test_another_loss_begins_a_new_contest(data: Path, tmp_path: Path, found: dict[str, str]) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    path = tmp_path / f"{NAME}.checkpoint.pth"
    content = torch.load(path, weights_only=True)
    content["vshard"]["progress"]["best_loss"] = 0.0
    torch.save(content, path)
    report = Listening()
    trained = train(options(data, tmp_path, loss="l1", resume=True), report)
    assert any("--loss is l1 now and was temporal_l1" in line for line in report.warned)
    assert trained is not None and 0 < trained.best_loss < float("inf")


def test_a_checkpoint_that_lies_about_its_loss_is_refused(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    path = tmp_path / f"{NAME}.checkpoint.pth"
    content = torch.load(path, weights_only=True)
    for odd in (None, 3, {}, {"network": ["x"]}):
        content["vshard"]["loss"] = odd
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="holds no position to go on from"):
            train(options(data, tmp_path, resume=True), Silent())
