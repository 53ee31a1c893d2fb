from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from making import make_record

from vshard.base.errors import DatasetError, RecordError, WorkerError
from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.loader import Positions, Rank, TrainingSamples, evaluation_loader
from vshard.stream.order import plan_epoch
from vshard.stream.sheet import write_sheet
from vshard.stream.split import Split, open_dataset, open_split
from vshard.stream.training import StreamOptions, TrainingStream


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split") / "train"
    for number in range(4):
        write_record(root, make_record(f"a_{number:06d}", size=256, frames=12 + number, seed=number))
    return root


@pytest.fixture(scope="module")
def shards(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    pack(PackOptions((str(folders),), root, "train", 3_000_000), Silent())
    assert len(list(root.glob("*.tar"))) > 1
    return root


def drawn(root: Path, *, workers: int, start: int = 0, epoch: int = 1) -> list[tuple[str, int, bytes, bytes]]:
    found = stream(open_split(root), draws=7, seed=3, workers=workers)
    for _ in range(epoch - 1):
        found.end_epoch()
    found.position = start
    return [(s.key, s.position, s.rgb.tobytes(), s.hole.tobytes()) for s in found]


def stream(split: Split, **asked: Any) -> TrainingStream:
    return TrainingStream(split, StreamOptions(**{"seed": 1, "hard_examples": False, **asked}), Silent())


def test_samples_do_not_depend_on_workers_or_on_folders_or_shards(folders: Path, shards: Path) -> None:
    alone = drawn(shards, workers=0)
    assert [position for _, position, _, _ in alone] == list(range(7))
    assert drawn(folders, workers=0) == alone
    assert drawn(shards, workers=1) == alone
    assert drawn(shards, workers=2) == alone
    assert drawn(shards, workers=2, start=4) == alone[4:]
    assert drawn(shards, workers=0, epoch=2) != alone


def test_evaluation_sees_every_record_once(shards: Path) -> None:
    split = open_split(shards)
    keys = [sample.key for sample in evaluation_loader(split, workers=2)]
    assert keys == split.keys.tolist()


def test_ranks_evaluate_every_record_once_between_them(shards: Path) -> None:
    split = open_split(shards)
    found = [
        [(sample.position, sample.key) for sample in evaluation_loader(split, workers=n, rank=Rank(n, 3))]
        for n in range(3)
    ]
    assert [[position % 3 for position, _ in own] for own in found] == [
        [n] * len(own) for n, own in enumerate(found)
    ]
    assert sorted(one for own in found for one in own) == list(enumerate(split.keys.tolist()))


def test_a_split_given_for_a_dataset_is_told_from_one(folders: Path, shards: Path, tmp_path: Path) -> None:
    for split in (folders, shards):
        with pytest.raises(DatasetError, match=f"is a split; give the folder .* {split.parent} perhaps"):
            open_dataset(split)
    with pytest.raises(DatasetError, match="eval: no such folder"):
        open_dataset(tmp_path)


def test_a_record_in_both_forms_counts_once(folders: Path, shards: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(folders, both)
    for path in shards.glob("train-*"):
        shutil.copy(path, both)
    write_record(both, make_record("z_000000", size=256))
    split = open_split(both)
    assert split.keys.tolist() == [*open_split(shards).keys.tolist(), "z_000000"]
    assert (split.shard[:4] >= 0).all()
    assert split.shard[4] == -1


def test_records_of_eval_are_left_out_of_train(folders: Path, shards: Path, tmp_path: Path) -> None:
    # The guide's quick way: move a folder from train/ to eval/; its copy in the shard stays.
    shutil.copytree(shards, tmp_path / "train")
    shutil.copytree(folders / "a_000002", tmp_path / "eval" / "a_000002")
    train, evaluation, left_out = open_dataset(tmp_path)
    assert train.keys.tolist() == ["a_000000", "a_000001", "a_000003"]
    assert (evaluation.keys.tolist(), left_out) == (["a_000002"], 1)
    assert [train.frame_count(i) for i in range(3)] == [12, 13, 15]
    assert sorted(s.key for s in stream(train)) == train.keys.tolist()


def test_the_same_record_in_two_shards_is_an_error(folders: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(PackOptions((str(folders),), tmp_path / name, name), Silent())
        shutil.copytree(tmp_path / name, tmp_path / "train", dirs_exist_ok=True)
    with pytest.raises(DatasetError, match="is in one-000000.tar too"):
        open_split(tmp_path / "train")


def test_nothing_to_train_on(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "train")
    shutil.copytree(folders, tmp_path / "eval")
    with pytest.raises(DatasetError, match="every record is in eval/ too"):
        open_dataset(tmp_path)


def test_a_sheet_shows_the_records(shards: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert write_sheet(shards, tmp_path / "sheet.png", 3) == 3
    picture = np.array(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (3 * (256 + 18), 5 * 256, 3)
    masks = picture[18:274, 4 * 256 :]
    assert set(np.unique(masks)) <= {0, 128, 255}
    pink = (picture[18:274, :256, 2].astype(int) - picture[18:274, :256, 1]) > 60
    assert pink.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_is_one_line_from_any_process(folders: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(folders, tmp_path / "train")
    mask = tmp_path / "train" / "a_000002" / "0005_M.png"
    mask.write_bytes(mask.read_bytes()[:-20])
    split = open_split(tmp_path / "train")
    damaged = stream(split, workers=workers)
    order = split.keys[split.by_shard[damaged.plan.records(0, 4)]].tolist()
    seen = []
    with pytest.raises(RecordError, match=r"0005_M\.png: cut off") as caught:
        for sample in damaged:
            seen.append(sample.key)
    assert "\n" not in str(caught.value)
    assert seen == order[: order.index("a_000002")]


def test_more_workers_than_processors_or_records_are_no_matter(folders: Path) -> None:
    split = open_split(folders)
    workers = (os.cpu_count() or 1) + 1
    found = [sample.key for sample in stream(split, draws=3, workers=workers)]
    assert found == [sample.key for sample in stream(split, draws=3, workers=0)]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_worker_is_an_error_at_once(folders: Path) -> None:
    split = open_split(folders)
    loader = iter(stream(split, draws=1000, workers=1))
    next(loader)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="a loader process died"):
        for _ in loader:
            pass


def test_the_pipeline_can_be_sent_to_a_spawned_process(folders: Path) -> None:
    split = open_split(folders)
    plan = plan_epoch(split.shard_counts, seed=1, epoch=1)
    stages = (Positions(plan, split.by_shard, 0, Rank()), TrainingSamples(split, 1, 1, len(plan)))
    again = pickle.loads(pickle.dumps(webdataset.DataPipeline(*stages)))
    assert sorted(sample.key for sample in again) == split.keys.tolist()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_workers_end_with_a_killed_trainer(folders: Path) -> None:
    code = f"""
import multiprocessing, time, pathlib
from vshard.base.report import Silent
from vshard.stream.split import open_split
from vshard.stream.training import StreamOptions, TrainingStream
split = open_split(pathlib.Path({str(folders)!r}))
loader = iter(TrainingStream(split, StreamOptions(seed=1, draws=10000, workers=2), Silent()))
next(loader)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 2
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_leaving_a_loader_early_takes_no_time(folders: Path) -> None:
    split = open_split(folders)
    loader = iter(stream(split, draws=1000, workers=2))
    next(loader)
    time.sleep(1)  # let the workers fill what they may
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 4  # torch alone waits 5 seconds for each of the two
    assert multiprocessing.active_children() == []
