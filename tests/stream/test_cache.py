"""The cache of remote shards: right bytes or an error, below its limit, whatever happens beside it."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cached_shards import SIZE, WebShards, files, held_bytes, index_of
from store_folders import FOREVER, Shelf, noise, one_line

from vshard.base.errors import OptionError, OutputError, ShardError, StoreError
from vshard.stream import cache as cache_module
from vshard.stream.cache import CacheFullError, OpenShards, ShardCache, default_folder, default_limit_bytes
from vshard.stream.held import PartFile, remove_unused

pytestmark = pytest.mark.usefixtures("quick")

BIG = 10 * SIZE


def test_a_shard_is_fetched_once_and_read_at_any_position(shelf: Shelf, folder: Path) -> None:
    put, faults = shelf
    data = noise(3_000_000)
    shard, index = put("a.tar", data), index_of("a.tar", data)
    cache = ShardCache(folder, BIG)
    with cache.borrow(shard, index) as copy:
        assert copy.path.read_bytes() == data
        assert copy.read_at(1_000_001, 77_777) == data[1_000_001:1_077_778]
        assert copy.read_at(len(data) - 5, 100) == data[-5:]
        assert files(folder) == [copy.path.name]
    faults.asked.clear()
    times = []
    for _ in range(200):
        before = time.perf_counter()
        with cache.borrow(shard, index) as copy:
            times.append(time.perf_counter() - before)
            assert copy.read_at(5, 10) == data[5:15]
    assert faults.asked == []
    assert sorted(times)[100] < 1e-3


@pytest.mark.parametrize(
    "fault",
    [
        {"cut_after": 70_000},
        {"cut_after": 70_000, "reset": True},
        {"status": 503},
        {"dropped": True},
        {"pause_seconds": 0.02},
    ],
    ids=str,
)
def test_passing_failures_do_not_show(shelf: Shelf, folder: Path, fault: dict[str, object]) -> None:
    put, faults = shelf
    data = noise(SIZE)
    faults.add(times=3, match="a.tar", **fault)
    with ShardCache(folder, BIG).borrow(put("a.tar", data), index_of("a.tar", data)) as copy:
        assert copy.path.read_bytes() == data
    assert faults.coming[0].times < 3


@pytest.mark.parametrize("failure", [{"status": 500}, {"status": 403}, {"cut_after": 1000}], ids=str)
def test_what_stays_is_told_and_leaves_nothing(
    shelf: Shelf, folder: Path, failure: dict[str, object]
) -> None:
    put, faults = shelf
    data = noise(SIZE)
    shard = put("a.tar", data)
    cache = ShardCache(folder, BIG)
    faults.add(times=FOREVER, match="a.tar", **failure)
    with pytest.raises(StoreError, match=r"a\.tar") as error:
        cache.borrow(shard, index_of("a.tar", data))
    one_line(error)
    assert files(folder) == []
    faults.coming.clear()
    with cache.borrow(shard, index_of("a.tar", data)) as copy:
        assert copy.path.read_bytes() == data


@pytest.mark.parametrize("found", [noise(SIZE - 1), noise(SIZE, seed=1), noise(SIZE) + b"more", b""])
def test_other_bytes_than_the_index_says(shelf: Shelf, folder: Path, found: bytes) -> None:
    put, faults = shelf
    shard, index = put("a.tar", found), index_of("a.tar", noise(SIZE))
    with pytest.raises(ShardError, match=r"a\.tar: came 2 times .* vshard index --force .*a\.tar") as error:
        ShardCache(folder, BIG).borrow(shard, index)
    one_line(error)
    assert files(folder) == []
    assert len(faults.asked_bytes()) == (2 if len(found) == SIZE else 0)


def test_bytes_that_are_wrong_once_are_fetched_again(
    web_shards: WebShards, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, index = web_shards.put(0)
    (web_shards.root / shard.name).write_bytes(noise(SIZE, seed=9))
    copy_once = cache_module._copy

    def copy_and_mend(*arguments: object) -> str:
        found = copy_once(*arguments)  # type: ignore[arg-type]
        web_shards.put(0)
        return found

    monkeypatch.setattr(cache_module, "_copy", copy_and_mend)
    with ShardCache(folder, BIG).borrow(shard, index) as copy:
        assert copy.path.read_bytes() == web_shards.data(0)


def test_a_shard_that_was_replaced_gives_no_old_bytes(web_shards: WebShards, folder: Path) -> None:
    cache = ShardCache(folder, BIG)
    shard, index = web_shards.put(0)
    new = noise(SIZE, seed=5)
    with cache.borrow(shard, index) as old_copy:
        (web_shards.root / shard.name).write_bytes(new)
        with cache.borrow(shard, index_of(shard.name, new)) as copy:
            assert copy.path.read_bytes() == new
            assert old_copy.read_at(0, SIZE) == web_shards.data(0)


def test_a_damaged_copy_is_forgotten_and_fetched_again(web_shards: WebShards, folder: Path) -> None:
    shards = OpenShards(ShardCache(folder, BIG), most=2)
    others = OpenShards(ShardCache(folder, BIG), most=2)
    shard, index = web_shards.put(0)
    path = shards.get(shard, index).path
    others.get(shard, index)
    with path.open("r+b") as file:
        file.write(b"damaged")
    assert others.get(shard, index).read_at(0, 7) == b"damaged"
    shards.forget(shard, index)
    assert shards.get(shard, index).read_at(0, SIZE) == web_shards.data(0)
    # The other reader finds the damage too; the fresh copy stays.
    others.forget(shard, index)
    assert others.get(shard, index).read_at(0, SIZE) == web_shards.data(0)
    assert web_shards.fetched() == [0, 0]
    # Cut short, it is seen when it is opened.
    others.close()
    shards.close()
    os.truncate(path, 1000)
    assert shards.get(shard, index).read_at(0, SIZE) == web_shards.data(0)
    shards.close()


def test_what_was_used_longest_ago_goes_first(web_shards: WebShards, folder: Path) -> None:
    cache = ShardCache(folder, 3 * SIZE)
    wanted = [web_shards.put(number) for number in range(6)]
    names = [cache.name_of(*one) for one in wanted]
    folder.mkdir()
    (folder / "notes.tar").write_bytes(bytes(BIG))  # not ours: neither counted nor removed
    reading = cache.borrow(*wanted[0])
    for number in (1, 2, 1):
        cache.borrow(*wanted[number]).close()
    assert files(folder) == sorted([*names[:3], "notes.tar"])
    cache.borrow(*wanted[3]).close()  # 0 is being read, 1 was used after 2
    assert files(folder) == sorted([names[0], names[1], names[3], "notes.tar"])
    reading.close()  # used until now
    cache.borrow(*wanted[4]).close()
    assert files(folder) == sorted([names[0], names[3], names[4], "notes.tar"])
    cache.borrow(*wanted[5]).close()
    assert files(folder) == sorted([names[0], names[4], names[5], "notes.tar"])
    assert web_shards.fetched() == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(os.name == "nt", reason="there no open file is removed")
def test_a_copy_that_goes_while_it_is_opened_is_fetched_again(
    web_shards: WebShards, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    cache = ShardCache(folder, BIG)
    shard, index = web_shards.put(0)
    cache.borrow(shard, index).close()
    lock, gone = fcntl.flock, []

    def remove_before_lock(handle: int, what: int) -> None:
        if what == fcntl.LOCK_SH and not gone:
            gone.append(remove_unused(folder / cache.name_of(shard, index)))
        lock(handle, what)

    monkeypatch.setattr("vshard.stream.held.fcntl.flock", remove_before_lock)
    with cache.borrow(shard, index) as copy:
        assert gone == [True] and copy.path.read_bytes() == web_shards.data(0)


def test_only_as_much_goes_as_must(web_shards: WebShards, folder: Path) -> None:
    cache = ShardCache(folder, 3 * SIZE)
    for number in range(3):
        cache.borrow(*web_shards.put(number)).close()
    small = web_shards.put(3, size=10)
    cache.borrow(*small).close()
    assert held_bytes(folder) == 2 * SIZE + 10
    cache.borrow(*web_shards.put(4, size=SIZE - 10)).close()
    assert held_bytes(folder) == 3 * SIZE


def test_a_shard_larger_than_the_cache(web_shards: WebShards, folder: Path) -> None:
    shard, index = web_shards.put(0)
    with pytest.raises(OptionError, match=rf"000000\.tar: has {SIZE} bytes.*--cache-limit") as error:
        ShardCache(folder, SIZE - 1).borrow(shard, index)
    one_line(error)
    ShardCache(folder, SIZE).borrow(shard, index).close()


def test_where_all_is_being_read_one_waits(web_shards: WebShards, folder: Path) -> None:
    cache = ShardCache(folder, SIZE)
    reading = cache.borrow(*web_shards.put(0))
    other = web_shards.put(1)
    before = time.monotonic()
    with pytest.raises(CacheFullError, match=f"{SIZE} of the {SIZE} bytes.*--cache-limit") as error:
        cache.borrow(*other, wait_seconds=0.3)
    one_line(error)
    assert 0.3 <= time.monotonic() - before < 3
    threading.Timer(0.2, reading.close).start()
    with cache.borrow(*other) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(1)
    assert held_bytes(folder) == SIZE


def test_a_process_keeps_a_few_shards_open(web_shards: WebShards, folder: Path) -> None:
    cache = ShardCache(folder, 3 * SIZE)
    wanted = [web_shards.put(number) for number in range(4)]
    shards = OpenShards(cache, most=2)
    first = shards.get(*wanted[0])
    assert shards.get(*wanted[0]) is first
    second = shards.get(*wanted[1])
    shards.get(*wanted[0])
    third = shards.get(*wanted[2])
    assert (first.closed, second.closed, third.closed) == (False, True, False)
    assert not remove_unused(first.path) and remove_unused(second.path)
    shards.close()
    assert first.closed and third.closed


def test_ones_own_open_shards_are_not_in_the_way(web_shards: WebShards, folder: Path) -> None:
    shards = OpenShards(ShardCache(folder, SIZE), most=3)
    for number in (0, 1, 0, 2):
        assert shards.get(*web_shards.put(number)).read_at(0, SIZE) == web_shards.data(number)
    shards.close()


def test_a_full_disk_is_one_line(
    web_shards: WebShards, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: PartFile, data: memoryview) -> int:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super(PartFile, self).write(data[:1000])

    cache = ShardCache(folder, BIG)
    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "write", write)
        with pytest.raises(OutputError, match="cannot write .*: the disk is full") as error:
            cache.borrow(*web_shards.put(0))
    one_line(error)
    assert files(folder) == []
    cache.borrow(*web_shards.put(0)).close()


def test_a_disk_that_takes_a_part_of_what_is_written_gets_the_rest(
    web_shards: WebShards, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PartFile, "write", lambda self, data: super(PartFile, self).write(data[:70_000]), raising=False
    )
    with ShardCache(folder, BIG).borrow(*web_shards.put(0)) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(0)


def test_a_folder_that_cannot_be_made_is_one_line(web_shards: WebShards, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write .*file") as error:
        ShardCache(tmp_path / "file" / "cache", BIG).borrow(*web_shards.put(0))
    one_line(error)


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_an_index_that_lies_writes_nothing_elsewhere(web_shards: WebShards, folder: Path, size: int) -> None:
    shard, index = web_shards.put(0)
    with pytest.raises((ShardError, OutputError)):
        ShardCache(folder, 1 << 63).borrow(shard, replace(index, digest="../../../x/y", size_bytes=size))
    assert files(folder) == [] and files(folder.parent) == ["cache", "web"]


def test_it_goes_to_other_processes(folder: Path) -> None:
    cache = ShardCache(folder, BIG)
    assert pickle.loads(pickle.dumps(cache)) == cache
    assert pickle.loads(pickle.dumps(OpenShards(cache, 3)))._lender == cache


def test_the_default_limit_leaves_room_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder().name == "shards"
    usage = {"free": 10**9}
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), usage))
    assert default_limit_bytes(folder) == 800_000_000
    folder.mkdir()
    with (folder / f"{0:040x}.tar").open("wb") as file:
        file.truncate(10**9)
    assert default_limit_bytes(folder) == 1_600_000_000
    usage["free"] = 10**12
    assert default_limit_bytes(folder) == 50 * 10**9
