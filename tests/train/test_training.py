from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import Listening, make_record
from PIL import Image

from vshard.base.errors import CheckpointError, DatasetError, OptionError, OutputError
from vshard.base.report import Silent
from vshard.base.stopping import StoppedError, StopRequest
from vshard.records.record import write_record
from vshard.stream.samples import evaluation_sample
from vshard.stream.split import open_split
from vshard.train import run as module
from vshard.train.checkpoint import load_checkpoint, load_model, save_model
from vshard.train.network import ARCHITECTURES
from vshard.train.plan import TrainOptions
from vshard.train.run import TrainingError, train

NAME = "inpaint.light_video_inpaint_v1"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", {"base_dim": 4, "lv2_mlp_ratio": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number in range(5):
        split = "train" if number < 3 else "eval"
        write_record(root / split, make_record(f"a_{number:06d}", size=256, seed=number))
    return root


def options(data: Path, model_dir: Path, **changes: object) -> TrainOptions:
    chosen = TrainOptions(
        data, model_dir, video=True, arch="tiny", max_epoch=2, num_samples=12 * 5, backward_step=2, eval_step=1,
        save_eval_step=1, num_workers=0, gpu=-1, checkpoint_minutes=0, learning_rate=1e-3,
    )  # fmt: skip
    return replace(chosen, **changes)


