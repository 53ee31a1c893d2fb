from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import Listening
from PIL import Image
from runs import NAME, assert_same, opened, options
from vshard_cli.main import run

from vshard.base.errors import (
    CheckpointError,
    DatasetError,
    OptionError,
    OutputError,
    RecordError,
    WorkerError,
)
from vshard.base.report import Silent, Warnings
from vshard.stream.reader import Reader
from vshard.stream.samples import evaluation_sample
from vshard.stream.split import open_split
from vshard.train import run as module
from vshard.train import weights
from vshard.train.checkpoint import load_model, save_model
from vshard.train.clock import Clock
from vshard.train.history import read_epochs
from vshard.train.losses import Loss
from vshard.train.run import TrainingError, train

pytestmark = pytest.mark.usefixtures("tiny")


def test_a_run_leaves_models_pictures_and_losses(data: Path, tmp_path: Path) -> None:
    result = train(options(data, tmp_path), Silent())
    assert result.epoch == 2
    model = load_model(result.best_model)
    assert model.kwargs == {"base_dim": 4, "lv2_mlp_ratio": 1}
    picture = np.array(Image.open(tmp_path / "eval" / "1.png"))
    assert picture.shape == (12 * 224, 3 * 224, 3)
    split = open_split(data / "eval")
    sample = evaluation_sample(Reader(split), 1, position=1)
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
    fresh = opened(options(data, tmp_path / "fresh"), Silent())
    fresh.begin()
    assert result.best_loss < fresh._evaluate(), "training makes the evaluation loss smaller"


def test_the_average_of_the_weights_is_what_is_kept(data: Path, tmp_path: Path) -> None:
    wanted = options(data, tmp_path / "slow", ema_model=True, ema_decay=1.0, max_epoch=1)
    first = {name: weight.clone() for name, weight in opened(wanted, Silent()).model.state_dict().items()}
    train(wanted, Silent())
    assert_same(dict(load_model(tmp_path / "slow" / f"{NAME}.pth").state_dict()), first)
    train(replace(wanted, model_dir=tmp_path / "at once", ema_decay=0.0), Silent())
    train(replace(wanted, model_dir=tmp_path / "none", ema_model=False), Silent())
    kept, last, none = (
        load_model(tmp_path / name).state_dict()
        for name in (f"at once/{NAME}.pth", f"at once/{NAME}.checkpoint.pth", f"none/{NAME}.pth")
    )
    assert_same(dict(kept), dict(last))
    assert_same(dict(kept), dict(none))
    with pytest.raises(CheckpointError, match="was trained without --ema-model"):
        train(options(data, tmp_path / "none", ema_model=True, resume=True), Silent())


def test_without_evaluation_the_last_weights_are_the_model(data: Path, tmp_path: Path) -> None:
    result = train(options(data, tmp_path, skip_eval=True, save_epoch=True), Silent())
    assert not (tmp_path / "eval").exists() and result.best_loss == float("inf")
    last = dict(load_model(result.checkpoint).state_dict())
    assert_same(dict(load_model(result.best_model).state_dict()), last)
    first, second = sorted(tmp_path.glob(f"{NAME}.epoch*.pth"))
    assert [first.name, second.name] == [f"{NAME}.epoch000{n}.pth" for n in (1, 2)]
    assert_same(dict(load_model(second).state_dict()), last)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(load_model(first).state_dict().values(), last.values(), strict=True)
    )


def test_a_run_can_be_read_while_it_goes(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, tensorboard=True), Silent())
    assert [epoch.epoch for epoch in read_epochs(tmp_path / "metrics.jsonl")] == [1, 2]
    assert list((tmp_path / "tensorboard").iterdir()) and (tmp_path / "loss.png").exists()
    with Image.open(tmp_path / "eval" / "preview.webp") as preview:
        assert preview.n_frames == 12 and preview.size == (3 * 224, 224)
        moving = np.asarray(preview.convert("RGB"), np.int32)
    still = np.asarray(Image.open(tmp_path / "eval" / "0.png"), np.int32)[:224]
    assert np.abs(moving - still).mean() < 8


