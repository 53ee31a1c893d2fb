from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from making import make_record
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vshard.base.errors import DatasetError, OptionError, RecordError, WorkerError
from vshard.base.report import Silent
from vshard.records.png import decode_png
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.measure import (
    LOADERS,
    STAGES,
    Benched,
    MeasureOptions,
    Run,
    bench,
    measure,
    run_loader,
)
from vshard.stream.measure_cpu import check_system, clock_seconds, cpu_seconds
from vshard.stream.measure_data import Inputs, choose_records, open_training, prepared
from vshard.stream.measure_directory import (
    DirectoryRecords,
    best_crop,
    change_colour,
    draw_frames,
    float_sample,
    grow_rightwards,
    to_tensor,
)
from vshard.stream.measure_loaders import OPENERS, Opened
from vshard.stream.measure_process import in_fresh_process
from vshard.stream.measure_stages import draw_samples, inflate, parse_draw, stage_times
from vshard.stream.samples import Sample, finish, new_pictures
from vshard.stream.split import open_split

KEYS = ("long_000000", "long_000001", "long_000002")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose train/ holds three records to train on and two that are too short or too small."""
    root = tmp_path_factory.mktemp("bench")
    train = root / "dataset" / "train"
    for number, key in enumerate(KEYS):
        write_record(train, make_record(key, frames=14, size=288, seed=number))
    write_record(train, make_record("short_000000", frames=11, size=288))
    write_record(train, make_record("small_000000", frames=14, size=248))
    return root / "dataset"


@pytest.fixture(scope="module")
def inputs(dataset: Path) -> Iterator[Inputs]:
    with prepared(open_training(dataset), 32, 2, Silent()) as found:
        yield found


def test_only_records_to_train_on_are_measured(dataset: Path, inputs: Inputs) -> None:
    assert inputs.split.keys.tolist() == list(KEYS)
    assert choose_records(open_training(dataset), 2).keys.tolist() == [KEYS[0], KEYS[1]]
    assert open_training(dataset / "train").keys.tolist() == open_training(dataset).keys.tolist()


def test_every_form_holds_the_same_files(dataset: Path, inputs: Inputs) -> None:
    for folder in inputs.folders:
        for path in folder.iterdir():
            assert path.read_bytes() == (dataset / "train" / folder.name / path.name).read_bytes()
        assert len(list(folder.iterdir())) == 28
    assert len(inputs.shards) == 2
    assert sorted(key for shard in inputs.shards for key in packed_keys(shard)) == sorted(KEYS)
    files = [path for folder in inputs.folders for path in folder.iterdir()]
    assert inputs.record_bytes == pytest.approx(sum(path.stat().st_size for path in files) / 3)
    assert inputs.window_bytes == pytest.approx(inputs.record_bytes * 12 / 14)


def packed_keys(shard: Path) -> list[str]:
    from vshard.shards.index import scan_shard

    return [entry.key for entry in scan_shard(shard).records]


def test_each_worker_has_a_shard_where_records_are_few(dataset: Path) -> None:
    with prepared(open_training(dataset), 2, 3, Silent()) as found:
        assert [packed_keys(shard) for shard in found.shards] == [[KEYS[0]], [KEYS[1]], [KEYS[0]]]


def test_nothing_to_train_on_is_told(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("short_000000", frames=11, size=288))
    write_record(tmp_path, make_record("small_000000", frames=12, size=248))
    with pytest.raises(DatasetError, match="no record of at least 12 frames and 256x256 pixels"):
        choose_records(open_split(tmp_path), 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("--samples 0", {"samples": 0}),
        ("--records 0", {"records": 0}),
        ("--rounds -1", {"rounds": -1}),
        ("--num-workers 0", {"workers": 0}),
        ("--num-workers 257", {"workers": 257}),
        ("--only folders", {"only": ("vshard", "folders")}),
    ],
)
def test_options_are_checked(name: str, options: dict) -> None:
    with pytest.raises(OptionError, match=f"^{name}: allowed"):
        MeasureOptions(**options)


# What the loaders give.


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_give_comparable_samples(inputs: Inputs, name: str) -> None:
    samples = list(OPENERS[name](inputs, 2)(4))
    assert len(samples) == 4
    for sample in samples if name != "floor" else []:
        if isinstance(sample, Sample):
            assert sample.rgb.shape == (12, 256, 256, 3) and sample.rgb.dtype == np.uint8
            sample = tuple(part[None] for part in finish(sample, torch.device("cpu")))
        elif name == "vshard_finished":
            sample = tuple(part[None] for part in sample)
        x, mask, y = sample
        assert (x.shape, mask.shape, y.shape) == (
            (1, 12, 3, 256, 256), (1, 12, 1, 256, 256), (1, 12, 3, 224, 224)
        )  # fmt: skip
        assert x.dtype == mask.dtype == y.dtype == torch.float32
        assert x.min() >= 0 and 0.1 < x.mean() < 0.9 and x.max() <= 1
        assert mask.unique().tolist() == [0, 1]
        assert torch.equal(y, x[..., 16:-16, 16:-16])


def test_directory_sample_of_our_draws_is_ours(inputs: Inputs) -> None:
    for draw in draw_samples(inputs.split, 12):
        record = DirectoryRecords(inputs.folders)._records[draw.record]
        files = [record[index] for index in draw.wanted]
        x = torch.stack([to_tensor(pillow(frame)) for frame, _ in files])
        mask = torch.stack([to_tensor(pillow(mask)) for _, mask in files])
        crop, hole, y = best_crop(x, mask, [(draw.row, draw.column)])
        rgb = np.stack([decode_png(file.data, file.name) for file in draw.window.frames])
        rows, columns = slice(draw.row, draw.row + 256), slice(draw.column, draw.column + 256)
        masks = np.stack([decode_png(file.data, file.name) for file in draw.window.masks])
        sample = Sample(
            rgb[:, rows, columns], masks[:, rows, columns] > 0, False, *np.float32([[1] * 3, [0] * 3]), "", 0
        )
        for theirs, ours in zip((crop, hole, y), finish(sample, torch.device("cpu")), strict=True):
            assert torch.equal(theirs, ours)


def pillow(path: Path) -> Image.Image:
    return Image.open(path)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_holes_grow_as_by_max_pooling(steps: int) -> None:
    mask = (torch.rand(2, 1, 30, 60, generator=torch.Generator().manual_seed(steps)) > 0.95).float()
    wide = torch.nn.functional.pad(mask, (steps, 0, 0, 0))
    assert torch.equal(grow_rightwards(mask, steps), torch.nn.functional.max_pool2d(wide, (1, steps + 1), 1))


def test_best_crop_has_the_fullest_mask() -> None:
    x, mask = torch.rand(12, 3, 300, 300), torch.zeros(12, 1, 300, 300)
    mask[:, :, 270:290, 280:299] = 0.5
    crop, hole, _ = best_crop(x, mask, [(0, 0), (40, 30), (44, 44), (44, 43)])
    assert torch.equal(crop, x[..., 44:, 44:])
    assert hole.sum() == 12 * 20 * 19


def test_draws_of_the_directory_loader_vary_as_ours() -> None:
    rng = random.Random(3)
    drawn = [tuple(draw_frames(range(16), rng)) for _ in range(400)]
    assert {min(frames) for frames in drawn} == set(range(5))
    assert 150 < sum(frames[0] > frames[-1] for frames in drawn) < 250
    gray = changed = 0
    for _ in range(400):
        x = torch.rand(12, 3, 4, 4)
        before, after = x.clone(), change_colour(x, rng)
        assert after.min() >= 0 and after.max() <= 1
        gray += bool((after[:, 0] == after[:, 1]).all())
        changed += not torch.equal(before, after)
    assert changed == 400 and 5 < gray < 45
    sizes = set()
    for _ in range(60):
        mask = torch.zeros(12, 1, 256, 256)
        mask[..., 100] = 1
        sizes.add(int(float_sample(torch.rand(12, 3, 256, 256), mask, rng)[1][0, 0, 0].sum()))
    assert min(sizes) == 1 and 20 < max(sizes) <= 25


# What is measured.


def test_stages_are_those_of_a_sample(inputs: Inputs) -> None:
    times = stage_times(inputs.split)
    assert set(times) == {*STAGES[:-1], "sample"}
    assert all(ms >= 0 for ms in times.values())
    parts = sum(ms for stage, ms in times.items() if stage != "sample")
    assert parts == pytest.approx(times["sample"], rel=0.3)


def test_inflating_takes_any_png(inputs: Inputs) -> None:
    from vshard.stream import measure_stages

    taken: list[str] = []
    (draw,) = draw_samples(inputs.split, 1)
    plain = measure_stages.inflate_bands
    try:
        measure_stages.inflate_bands = lambda *a: taken.append("bands") or plain(*a)
        inflate(draw, *parse_draw(draw))
    finally:
        measure_stages.inflate_bands = plain
    assert taken == ["bands"] * 12


class Burning(Dataset[int]):
    """Burns CPU time for each sample."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        stop = time.process_time() + self.seconds
        while time.process_time() < stop:
            pass
        return index


