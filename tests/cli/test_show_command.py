from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_record
from vshard_cli.main import run

from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.stream.split import open_split
from vshard.stream.training import StreamOptions, TrainingStream
from vshard.train.checkpoint import save_checkpoint
from vshard.train.network import LightVideoInpaint
from vshard.train.optimize import create_optimizer

OPTIONS = {"seed": 71, "num_samples": 60, "disable_hard_example": False}


def write_checkpoint(path: Path, data: Path, *, stream: Any = None, told: Any = None) -> None:
    """A checkpoint of the first epoch; ``stream`` and ``told`` in place of its position and options."""
    model = LightVideoInpaint(2)
    position = TrainingStream(open_split(data / "train"), StreamOptions(71, draws=5), Silent()).state_dict()
    save_checkpoint(
        path, model, create_optimizer("adamw", model), train_kwargs=OPTIONS if told is None else told, best_loss=1.0,
        last_epoch=0, ours={"stream": position if stream is None else stream},
    )  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"stream": 1},
        {"stream": {"epoch": 1}},
        {"told": {"seed": 71}},
        {"told": 1},
        {"told": torch.zeros(2)},
        {"told": {**OPTIONS, "num_samples": "many"}},
        {"told": {**OPTIONS, "seed": 1.5}},
        {"told": {**OPTIONS, "disable_hard_example": "yes"}},
    ],
)
def test_a_checkpoint_that_tells_no_position_is_named(
    lie: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "data" / "train", make_record("a_000000", size=256))
    path, output = tmp_path / "m.checkpoint.pth", tmp_path / "s.png"
    show = ["show", str(tmp_path / "data"), "--sample", "0", "--checkpoint", str(path), "-o", str(output)]
    write_checkpoint(path, tmp_path / "data")
    assert run(show) == 0 and output.exists()
    output.unlink()
    write_checkpoint(path, tmp_path / "data", **lie)
    capsys.readouterr()
    assert run(show) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"vshard: error: {path}: holds no position of a stream") and told.count("\n") == 1
    assert "give a checkpoint of vshard's" in told and not output.exists()
