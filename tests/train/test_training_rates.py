"""How the rates of a schedule reach the steps of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making import Listening
from runs import NAME, opened, options

from vshard.base.errors import CheckpointError, OptionError
from vshard.base.report import Silent
from vshard.train import run as module
from vshard.train.history import read_epochs
from vshard.train.optimize import rate_of
from vshard.train.run import train

pytestmark = pytest.mark.usefixtures("tiny")


class _StoppedError(Exception):
    pass


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rate of each step that was taken."""
    taken: list[float] = []
    step = module.Steps._step

    def listening(self: module.Steps) -> None:
        taken.append(self.optimizer.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(module.Steps, "_step", listening)
    return taken


def test_the_warm_up_climbs_with_each_step_stopped_or_not(
    data: Path, tmp_path: Path, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(
        data, tmp_path / "whole", max_epoch=2, num_samples=12 * 4, learning_rate=1e-3, scheduler="step",
        learning_rate_decay=1.0, warmup_epoch=2, warmup_learning_rate=2e-4, skip_eval=True,
    )  # fmt: skip
    train(wanted, Silent())
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4])
    told = [epoch.learning_rate for epoch in read_epochs(tmp_path / "whole" / "metrics.jsonl")]
    assert told == pytest.approx([6e-4, 1e-3]), "those of the steps that come next"
    rates.clear()
    set_rates = module.set_rates
    calls = 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise _StoppedError
        set_rates(*arguments)

    # The checkpoint of the first step is there; the second step's is not.
    monkeypatch.setattr(module, "set_rates", dying)
    with pytest.raises(_StoppedError):
        train(replace(wanted, model_dir=tmp_path / "broken"), Silent())
    train(replace(wanted, model_dir=tmp_path / "broken", resume=True), Silent())
    assert rates == pytest.approx([2e-4, 4e-4, 4e-4, 6e-4, 8e-4])


def test_restarts_cut_the_epochs_of_scheduled_optimizers_only(data: Path, tmp_path: Path) -> None:
    asked = {"max_epoch": 20, "learning_rate_cycles": 2}
    for changes, epochs in (
        ({}, 19),
        ({"scheduler": "cosine"}, 19),
        ({"scheduler": "step"}, 20),
        ({"optimizer": "adamw_schedulefree"}, 20),
    ):
        run = opened(options(data, tmp_path, **asked, **changes), Silent())
        assert run.last_epoch == epochs


def test_options_reach_schedule_and_optimizer(data: Path, tmp_path: Path) -> None:
    run = opened(
        options(
            data, tmp_path, learning_rate=0.02, learning_rate_cosine_min=0.01, learning_rate_cycles=1, max_epoch=3,
            weight_decay=0.1, weight_decay_end=0.2, adam_beta1=0.8,
        ),
        Silent(),
    )  # fmt: skip
    run.progress = replace(run.progress, epoch=2)
    run._set_rates()
    group = run.optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.999)
    assert group["lr"] == pytest.approx(0.01 + 0.01 * 0.75)
    assert group["weight_decay"] == pytest.approx(0.1 + 0.1 * (1 - 0.0075 / 0.02))
    sgd = opened(options(data, tmp_path, optimizer="sgd", momentum=0.3), Silent())
    assert sgd.optimizer.param_groups[0]["momentum"] == 0.3
    warm = {"optimizer": "adamw_schedulefree", "warmup_epoch": 2, "num_samples": 96, "backward_step": 4}
    free = opened(options(data, tmp_path, **warm), Silent())
    assert free.optimizer.param_groups[0]["warmup_steps"] == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheduler": "linear"}, "--scheduler linear: there are"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0: allowed is a number above 0"),
        ({"adam_beta1": 1.0}, "--adam-beta1 1.0: allowed is 0 or more and less than 1"),
        ({"momentum": -0.1}, "--momentum -0.1: allowed is 0 or more and less than 1"),
        ({"weight_decay_end": -1.0}, "--weight-decay-end -1.0: allowed is 0 to 1000"),
    ],
)
def test_options_out_of_range_are_refused_at_once(
    data: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        options(data, tmp_path, **changes)


def test_options_given_on_resuming_count(data: Path, tmp_path: Path, rates: list[float]) -> None:
    short = {"num_samples": 12 * 2, "skip_eval": True, "max_epoch": 1}
    for optimizer, changes in (
        ("adamw", {"scheduler": "step", "learning_rate_decay": 0.5}),
        ("adamw_schedulefree", {}),
    ):
        begun = options(data, tmp_path / optimizer, optimizer=optimizer, **short)
        train(begun, Silent())
        rates.clear()
        train(replace(begun, resume=True, max_epoch=2, learning_rate=0.25, **changes), Silent())
        assert rates == [0.125 if changes else 0.25]
    with pytest.raises(CheckpointError, match=r"--adam-beta1 0.5: the run was begun with 0.9.*--reset-state"):
        train(replace(begun, resume=True, max_epoch=3, adam_beta1=0.5), Silent())


def test_disable_backup_keeps_nothing_of_an_older_run(data: Path, tmp_path: Path) -> None:
    short = {"num_samples": 12 * 2, "max_epoch": 1}
    train(options(data, tmp_path, **short), Silent())
    (tmp_path / f"{NAME}.checkpoint.previous.pth").write_bytes(b"old")
    report = Listening()
    train(options(data, tmp_path, disable_backup=True, checkpoint_minutes=100, **short), report)
    assert any("older run: it is removed when this one saves its first" in line for line in report.warned)
    assert not list(tmp_path.glob("*.bk"))
    previous = tmp_path / f"{NAME}.checkpoint.previous.pth"
    assert not previous.exists() or previous.read_bytes() != b"old"


def test_the_rate_told_is_that_of_a_schedule_free_warm_up(data: Path, tmp_path: Path) -> None:
    asked = {"optimizer": "adamw_schedulefree", "warmup_epoch": 3, "num_samples": 12 * 4, "skip_eval": True}
    run = opened(options(data, tmp_path, max_epoch=1, **asked), Silent())
    run.begin()
    run.train()
    assert run.optimizer.param_groups[0]["warmup_steps"] == 9
    assert rate_of(run.optimizer) == pytest.approx(1e-3 * 2 / 9)