def test_a_new_run_that_saves_nothing_leaves_the_older_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")}
    monkeypatch.setattr(module.Steps, "_step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(options(data, tmp_path, max_epoch=1, seed=2), Silent())
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth*")} == before


def test_the_network_is_that_of_the_file(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    run = opened(options(data, tmp_path, arch=None, resume=True, max_epoch=2), Silent())
    assert run.model.kwargs == {"base_dim": 4, "lv2_mlp_ratio": 1}
    (tmp_path / "other.checkpoint.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds checkpoints of 2 networks"):
        opened(options(data, tmp_path, arch=None, resume=True), Silent())


def test_reset_state_takes_the_weights_only(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path), Silent())
    first = load_model(tmp_path / f"{NAME}.checkpoint.pth").state_dict()
    again = options(data, tmp_path, resume=True, reset_state=True, optimizer="adamw_schedulefree")
    run = opened(again, Silent())
    assert run.progress.epoch == 1
    assert_same(dict(run.model.state_dict()), dict(first))


def test_a_checkpoint_file_gives_the_first_weights(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path / "one", max_epoch=1), Silent())
    source = tmp_path / "one" / f"{NAME}.pth"
    run = opened(options(data, tmp_path / "two", checkpoint_file=source), Silent())
    assert_same(dict(run.model.state_dict()), dict(load_model(source).state_dict()))
    with pytest.raises(CheckpointError, match="leave out --arch to take the file's"):
        opened(options(data, tmp_path / "two", checkpoint_file=source, arch="narrow"), Silent())


def test_a_new_run_keeps_the_older_ones_models(data: Path, tmp_path: Path) -> None:
    train(options(data, tmp_path, max_epoch=1), Silent())
    before = (tmp_path / f"{NAME}.checkpoint.pth").read_bytes()
    report = Listening()
    train(options(data, tmp_path, max_epoch=1, seed=2), report)
    assert any("is of an older run" in line for line in report.warned)
    assert any("is kept as" in line for line in report.said)
    kept = {
        path.name.split(".")[-4]: path.read_bytes() for path in tmp_path.glob(f"{NAME}.checkpoint.*.pth.bk")
    }
    assert kept.keys() == {"checkpoint", "previous"} and kept["checkpoint"] == before


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
        ({"clip_grad_norm": float("nan")}, "--clip-grad-norm nan: allowed is a number"),
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
        ({"arch": ""}, "no architecture ''"),
        ({"loss": "l2"}, "'l2' is not a loss"),
        ({"optimizer": "adagrad"}, "no optimizer"),
        ({"gpu": 99}, "--gpu 99"),
    ],
)
def test_choices_that_are_not_there(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        train(options(data, tmp_path / "m", **changes), Silent())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("device", "changes", "expected"),
    [
        ("cuda", {}, torch.float16),
        ("cuda", {"amp_float": "bf16"}, torch.bfloat16),
        ("cuda", {"disable_amp": True}, None),
        ("cpu", {}, None),
        ("cpu", {"amp_float": "bf16"}, torch.bfloat16),
        ("cpu", {"amp_float": "bf16", "disable_amp": True}, None),
    ],
)
def test_mixed_precision_where_it_is_asked_for_or_of_use(
    device: str, changes: dict, expected: torch.dtype | None, tmp_path: Path
) -> None:
    assert options(tmp_path, tmp_path, **changes).amp(torch.device(device)) is expected


def test_losses_that_are_not_numbers_are_left_out_and_stop_in_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Listening()

    class Spoilt(Loss):
        """Not a number for the first ``bad`` samples."""

        bad = 1

        def forward(self, *clips: object) -> torch.Tensor:
            self.bad -= 1
            return super().forward(*clips) * (1 if self.bad < 0 else float("nan"))

    monkeypatch.setattr(weights, "loss_by_name", lambda name, _options: Spoilt(name))
    train(options(data, tmp_path / "a", max_epoch=1), report)
    assert sum("not a number" in line for line in report.warned) == 1
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "a" / f"{NAME}.pth").parameters())
    monkeypatch.setattr(module, "NOT_FINITE_MAX", 2)
    Spoilt.bad = 10**6
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
    step = module.Steps._step

    def meanwhile(self: module.Steps) -> None:
        with pytest.raises(OutputError, match="another vshard is training here"):
            train(options(data, tmp_path), Silent())
        step(self)

    monkeypatch.setattr(module.Steps, "_step", meanwhile)
    train(options(data, tmp_path, max_epoch=1), Silent())


