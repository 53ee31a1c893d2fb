from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import Listening, make_record
from runs import NAME, TINY, assert_same, final_state, killed_and_resumed, opened, options

from vshard.base.errors import CheckpointError
from vshard.base.report import Silent
from vshard.base.stopping import StoppedError
from vshard.records.record import write_record
from vshard.train import run as module
from vshard.train.checkpoint import load_model
from vshard.train.network import ARCHITECTURES
from vshard.train.optimize import OPTIMIZERS
from vshard.train.run import train

pytestmark = pytest.mark.usefixtures("tiny")


SHORT = {"max_epoch": 1, "num_samples": 12 * 3, "backward_step": 1, "skip_eval": True}


# The steps that a run is killed at.
KILLS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "adam": ({**SHORT, "scheduler": "cosine", "amp_float": "bf16"}, (2,)),
    "adamw": ({}, (2, 4, 5)),
    "sgd": ({**SHORT, "scheduler": "step"}, (2,)),
    "lion": ({**SHORT, "warmup_epoch": 1}, (3,)),
    "sgd_schedulefree": ({**SHORT, "warmup_epoch": 1}, (3,)),
    "adamw_schedulefree": ({}, (2, 4, 5)),
    "radam_schedulefree": (SHORT, (2,)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_killed_anywhere_and_resumed_equals_unbroken(data: Path, tmp_path: Path, optimizer: str) -> None:
    changes, kills = KILLS[optimizer]
    wanted = options(data, tmp_path / "whole", optimizer=optimizer, **changes)
    train(wanted, Silent())
    whole = final_state(tmp_path / "whole")
    for kill_at in kills:
        assert_same(killed_and_resumed(wanted, tmp_path / f"killed-{kill_at}", kill_at), whole)


AVERAGED = {**SHORT, "num_samples": 12, "optimizer": "adamw_schedulefree", "ema_model": True}
LIES: list[tuple[tuple[str, ...], Any]] = [
    (("progress",), {}),
    (("progress",), {"not_finite": 0, "best_loss": 1.0}),
    (("progress", "epoch"), 3),
    (("progress", "epoch"), 2.0),
    (("progress", "best_loss"), math.nan),
    (("progress", "best_loss"), -math.inf),
    (("stream", "epoch"), 7),
    (("average", "steps"), -1),
    (("average", "weights", "mask_bias"), torch.tensor(3.0)),
    (("average", "weights", "mask_bias"), torch.full((1, 4, 1, 1), math.nan)),
    (("average", "weights"), [1]),
    (("stepping_weights",), {"mask_bias": torch.tensor(3.0)}),
    (("stepping_weights",), [1]),
]


@pytest.fixture(scope="module")
def averaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("averaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        train(options(data, folder, **AVERAGED), Silent())
    return folder


@pytest.mark.parametrize(("keys", "lie"), LIES)
def test_a_checkpoint_that_lies_is_refused(
    data: Path, averaged: Path, tmp_path: Path, keys: tuple[str, ...], lie: object
) -> None:
    path = tmp_path / f"{NAME}.checkpoint.pth"
    content = torch.load(averaged / path.name, weights_only=True)
    entry = content["vshard"]
    for key in keys[:-1]:
        entry = entry[key]
    assert keys[-1] in entry
    entry[keys[-1]] = lie
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=f"{path.name}: holds no position to go on from .*--reset-state"
    ):
        train(options(data, tmp_path, resume=True, **AVERAGED), Silent())
    if keys == ("progress",):  # as the message says
        train(options(data, tmp_path, resume=True, reset_state=True, **AVERAGED), Silent())


def test_saving_often_changes_nothing(data: Path, tmp_path: Path) -> None:
    for name, minutes in (("often", 0.0), ("seldom", 100.0)):
        train(
            options(
                data, tmp_path / name, optimizer="adamw_schedulefree", checkpoint_minutes=minutes, eval_step=2
            ),
            Silent(),
        )
    assert_same(final_state(tmp_path / "often"), final_state(tmp_path / "seldom"))


@pytest.mark.parametrize(("of", "stage"), [(module.Steps, "_step"), (module._Run, "_evaluate")])
def test_stopping_saves_and_resuming_equals_unbroken(
    data: Path, tmp_path: Path, of: type, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(data, tmp_path / "whole", optimizer="adamw_schedulefree", checkpoint_minutes=100)
    train(wanted, Silent())
    real = getattr(of, stage)

    def interrupted(self: object, *arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(of, stage, interrupted)
    with pytest.raises(StoppedError, match="the same command with --resume goes on"):
        train(replace(wanted, model_dir=tmp_path / "stopped"), Silent())
    monkeypatch.setattr(of, stage, real)
    train(replace(wanted, model_dir=tmp_path / "stopped", resume=True), Silent())
    assert_same(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(data: Path, tmp_path: Path) -> None:
    wanted = options(data, tmp_path / "whole", checkpoint_minutes=100)
    train(wanted, Silent())
    model_dir = tmp_path / "damaged"
    train(replace(wanted, model_dir=model_dir, max_epoch=1), Silent())
    last = model_dir / f"{NAME}.checkpoint.pth"
    for damage in (lambda: last.write_bytes(last.read_bytes()[:-300]), last.unlink):
        shutil.copytree(model_dir, tmp_path / "again")
        damage()
        report = Listening()
        train(replace(wanted, model_dir=model_dir, resume=True), report)
        assert sum("going on from the one before" in line for line in report.warned) == 1
        assert_same(final_state(model_dir), final_state(tmp_path / "whole"))
        shutil.rmtree(model_dir)
        (tmp_path / "again").rename(model_dir)
    for path in model_dir.glob("*.checkpoint*"):
        path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="checkpoint"):
        train(replace(wanted, model_dir=model_dir, resume=True), Silent())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_schedulefree"])
def test_a_resumed_average_equals_an_unbroken_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    wanted = options(data, tmp_path / "whole", ema_model=True, ema_decay=0.7, ema_step=2, optimizer=optimizer)
    train(wanted, Silent())
    step = module.Steps._step
    taken = iter([step, step, lambda steps: 1 / 0])
    monkeypatch.setattr(module.Steps, "_step", lambda steps: next(taken)(steps))
    with pytest.raises(ZeroDivisionError):
        train(replace(wanted, model_dir=tmp_path / "broken"), Silent())
    monkeypatch.setattr(module.Steps, "_step", step)
    train(replace(wanted, model_dir=tmp_path / "broken", resume=True), Silent())
    assert_same(final_state(tmp_path / "broken"), final_state(tmp_path / "whole"))
    both = (load_model(tmp_path / name / f"{NAME}.pth").state_dict() for name in ("broken", "whole"))
    assert_same(*map(dict, both))


def test_resuming_a_finished_run_says_so_and_more_epochs_go_on(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path), Silent())
    report = Listening()
    assert train(options(data, tmp_path, resume=True), report).epoch == 2
    assert any("all 2 epochs are done" in line for line in report.said)
    assert train(options(data, tmp_path, resume=True, max_epoch=3), Silent()).epoch == 3


def test_other_data_starts_the_epoch_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    step = module.Steps._step
    taken = iter([step, lambda steps: 1 / 0])
    monkeypatch.setattr(module.Steps, "_step", lambda steps: next(taken)(steps))
    with pytest.raises(ZeroDivisionError):
        train(options(changed, tmp_path / "m"), Silent())
    monkeypatch.setattr(module.Steps, "_step", step)
    write_record(changed / "train", make_record("b_000000", size=256))
    report = Listening()
    opened(options(changed, tmp_path / "m", resume=True), report).begin()
    assert any("epoch 1 starts over" in line for line in report.warned)


def test_another_optimizer_cannot_resume(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    with pytest.raises(CheckpointError, match="--optimizer adamw; give the same, or --reset-state"):
        train(options(data, tmp_path, optimizer="adamw_schedulefree", resume=True), Silent())


@pytest.mark.skipif(os.name == "nt", reason="needs groups of processes")
def test_stopping_a_whole_group_of_processes_saves(data: Path, tmp_path: Path) -> None:
    """Schedulers of clusters send SIGTERM to a job's every process, the loader's too."""
    code = f"""
import sys
from vshard.train.network import ARCHITECTURES
ARCHITECTURES["tiny"] = {TINY}
from vshard_cli.main import run
sys.exit(run(sys.argv[1:]))
"""
    command = (
        f"train -i {data} --model-dir {tmp_path} --video --arch tiny --loss l1 --num-samples 1200000 --gpu -1"
    )
    training = subprocess.Popen(
        [sys.executable, "-c", code, *command.split(), "--num-workers", "2", "--backward-step", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert training.stderr is not None
    told = [next(line for line in training.stderr if "loss" in line)]
    os.killpg(training.pid, signal.SIGTERM)
    told += list(training.stderr)
    training.stderr.close()
    assert training.wait(timeout=120) == 130
    assert any("stopping: the step under way is finished" in line for line in told)
    assert "all saved" in told[-1], told
    assert final_state(tmp_path)["vshard"]["stream"]["position"] > 0
