from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import make_record
from PIL import Image

from cli.main import run
from cli.show import command
from vshard.base.errors import CheckpointError, OptionError
from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.stream.picture import write_sample
from vshard.stream.samples import Sample, finish
from vshard.stream.split import open_dataset
from vshard.stream.training import StreamOptions, TrainingStream


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number in range(6):
        record = make_record(f"a_{number:06d}", size=256, frames=13, seed=number)
        # The last one is in both splits, and counts for eval/ alone.
        for split in ("train",) if number < 5 else ("train", "eval"):
            write_record(root / split, record)
    return root


def trained_on(stream: TrainingStream, position: int) -> Sample:
    return next(sample for sample in stream if sample.position == position)


def shown(picture: Path) -> np.ndarray:
    """Take the twelve frames out of the picture's upper half: (12, 256, 256, 3) uint8."""
    rows = np.asarray(Image.open(picture))[-4 * 256 : -2 * 256]
    return rows.reshape(2, 256, 6, 256, 3).swapaxes(1, 2).reshape(12, 256, 256, 3)


def seen(sample: Sample) -> np.ndarray:
    x, _, _ = finish(sample, torch.device("cpu"))
    return x.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("hard", [True, False])
def test_the_picture_is_of_the_sample_that_training_takes(data: Path, tmp_path: Path, hard: bool) -> None:
    options = StreamOptions(seed=5, draws=9, hard_examples=hard)
    for position in (0, 4, 8):
        stream = TrainingStream(open_dataset(data)[0], options, Silent())
        path = tmp_path / "sample.png"
        sample = write_sample(data, path, options, epoch=1, position=position, state=None)
        wanted = trained_on(stream, position)
        assert sample.key == wanted.key and (shown(path) == seen(wanted)).all()
    assert len({write_sample(data, path, options, epoch=1, position=p, state=None).key for p in range(9)}) > 2


def test_a_later_epochs_order_comes_from_a_checkpoints_losses(data: Path, tmp_path: Path) -> None:
    options = StreamOptions(seed=5, draws=9)
    stream = TrainingStream(open_dataset(data)[0], options, Silent())
    for sample in stream:
        stream.note_loss(sample.position, float(sample.position % 2))
    stream.end_epoch()
    state = stream.state_dict()
    path = tmp_path / "sample.png"
    write_sample(data, path, options, epoch=2, position=7, state=state)
    assert (shown(path) == seen(trained_on(stream, 7))).all()
    with pytest.raises(OptionError, match="the checkpoint is of epoch 2"):
        write_sample(data, path, options, epoch=3, position=0, state=state)
    with pytest.raises(OptionError, match="order depends on the losses before; give --checkpoint"):
        write_sample(data, path, options, epoch=2, position=0, state=None)
    with pytest.raises(CheckpointError):
        write_sample(data, path, options, epoch=2, position=0, state={})
    plain = StreamOptions(seed=5, hard_examples=False)
    second = TrainingStream(open_dataset(data)[0], plain, Silent())
    second.end_epoch()
    write_sample(data, path, plain, epoch=2, position=3, state=None)
    assert (shown(path) == seen(trained_on(second, 3))).all()
    with pytest.raises(OptionError, match=r"--sample 5: the epoch has samples 0 to 4"):
        write_sample(data, path, plain, epoch=1, position=5, state=None)


def test_the_command_draws_a_trainings_sample(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.png"
    result = CliRunner().invoke(command, [str(data), "--sample", "3", "--num-samples", "60", "-o", str(path)])
    assert result.exit_code == 0 and "epoch 1, sample 3; 12 frames of 256x256" in result.output
    stream = TrainingStream(open_dataset(data)[0], StreamOptions(seed=71, draws=5), Silent())
    assert (shown(path) == seen(trained_on(stream, 3))).all()
    alone = tmp_path / "alone"
    shutil.copytree(data / "train", alone / "train")
    assert run(["show", str(alone), "--sample", "0", "-o", str(path)]) == 0
    assert run(["show", str(alone / "train"), "--sample", "0", "-o", str(path)]) == 0
    (tmp_path / "bad.pth").write_bytes(b"no")
    assert run(["show", str(data), "--sample", "0", "--checkpoint", str(tmp_path / "bad.pth")]) == 1
    assert "bad.pth" in capsys.readouterr().err
