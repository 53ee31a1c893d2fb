"""What is in a run's folder at every moment, whatever ends the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import Listening
from runs import NAME, TINY, assert_same, final_state, options

from vshard.base.errors import CheckpointError, OutputError
from vshard.base.locks import only_one
from vshard.base.places import Remote
from vshard.base.report import Silent
from vshard.train import keeping, run
from vshard.train.checkpoint import load_checkpoint, read_content
from vshard.train.network import ARCHITECTURES
from vshard.train.plan import TrainOptions
from vshard.train.run import TrainingError, train

pytestmark = pytest.mark.usefixtures("tiny")

LAST, PREVIOUS, BEST = (
    f"{NAME}{suffix}" for suffix in (".checkpoint.pth", ".checkpoint.previous.pth", ".pth")
)
SHORT: dict[str, Any] = {"num_samples": 12 * 2, "backward_step": 1, "checkpoint_minutes": 100}


def dying(real: Callable[..., Any], at: int, *, after: bool) -> Callable[..., Any]:
    """A function that ends the process with its ``at``-th call: before its work, or behind it."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != at:
            return real(*arguments, **named)
        if after:
            real(*arguments, **named)
        raise KeyboardInterrupt

    return call


def killed_at_first_save(wanted: TrainOptions) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "save_checkpoint", dying(keeping.save_checkpoint, 1, after=False))
        with pytest.raises(KeyboardInterrupt):
            train(wanted, Silent())


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        train(options(data, folder, checkpoint_minutes=0), Silent())
    return folder


# In a run of two epochs: ten losses and three steps each, a checkpoint with every step.
POINTS = [
    (module, name, at, after)
    for module, name, times in (
        (keeping, "save_checkpoint", 10),
        (keeping, "save_model", 2),
        (run, "judge", 2),
        (run.History, "end_epoch", 2),
    )
    for at in range(1, times + 1)
    for after in (False, True)
]
DRAWN = np.random.default_rng(6).choice(len(POINTS), 6, replace=False).tolist()


