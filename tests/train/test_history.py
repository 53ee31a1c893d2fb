from __future__ import annotations

import builtins
import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vshard.base.errors import OptionError
from vshard.train.history import CURVE_FILE, METRICS_FILE, Epoch, History, Moment, draw_losses, read_epochs


def epoch(number: int, eval_loss: float | None = None) -> Epoch:
    return Epoch(number, 1 / number, eval_loss, 1e-4, 12.5)


def test_everything_told_is_there_to_read(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert not list(tmp_path.iterdir())
    history.note(Moment(1, 40, 0.5, 1e-4, 20.0, 0.01), 40)
    for one in (epoch(1), epoch(2, 0.25)):
        history.end_epoch(one)
    history.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "epoch", "epoch"]
    assert lines[0]["sample"] == 40 and lines[0]["data_wait"] == 0.01
    assert read_epochs(tmp_path / METRICS_FILE) == [epoch(1), epoch(2, 0.25)]
    with history.csv.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["epoch", "train_loss", "eval_loss"],
            ["1", "1.0", ""],
            ["2", "0.5", "0.25"],
        ]
    with Image.open(tmp_path / CURVE_FILE) as picture:
        assert picture.size == (1000, 600)


def test_what_was_made_anew_replaces_what_was_told_before(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in (1, 2, 3):
        history.end_epoch(epoch(number))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "epoch", "epoch": 4, "tra\n[1]\n{"kind": "epoch", "odd": 1, "time": 0}\n')
    again = epoch(2, 0.1)
    History(tmp_path).end_epoch(again)
    assert read_epochs(tmp_path / METRICS_FILE) == [epoch(1), again]


def test_what_is_no_epoch_in_the_file_is_left_out(tmp_path: Path) -> None:
    """Bytes of zeros, as a power cut leaves them, and others' lines must not end a training at its next epoch."""
    history = History(tmp_path)
    history.end_epoch(Epoch(1, 0.5, None, 1e-4, 2.0))
    odd = {
        "kind": "epoch",
        "time": 1,
        "epoch": 2,
        "train_loss": "x",
        "eval_loss": None,
        "learning_rate": 1,
        "seconds": 1,
    }
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(bytes(99) + b"\xff\xfe\n" + json.dumps(odd).encode() + b"\n")
        file.write(json.dumps({**odd, "train_loss": 1, "eval_loss": [1]}).encode() + b"\nnull\n[1]\n{\n")
    history.end_epoch(Epoch(3, 0.25, 0.5, 1e-4, 2.0))
    assert [epoch.epoch for epoch in read_epochs(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    History(tmp_path).end_epoch(epoch(1))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(
        metrics.read_bytes() + metrics.read_bytes().replace(b'"epoch": 1', b'"epoch": 2')[:-20]
    )
    history = History(tmp_path)
    history.end_epoch(epoch(3))
    history.end_epoch(epoch(4))
    huge = {"kind": "epoch", "time": 0, **asdict(epoch(5))}
    with metrics.open("a") as file:
        file.write(json.dumps(huge).replace(str(huge["train_loss"]), "1" + 400 * "0") + "\n")
        file.write(json.dumps({**huge, "train_loss": float("nan")}) + "\n")
    assert [told.epoch for told in read_epochs(metrics)] == [1, 3, 4]


def test_the_curve_shows_its_losses() -> None:
    def pixels(epochs: list[Epoch]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(draw_losses(epochs))).convert("RGB"))

    falling = pixels([epoch(number, 2 / number) for number in range(1, 20)])
    alone = pixels([epoch(number) for number in range(1, 20)])
    assert (falling != alone).any() and falling.shape == alone.shape
    pixels([Epoch(1, 0.0, -1.0, 0.0, 1.0)])


def test_tensorboard_reads_its_files(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = History(tmp_path, tensorboard=True)
    history.note(Moment(1, 40, 0.5, 1e-4, 20.0, 0.01), 40)
    history.end_epoch(epoch(1, 0.25))
    history.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/data_wait", "epoch/eval_loss"} <= set(events.Tags()["scalars"])
    (told,) = events.Scalars("train/loss")
    assert (told.step, told.value) == (40, 0.5)


def test_without_tensorboard_its_option_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match="pip install tensorboard"):
        History(tmp_path, tensorboard=True)