def test_a_loader_process_that_dies_while_a_step_is_taken_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: module.Steps) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    monkeypatch.setattr(module.Steps, "_step", interrupted)
    with pytest.raises(WorkerError, match="a loader process died"):
        train(options(data, tmp_path, max_epoch=1), Silent())


def test_the_command_tells_first_weights_and_what_was_not_evaluated(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "-i", str(data), "--video", "--arch", "tiny", "--loss", "temporal_l1", "--num-samples", "24",
               "--max-epoch", "1", "--num-workers", "0", "--gpu", "-1", "--skip-eval"]  # fmt: skip
    assert run([*command, "--model-dir", str(tmp_path / "a")]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"{tmp_path / 'a' / NAME}.pth: that of epoch 1"
    assert "first weights" not in told.err
    model = tmp_path / "a" / f"{NAME}.pth"
    assert run([*command, "--model-dir", str(tmp_path / "b"), "--checkpoint-file", str(model)]) == 0
    assert f"first weights: those of {model}" in capsys.readouterr().err


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """The dataset with one record of each split damaged."""
    copy = tmp_path / "damaged"
    shutil.copytree(data, copy)
    for split in ("train", "eval"):
        record = sorted((copy / split).glob("a_*"))[0]
        for picture in record.glob("*_C.png"):
            picture.write_bytes(picture.read_bytes()[:-40])
    return copy


def test_what_cannot_be_read_is_skipped_by_choice(data: Path, damaged: Path, tmp_path: Path) -> None:
    report = Listening()
    result = train(options(damaged, tmp_path / "m", on_error="skip"), report)
    assert result.epoch == 2 and np.isfinite(result.best_loss)
    assert any("skipped, 1 so far" in line for line in report.warned)
    assert sum("counts for nothing in this evaluation" in line for line in report.warned) == 2
    with pytest.raises(RecordError):
        train(options(damaged, tmp_path / "n"), Silent())
    for picture in damaged.glob("train/*/*_M.png"):
        picture.write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be read|could be read"):
        train(options(damaged, tmp_path / "o", on_error="skip"), Silent())
    shutil.rmtree(damaged / "train")
    shutil.copytree(data / "train", damaged / "train")
    last = sorted((damaged / "eval").glob("a_*"))[1]
    for picture in last.glob("*_C.png"):
        picture.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of the 2 records to evaluate on could be read"):
        train(options(damaged, tmp_path / "m", on_error="skip", resume=True, max_epoch=3), Silent())


def test_an_epoch_without_one_loss_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoilt(Loss):
        def forward(self, *clips: object) -> torch.Tensor:
            return super().forward(*clips) * float("nan")

    monkeypatch.setattr(weights, "loss_by_name", lambda name, _options: Spoilt(name))
    with pytest.raises(TrainingError, match="epoch 1: the loss was not a number 5 times"):
        train(options(data, tmp_path), Silent())
    assert not list(tmp_path.glob("loss_*.csv"))


def test_records_without_holes_are_told(data: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(data, without)
    for picture in without.glob("*/*/*_M.png"):
        Image.new("L", (256, 256)).save(picture)
    report = Listening()
    train(options(without, tmp_path / "m", max_epoch=1), report)
    assert sum("train: no sample of epoch 1 had a hole to fill" in line for line in report.warned) == 1
    assert sum("the records to evaluate on have no hole" in line for line in report.warned) == 1


def test_an_epoch_of_which_nothing_could_be_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.TrainingStream, "has_losses", False)
    with pytest.raises(DatasetError, match="of epoch 1 not one sample could be read; see what is wrong"):
        train(options(data, tmp_path, max_epoch=1), Silent())


def test_processes_that_do_not_speak_warn() -> None:
    report = Listening()
    other = Warnings(report, 3)
    other.say("nothing")
    other.advance(1)
    other.warn("a record is damaged")
    assert report.warned == ["process 3: a record is damaged"] and not report.said


def test_data_waited_for_and_samples_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def samples() -> Iterator[int]:
        nonlocal now
        for number in range(4):
            now += 0.25  # loading
            yield number

    monkeypatch.setattr("vshard.train.clock.time.monotonic", lambda: now)
    clock = Clock(10)
    for _ in clock.waiting(samples()):
        now += 0.75  # a step
    assert clock.wait_share == 0.25
    assert clock.speed(18) == 2.0