@pytest.mark.parametrize("number", DRAWN)
def test_killed_while_files_are_written_and_resumed_equals_unbroken(
    data: Path, tmp_path: Path, whole: Path, number: int
) -> None:
    of, name, at, after = POINTS[number]
    wanted = options(data, tmp_path, checkpoint_minutes=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, dying(getattr(of, name), at, after=after))
        with pytest.raises(KeyboardInterrupt):
            train(wanted, Silent())
    resumable = any(tmp_path.glob("*.checkpoint*.pth"))
    assert resumable or (name, at, after) == ("save_checkpoint", 1, False)
    train(replace(wanted, resume=resumable), Silent())
    assert_same(final_state(tmp_path), final_state(whole))
    best = [read_content(folder / BEST)["state_dict"] for folder in (tmp_path, whole)]
    assert_same(dict(best[0]), dict(best[1]))


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-300])
    good = (tmp_path / PREVIOUS).read_bytes()
    more = options(data, tmp_path, resume=True, max_epoch=3)
    killed_at_first_save(more)
    assert (tmp_path / PREVIOUS).read_bytes() == good
    train(more, Silent())
    assert load_checkpoint(tmp_path / LAST)["last_epoch"] == 3
    assert load_checkpoint(tmp_path / PREVIOUS)["vshard"]["progress"]["epoch"] == 3


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("backup", [True, False])
def test_a_reset_run_that_is_killed_at_its_first_save_begins_again(
    data: Path, tmp_path: Path, whole: Path, backup: bool, damaged: bool
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    if damaged:
        (tmp_path / LAST).write_bytes(b"PK")
    began_from = (tmp_path / (PREVIOUS if damaged else LAST)).read_bytes()
    wanted = options(
        data, tmp_path, resume=True, reset_state=True, disable_backup=not backup, seed=5, max_epoch=1, **SHORT
    )
    killed_at_first_save(wanted)
    train(wanted, Silent())
    assert load_checkpoint(tmp_path / LAST)["train_kwargs"]["seed"] == 5
    kept = [path.read_bytes() for path in tmp_path.glob("*.pth.bk")]
    assert (began_from in kept) == backup


@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_never_saves_leaves_the_older_one_as_it_was(
    data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, backup: bool, links: bool
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    wanted = options(data, tmp_path, disable_backup=not backup, seed=5, max_epoch=1, **SHORT)
    killed_at_first_save(wanted)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before
    assert len(before) == 3
    for kept in tmp_path.glob("*.bk"):
        kept.unlink()
    train(wanted, Silent())
    kept = [path.read_bytes() for path in tmp_path.glob("*.bk")]
    assert sorted(kept) == (sorted(before.values()) if backup else [])
    for name in (LAST, PREVIOUS):
        assert load_checkpoint(tmp_path / name)["train_kwargs"]["seed"] == 5


def test_an_epoch_that_cannot_be_told_is_saved(data: Path, tmp_path: Path) -> None:
    wanted = options(data, tmp_path, skip_eval=True, eval_step=9, max_epoch=1, **SHORT)
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(OutputError, match="loss.png"):
        train(wanted, Silent())
    assert load_checkpoint(tmp_path / LAST)["last_epoch"] == 1


def test_a_best_model_that_is_not_there_counts_no_more(data: Path, tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / BEST).unlink()
    report = Listening()
    train(options(data, tmp_path, resume=True, max_epoch=3, learning_rate=1e-8), report)
    assert any(f"{BEST} is not there: what was the best model" in line for line in report.warned)
    assert (tmp_path / BEST).exists()


def test_a_new_run_keeps_the_older_ones_models_of_every_epoch(data: Path, tmp_path: Path) -> None:
    first = options(data, tmp_path, save_epoch=True, **SHORT)
    train(first, Silent())
    before = {path.read_bytes() for path in tmp_path.glob(f"{NAME}.epoch*.pth")}
    report = Listening()
    train(replace(first, resume=True, reset_state=True, max_epoch=1, seed=2), report)
    assert {path.read_bytes() for path in tmp_path.glob(f"{NAME}.epoch*.pth.bk")} == before and len(
        before
    ) == 2
    assert [path.name for path in tmp_path.glob(f"{NAME}.epoch*.pth")] == [f"{NAME}.epoch0001.pth"]
    assert any("epoch0002.pth of the older run is kept" in line for line in report.said)
    train(replace(first, resume=True, reset_state=True, max_epoch=1, seed=3, disable_backup=True), Silent())
    assert {path.read_bytes() for path in tmp_path.glob(f"{NAME}.epoch*.pth.bk")} == before


def test_spoilt_weights_never_become_the_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(data, tmp_path, skip_eval=True, save_epoch=True, eval_step=9, max_epoch=9, **SHORT)
    train_epoch = run._Run._train_epoch

    def spoiling(self: run._Run) -> None:
        train_epoch(self)
        with torch.no_grad():
            next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(run._Run, "_train_epoch", spoiling)
    with pytest.raises(TrainingError, match="no longer numbers"):
        train(wanted, Silent())
    assert not list(tmp_path.glob("*.pth"))


def test_a_checkpoint_is_read_under_the_lock(data: Path, tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    wanted = options(data, tmp_path, resume=True, max_epoch=3)
    with only_one(tmp_path / run.LOCK_FILE, "training here"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_last", lambda *_: pytest.fail("read a checkpoint that may change"))
        with pytest.raises(OutputError, match="another vshard is training here"):
            train(wanted, Silent())


def test_an_average_is_not_dropped(data: Path, tmp_path: Path) -> None:
    wanted = options(data, tmp_path, ema_model=True, max_epoch=1, **SHORT)
    train(wanted, Silent())
    with pytest.raises(
        CheckpointError, match="was trained with --ema-model; give it, or take its weights only"
    ):
        train(replace(wanted, ema_model=False, max_epoch=2, resume=True), Silent())


def test_the_best_model_of_other_evaluation_records_counts_no_more(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path / "m")
    other = tmp_path / "data"
    shutil.copytree(data, other)
    first = next((other / "eval").glob("a_*"))
    first.rename(first.with_name("b_000000"))
    for folder, expected in ((data, 0), (other, 1)):
        report = Listening()
        train(options(folder, tmp_path / "m", resume=True), report)
        assert sum("its records are others now" in line for line in report.warned) == expected


def test_what_a_model_file_tells_holds_no_signature() -> None:
    asked = options(Remote("https://me:secret@host/data?sig=secret"), Path("models"))
    told = asked.plain()
    assert told["data_dir"] == "https://host/data" and told["model_dir"] == "models"
    assert "secret" not in repr(told)