def open_burning(seconds: float, inputs: Inputs, workers: int) -> Opened:
    return lambda count: iter(DataLoader(Burning(count, seconds), batch_size=None, num_workers=workers))


def open_failing(error: str, inputs: Inputs, workers: int) -> Opened:
    if error == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RecordError("a record's own error") if error == "record" else ValueError(f"much\n{error}\n")


def test_cpu_time_of_workers_counts(inputs: Inputs) -> None:
    run = run_loader(partial(open_burning, 0.02), inputs, 15, 2)
    # What workers are ahead by at the beginning and the end need not be the same.
    assert 15 < run.cpu_ms_per_sample < 40
    assert 0 < run.samples_per_s < 101


def test_cpu_time_counts_all_that_still_runs() -> None:
    stop = multiprocessing.Event()
    workers = [multiprocessing.Process(target=burn_and_wait, args=(stop,)) for _ in range(2)]
    before = cpu_seconds([])
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + 20
        while cpu_seconds(workers) - before < 0.6 and time.monotonic() < end:
            time.sleep(0.02)
        assert 0.6 <= cpu_seconds(workers) - before < 0.8
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def burn_and_wait(stop: multiprocessing.synchronize.Event) -> None:
    Burning(1, 0.3)[0]
    stop.wait()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00.05", 0.05), ("12:03.40", 723.4), ("01:02:03", 3723.0), ("2-00:00:01", 172801.0)],
)
def test_clocks_of_ps_are_read(text: str, seconds: float) -> None:
    assert clock_seconds(text) == pytest.approx(seconds)


