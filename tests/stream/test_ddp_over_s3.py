"""A split in S3: copies that turn out damaged are fetched anew, and two ranks train from one folder of copies."""

from __future__ import annotations

import gc
import json
import subprocess
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cached_shards import run_python
from making import make_record
from store_folders import one_line
from store_servers import S3Bucket, quick_tries, s3_bucket
from test_training_stream import Seen, order, seen

from vshard.base.errors import ShardError
from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.cache import ShardCache
from vshard.stream.loader import evaluation_loader
from vshard.stream.split import Split, open_split
from vshard.stream.training import StreamOptions, TrainingStream

LIMIT_BYTES = 10**9


def of_shards(asked: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The requests for shards: method, shard, range."""
    return [(method, path.rpartition("/")[2], span) for method, path, span in asked if ".tar" in path]


@dataclass
class Shelf:
    """Nine records in five shards: here, and in a bucket."""

    here: Split
    there: Split
    bucket: S3Bucket
    cache: ShardCache

    def stream(self, **asked: Any) -> TrainingStream:
        """A stream of the split in the bucket."""
        asked = {"seed": 1, "hard_examples": False, "cache": self.cache, **asked}
        return TrainingStream(self.there, StreamOptions(**asked), Silent())

    def local(self, **asked: Any) -> TrainingStream:
        """The same of the split here."""
        return TrainingStream(
            self.here, StreamOptions(**{"seed": 1, "hard_examples": False, **asked}), Silent()
        )

    def requests(self) -> list[tuple[str, str, str]]:
        """What was asked for of shards since the last call: method, shard, range."""
        asked, self.bucket.faults.asked[:] = list(self.bucket.faults.asked), []
        return of_shards(asked)

    def copies(self) -> list[Path]:
        """The files of the copies."""
        return sorted(self.cache.folder.glob("*.tar"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    for number in range(9):
        write_record(root / "records", make_record(f"a_{number:06d}", size=256, frames=12, seed=number))
    pack(PackOptions((str(root / "records"),), root / "train", "train", shard_records=2, shuffle=1), Silent())
    return root / "train"


@pytest.fixture
def shelf(packed: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Shelf]:
    quick_tries(monkeypatch)
    with s3_bucket(monkeypatch) as bucket:
        for path in packed.iterdir():
            if path.is_file():
                bucket.client.put_object(
                    Bucket=bucket.place.name, Key=f"train/{path.name}", Body=path.read_bytes()
                )
        there = open_split(bucket.place / "train")
        bucket.faults.asked.clear()
        yield Shelf(open_split(packed), there, bucket, ShardCache(folder, LIMIT_BYTES))


def drawn(stream: TrainingStream) -> list[Seen]:
    return [seen(sample) for sample in stream]


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a byte here and there":
        for at in range(20_000, len(data), 50_000):
            data[at] ^= 1
    elif how == "zeros":
        data[10_000:-10_000] = bytes(len(data) - 20_000)
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["a byte here and there", "zeros", "half"])
def test_damaged_copies_are_fetched_anew(shelf: Shelf, how: str) -> None:
    whole = drawn(shelf.local())
    assert drawn(shelf.stream()) == whole
    assert len({name for _, name, _ in shelf.requests()}) == len(shelf.copies()) == 5
    assert drawn(shelf.stream()) == whole
    assert shelf.requests() == []
    right = [path.read_bytes() for path in shelf.copies()]
    for path in shelf.copies():
        spoil(path, how)
    assert drawn(shelf.stream()) == whole
    assert [path.read_bytes() for path in shelf.copies()] == right
    assert len({name for _, name, _ in shelf.requests()}) == 5


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_copy_that_is_damaged_under_way_costs_no_sample(shelf: Shelf, on_error: str) -> None:
    whole = drawn(shelf.local(draws=18))
    stream = shelf.stream(draws=18, on_error=on_error)
    found = []
    for number, sample in enumerate(stream):
        found.append(seen(sample))
        if number == 4:
            for path in shelf.copies():
                spoil(path, "a byte here and there")
    assert found == whole
    assert stream.skipped == []


def test_copies_are_given_back_when_a_stream_ends_or_is_left(shelf: Shelf) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(drawn(shelf.stream())) == 9
        left = iter(shelf.stream())
        next(left)
        left.close()  # type: ignore[attr-defined]
        list(evaluation_loader(shelf.there, workers=0, cache=shelf.cache))
        gc.collect()
    assert [str(warning.message) for warning in told] == []


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("size", ["another", "the same"])
def test_a_shard_that_is_not_what_its_index_says_is_named(shelf: Shelf, on_error: str, size: str) -> None:
    place = shelf.there.shards[2]
    key = f"train/{place.name}"
    data = shelf.bucket.client.get_object(Bucket=shelf.bucket.place.name, Key=key)["Body"].read()
    wrong = data[:5000] + b"x" + data[5000 + (size == "the same") :]
    shelf.bucket.client.put_object(Bucket=shelf.bucket.place.name, Key=key, Body=wrong)
    stream = shelf.stream(on_error=on_error)
    bad = {key for key, shard in zip(shelf.there.keys.tolist(), shelf.there.shard, strict=True) if shard == 2}
    keys = order(stream)
    found = []
    with pytest.raises(ShardError, match="other bytes than its index says") as caught:
        for sample in stream:
            found.append(seen(sample))
    assert one_line(caught).startswith(f"{place}: came 2 times") and "vshard index --force" in str(
        caught.value
    )
    # A shard is not a record: no choice skips it, and what came before it was right.
    assert found == drawn(shelf.local())[: min(keys.index(key) for key in bad)]
    assert len(shelf.copies()) <= 4
    shelf.bucket.client.put_object(Bucket=shelf.bucket.place.name, Key=key, Body=data)
    state = stream.state_dict()
    mended = shelf.stream(on_error=on_error)
    mended.load_state_dict(state)
    assert found + drawn(mended) == drawn(shelf.local())


RANK = """
import json, sys, time, zlib
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from vshard.base.report import Silent
from vshard.base.stores import facts, parse_place
from vshard.stream.cache import ShardCache
from vshard.stream.loader import Rank
from vshard.stream.split import open_split
from vshard.stream.training import StreamOptions, TrainingStream

address, folder, meeting, number, draws, limit = sys.argv[1:]
root = parse_place(address)
dist.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=int(number), world_size=2, timeout=timedelta(seconds=40)
)