def final_state(model_dir: Path) -> dict:
    content = load_checkpoint(model_dir / f"{NAME}.checkpoint.pth")
    return {
        k: content[k] for k in ("state_dict", "optimizer_state_dict", "best_loss", "last_epoch", "vshard")
    }


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
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_a_run_leaves_models_pictures_and_losses(data: Path, tmp_path: Path) -> None:
    result = train(options(data, tmp_path), Silent())
    assert result.epoch == 2
    model = load_model(result.best_model)
    assert model.kwargs == {"base_dim": 4, "lv2_mlp_ratio": 1}
    picture = np.array(Image.open(tmp_path / "eval" / "1.png"))
    assert picture.shape == (12 * 224, 3 * 224, 3)
    split = open_split(data / "eval")
    sample = evaluation_sample(split, 1, position=1)
    inner = sample.rgb[:, 16:-16, 16:-16].reshape(12 * 224, 224, 3)
    hole = sample.hole[:, 16:-16, 16:-16].reshape(12 * 224, 224)
    assert (picture[:, 448:] == inner).all(), "the right third is the target"
    assert (picture[:, :224][hole] == 0).all(), "the left third has empty holes"
    assert (picture[:, :224][~hole] == inner[~hole]).all()
    far = ~np.asarray(
        torch.nn.functional.max_pool2d(torch.tensor(hole.reshape(12, 1, 224, 224)).float(), 17, 1, 8)
    ).reshape(12 * 224, 224).astype(bool)
    assert (np.abs(picture[:, 224:448][far].astype(int) - inner[far]) <= 1).all(), (
        "the output keeps what was known"
    )
    (losses,) = tmp_path.glob("loss_*.csv")
    rows = losses.read_text().splitlines()
    assert rows[0] == "epoch,train_loss,eval_loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    fresh = module._Run(options(data, tmp_path / "fresh"), Silent(), StopRequest())
    fresh.begin()
    assert result.best_loss < fresh._evaluate(), "training makes the evaluation loss smaller"


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_schedulefree"])
def test_killed_anywhere_and_resumed_equals_unbroken(
    data: Path, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(data, tmp_path / "whole", optimizer=optimizer)
    train(wanted, Silent())
    whole = final_state(tmp_path / "whole")
    step = module._Run._step
    for kill_at in (2, 4, 5):
        calls = 0

        def dying_step(self: module._Run, pending: list[torch.Tensor], at: int = kill_at) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            step(self, pending)

        model_dir = tmp_path / f"killed-{kill_at}"
        monkeypatch.setattr(module._Run, "_step", dying_step)
        with pytest.raises(KeyboardInterrupt):
            train(replace(wanted, model_dir=model_dir), Silent())
        monkeypatch.setattr(module._Run, "_step", step)
        train(replace(wanted, model_dir=model_dir, resume=True), Silent())
        assert_same(final_state(model_dir), whole)


def test_saving_often_changes_nothing(data: Path, tmp_path: Path) -> None:
    for name, minutes in (("often", 0.0), ("seldom", 100.0)):
        train(
            options(
                data, tmp_path / name, optimizer="adamw_schedulefree", checkpoint_minutes=minutes, eval_step=2
            ),
            Silent(),
        )
    assert_same(final_state(tmp_path / "often"), final_state(tmp_path / "seldom"))


@pytest.mark.parametrize("stage", ["_step", "_evaluate"])
def test_stopping_saves_and_resuming_equals_unbroken(
    data: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(data, tmp_path / "whole", optimizer="adamw_schedulefree", checkpoint_minutes=100)
    train(wanted, Silent())
    real = getattr(module._Run, stage)

    def interrupted(self: module._Run, *arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(module._Run, stage, interrupted)
    with pytest.raises(StoppedError, match="the same command with --resume goes on"):
        train(replace(wanted, model_dir=tmp_path / "stopped"), Silent())
    monkeypatch.setattr(module._Run, stage, real)
    train(replace(wanted, model_dir=tmp_path / "stopped", resume=True), Silent())
    assert_same(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))


def test_a_new_run_that_saves_nothing_leaves_the_older_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    monkeypatch.setattr(module._Run, "_step", lambda self, pending: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(options(data, tmp_path, max_epoch=1, seed=2), Silent())
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")} == before


def test_the_network_is_that_of_the_file(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    run = module._Run(options(data, tmp_path, arch=None, resume=True, max_epoch=2), Silent(), StopRequest())
    assert run.model.kwargs == {"base_dim": 4, "lv2_mlp_ratio": 1}
    (tmp_path / "other.checkpoint.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds 2 checkpoints"):
        module._Run(options(data, tmp_path, arch=None, resume=True), Silent(), StopRequest())


def test_resuming_a_finished_run_says_so_and_more_epochs_go_on(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path), Silent())
    report = Listening()
    assert train(options(data, tmp_path, resume=True), report).epoch == 2
    assert any("all 2 epochs are done" in line for line in report.said)
    assert train(options(data, tmp_path, resume=True, max_epoch=3), Silent()).epoch == 3


def test_reset_state_takes_the_weights_only(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path), Silent())
    first = load_model(tmp_path / f"{NAME}.checkpoint.pth").state_dict()
    run = module._Run(
        options(data, tmp_path, resume=True, reset_state=True, optimizer="adamw_schedulefree"),
        Silent(),
        StopRequest(),
    )
    assert run.progress.epoch == 1
    assert_same(dict(run.model.state_dict()), dict(first))


def test_a_checkpoint_file_gives_the_first_weights(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path / "one", max_epoch=1), Silent())
    source = tmp_path / "one" / f"{NAME}.pth"
    run = module._Run(options(data, tmp_path / "two", checkpoint_file=source), Silent(), StopRequest())
    assert_same(dict(run.model.state_dict()), dict(load_model(source).state_dict()))
    with pytest.raises(CheckpointError, match="leave out --arch to take the file's"):
        module._Run(
            options(data, tmp_path / "two", checkpoint_file=source, arch="narrow"), Silent(), StopRequest()
        )


def test_a_new_run_keeps_the_older_ones_models(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    before = (tmp_path / f"{NAME}.checkpoint.pth").read_bytes()
    report = Listening()
    train(options(data, tmp_path, max_epoch=1, seed=2), report)
    assert any("is of an older run" in line for line in report.warned)
    assert any("is kept as" in line for line in report.said)
    kept = list(tmp_path.glob(f"{NAME}.checkpoint.*.pth.bk"))
    assert [path.read_bytes() for path in kept] == [before]


def test_other_data_starts_the_epoch_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    step = module._Run._step
    monkeypatch.setattr(
        module._Run, "_step", lambda self, p: step(self, p) if self.progress.consumed < 2 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(options(changed, tmp_path / "m"), Silent())
    monkeypatch.setattr(module._Run, "_step", step)
    write_record(changed / "train", make_record("b_000000", size=256))
    report = Listening()
    module._Run(options(changed, tmp_path / "m", resume=True), report, StopRequest()).begin()
    assert any("epoch 1 starts over" in line for line in report.warned)


def test_what_cannot_be_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        train(options(tmp_path / "none", tmp_path / "m"), Silent())
    only_train = tmp_path / "half"
    shutil.copytree(data / "train", only_train / "train")
    with pytest.raises(DatasetError, match=r"eval: no such folder; training needs train/ and eval/: make it"):
        train(options(only_train, tmp_path / "m"), Silent())
    (only_train / "eval").mkdir()
    with pytest.raises(DatasetError, match="holds no record and no shard; training needs"):
        train(options(only_train, tmp_path / "m"), Silent())
    (only_train / "eval").rmdir()
    (only_train / "train").rename(only_train / "eval")
    with pytest.raises(DatasetError, match=r"train: no such folder; make records first: vshard generate"):
        train(options(only_train, tmp_path / "m"), Silent())
    with pytest.raises(CheckpointError, match="no checkpoint to resume; check --model-dir"):
        train(options(data, tmp_path / "m", resume=True), Silent())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": False}, "add --video"),
        ({"max_epoch": 0}, "--max-epoch 0: allowed is 1 to 1000000"),
        ({"num_samples": 11}, "--num-samples 11: allowed is 12 to 1000000000"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"reset_state": True}, "goes with --resume"),
        ({"num_workers": -1}, "--num-workers -1"),
    ],
)
def test_options_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(Path("d"), Path("m"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "huge"}, "no architecture"),
        ({"loss": "dct"}, "not built yet"),
        ({"optimizer": "lion"}, "no optimizer"),
        ({"gpu": 99}, "--gpu 99"),
    ],
)
def test_choices_that_are_not_there(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        train(options(data, tmp_path / "m", **changes), Silent())
    assert not (tmp_path / "m").exists()


def test_another_optimizer_cannot_resume(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    with pytest.raises(CheckpointError, match="--optimizer adamw; give the same, or --reset-state"):
        train(options(data, tmp_path, optimizer="adamw_schedulefree", resume=True), Silent())


def test_losses_that_are_not_numbers_are_left_out_and_stop_in_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Listening()
    real = module.loss_by_name("temporal_l1")
    count = 0

    def sometimes(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return real(z, y) * (float("nan") if count == 1 else 1)

    monkeypatch.setattr(module, "loss_by_name", lambda name: sometimes)
    train(options(data, tmp_path / "a", max_epoch=1), report)
    assert sum("not a number" in line for line in report.warned) == 1
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "a" / f"{NAME}.pth").parameters())
    monkeypatch.setattr(module, "NOT_FINITE_MAX", 2)
    monkeypatch.setattr(module, "loss_by_name", lambda name: lambda z, y: real(z, y) * float("nan"))
    with pytest.raises(TrainingError, match="smaller --learning-rate"):
        train(options(data, tmp_path / "b", max_epoch=1), Silent())


def test_weights_that_are_not_numbers_are_never_saved(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    with pytest.raises(TrainingError, match="smaller --learning-rate"):
        train(options(data, tmp_path, max_epoch=2, learning_rate=1e30), Silent())
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    assert set(before.values()) <= set(kept.values()), "the older run's files are kept"
    model = load_model(tmp_path / f"{NAME}.checkpoint.pth")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_model(tmp_path / "nan.pth", model)
    with pytest.raises(CheckpointError, match="not all numbers"):
        train(options(data, tmp_path / "m", checkpoint_file=tmp_path / "nan.pth"), Silent())


def test_two_trainings_in_one_folder_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = module._Run._step

    def meanwhile(self: module._Run, pending: list[torch.Tensor]) -> None:
        with pytest.raises(OutputError, match="another vshard is training here"):
            train(options(data, tmp_path), Silent())
        step(self, pending)

    monkeypatch.setattr(module._Run, "_step", meanwhile)
    train(options(data, tmp_path, max_epoch=1), Silent())