def test_a_system_that_tells_no_times_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_system()
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(OptionError, match="Linux and macOS"):
        check_system()


def test_a_whole_measurement(dataset: Path, inputs: Inputs) -> None:
    options = MeasureOptions(samples=6, workers=2, rounds=1, only=("floor", "vshard"))
    benched = bench(open_training(dataset), options, Silent())
    assert isinstance(benched, Benched)
    assert list(benched.loaders) == ["vshard", "floor"]
    assert benched.records == 3
    ours, floor = benched.loaders.values()
    assert ours.mb_per_sample == inputs.window_bytes / 1e6
    assert ours.mb_per_s == pytest.approx(ours.mb_per_sample * ours.samples_per_s)
    assert floor.mb_per_sample is floor.mb_per_s is None
    assert floor.cpu_ms_per_sample > 0 and ours.cpu_ms_per_sample > 0
    assert list(benched.stages) == list(STAGES)
    assert min(benched.stages.values()) >= 0
    assert benched.stages["read"] > 0 and benched.stages["inflate"] > 0


def test_stages_add_up_to_what_a_sample_costs(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"read": 1.0, "inflate": 5.0, "unfilter": 0.5, "augment": 1.5, "sample": 8.0}

    def told(name: str, *_work: object) -> object:
        return found if name == "the stages" else Run({"vshard": 10.5, "floor": 5.0}[name], 100.0)

    monkeypatch.setattr("vshard.stream.measure.in_fresh_process", told)
    openers = {name: OPENERS[name] for name in ("vshard", "floor")}
    benched = measure(openers, inputs, MeasureOptions(samples=6, workers=2, rounds=3), Silent())
    ours, floor = benched.loaders["vshard"], benched.loaders["floor"]
    assert floor.cpu_ms_per_sample < ours.cpu_ms_per_sample
    assert sum(benched.stages.values()) == pytest.approx(ours.cpu_ms_per_sample)
    assert benched.stages["hand-over"] == pytest.approx(10.5 - 8)


def test_other_loaders_can_be_measured(inputs: Inputs) -> None:
    options = MeasureOptions(
        samples=40, workers=1, rounds=2
    )  # so many that starting a process counts for little
    benched = measure({"mine": partial(open_burning, 0.01)}, inputs, options, Silent())
    assert len(benched.loaders["mine"].runs) == 2
    assert 10 < benched.loaders["mine"].cpu_ms_per_sample < 16
    assert benched.stages == {}


# Other processes.


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        ("record", RecordError, "^a record's own error$"),
        ("the last line", WorkerError, r"^mine: cannot be measured \(ValueError: the last line\)$"),
        ("killed", WorkerError, "^mine: its process died"),
    ],
)
def test_errors_of_a_process_are_one_line(
    inputs: Inputs, error: str, kind: type[Exception], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=told):
        in_fresh_process("mine", open_failing, error, inputs, 1)
    assert "Traceback" not in capfd.readouterr().err


def test_our_pictures_are_found_again(inputs: Inputs) -> None:
    for draw in draw_samples(inputs.split, 6):
        assert 0 <= draw.row <= 32 and 0 <= draw.column <= 32 and 0 <= min(draw.wanted) <= 2
    assert new_pictures().rgb.shape == (12, 256, 256, 3)


def test_shards_of_the_user_are_read_as_they_are(dataset: Path, tmp_path: Path) -> None:
    pack(PackOptions((str(dataset / "train"),), tmp_path / "shards", "some"), Silent())
    with prepared(open_split(tmp_path / "shards"), 2, 1, Silent()) as found:
        assert found.split.root == tmp_path / "shards"
        assert found.split.keys.tolist() == list(KEYS[:2])