def gather(own):
    found = [None, None]
    dist.all_gather_object(found, own)
    return found

cache = ShardCache(Path(folder), int(limit))
options = StreamOptions(seed=1, draws=int(draws), workers=1, rank=Rank(int(number), 2), cache=cache)
split = open_split(root)
stream = TrainingStream(split, options, Silent())
told = {"epochs": [], "lengths": [], "plans": []}
for epoch in (1, 2):
    dist.barrier()
    if number == "0":
        facts(root / f"epoch-{epoch}-begins")
        while not Path(f"{meeting}-{epoch}").exists():
            time.sleep(0.01)
    dist.barrier()
    told["lengths"].append(len(stream))
    told["plans"].append(split.keys[split.by_shard[stream.plan.records(0, len(stream.plan))]].tolist())
    samples = []
    for sample in stream:
        pixels = zlib.crc32(sample.rgb.tobytes() + sample.hole.tobytes())
        samples.append([sample.position, sample.key, sample.weight, pixels])
        if sample.weight:
            stream.note_loss(sample.position, pixels % 1000 / 100)
    told["epochs"].append(samples)
    stream.end_epoch(gather)
told["plans"].append(split.keys[split.by_shard[stream.plan.records(0, len(stream.plan))]].tolist())
dist.barrier()
dist.destroy_process_group()
print(json.dumps(told))
"""
DRAWS = 31  # odd: the second rank's last sample is a filler


def asked_of(shelf: Shelf, processes: list[subprocess.Popen[str]], word: str) -> int:
    """Wait for a request whose path holds ``word``; give its number among all."""
    until = time.monotonic() + 60
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        for number, (_, path, _) in enumerate(list(shelf.bucket.faults.asked)):
            if word in path:
                return number
        time.sleep(0.02)
    raise AssertionError(f"nobody asked for {word}")


def ranks_told(shelf: Shelf, meeting: Path, faults: list[dict[str, Any]]) -> tuple[list[Any], list[int]]:
    """Run both ranks, with faults from the first epoch on.

    Returns:
        what they told, and how many requests there were before each epoch.
    """
    arguments = (shelf.bucket.place / "train", shelf.cache.folder, meeting)
    processes = [run_python(RANK, *arguments, number, DRAWS, LIMIT_BYTES) for number in range(2)]
    try:
        begins = []
        for epoch in (1, 2):
            begins.append(asked_of(shelf, processes, f"epoch-{epoch}-begins"))
            for fault in faults if epoch == 1 else []:
                shelf.bucket.faults.add(**fault)
            meeting.with_name(f"{meeting.name}-{epoch}").touch()
        told = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(line) for line in told], begins


def test_two_ranks_train_over_s3_from_one_folder(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = [place.name for place in shelf.there.shards]
    broken: list[dict[str, Any]] = [
        {"match": names[0], "cut_after": 100_000, "times": 2},
        {"match": names[1], "status": 500, "times": 2},
        {"match": names[3], "cut_after": 300_000, "reset": True},
        {"match": names[3], "status": 503},
        {"match": names[4], "dropped": True},
    ]
    slow = {"match": names[2], "pause_seconds": 0.02}
    told, begins = ranks_told(shelf, tmp_path / "meeting", [*broken, slow])
    assert all(fault.times == 0 for fault in shelf.bucket.faults.coming), "a fault did not happen"

    # What a single process reads here, with the losses of the same samples.
    alone = shelf.local(draws=DRAWS, hard_examples=True)
    plans = []
    for epoch in range(2):
        plans.append(order(alone))
        expected = []
        for sample in alone:
            pixels = zlib.crc32(sample.rgb.tobytes() + sample.hole.tobytes())
            expected.append([sample.position, sample.key, 1.0, pixels])
            alone.note_loss(sample.position, pixels % 1000 / 100)
        alone.end_epoch()
        assert [rank["lengths"][epoch] for rank in told] == [16, 16]
        of_ranks = [rank["epochs"][epoch] for rank in told]
        samples = [sample for turn in zip(*of_ranks, strict=True) for sample in turn]
        assert samples[:DRAWS] == expected
        ((position, key, weight, _),) = samples[DRAWS:]
        assert (position, key, weight) == (DRAWS, plans[epoch][0], 0)
    plans.append(order(alone))
    assert [rank["plans"] for rank in told] == [plans, plans]
    assert len({tuple(keys) for keys in plans}) == 3

    asked = list(shelf.bucket.faults.asked)
    cold = Counter(of_shards(asked[begins[0] : begins[1]]))
    assert {name for _, name, _ in cold} == set(names)
    # Two ranks with a worker and threads each: every range once, and again for each time that it failed.
    assert cold.total() - len(cold) == sum(int(fault.get("times", 1)) for fault in broken)
    assert of_shards(asked[begins[1] :]) == []
    assert len(shelf.copies()) == 5 and list(shelf.cache.folder.glob("*.part")) == []
