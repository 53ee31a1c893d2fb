"""A cache shared by processes: they wait for each other, stay below the limit, and may be killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from cached_shards import SIZE, WebShards, files, held_bytes, run_python, waited
from store_folders import FOREVER

from vshard.stream.cache import CacheFullError, ShardCache

pytestmark = pytest.mark.usefixtures("quick")

BORROW = """
import random, sys
from pathlib import Path
from types import SimpleNamespace
from vshard.base.stores import parse_place
from vshard.stream.cache import ShardCache
import hashlib, time

def borrow(folder, limit, address, size, digest):
    facts = SimpleNamespace(size_bytes=int(size), digest=digest)
    return ShardCache(Path(folder), int(limit)).borrow(parse_place(address), facts)
"""


STORM = (
    BORROW
    + """
folder, limit, seed = sys.argv[1:4]
wanted = [line.split() for line in sys.argv[4:]]
random.seed(seed)
for _ in range(25):
    address, size, digest = random.choice(wanted)
    with borrow(folder, limit, address, size, digest) as copy:
        data = b"".join(copy.read_at(at, 100_000) for at in range(0, int(size), 100_000))
        assert hashlib.sha256(data).hexdigest() == digest
print("whole")
"""
)


@pytest.mark.parametrize("room", [2, 6])
def test_several_processes_share_a_folder(web_shards: WebShards, folder: Path, room: int) -> None:
    wanted = [web_shards.put(number) for number in range(6)]
    arguments = [f"{shard.url} {index.size_bytes} {index.digest}" for shard, index in wanted]
    web_shards.faults.add(times=FOREVER, pause_seconds=0.002)
    most = 0
    storm = [run_python(STORM, folder, room * SIZE, seed, *arguments) for seed in range(4)]
    while any(process.poll() is None for process in storm):
        most = max(most, held_bytes(folder))
        time.sleep(0.002)
    assert [process.communicate(timeout=20)[0] for process in storm] == ["whole\n"] * 4
    # A file that is renamed while the folder is listed counts twice here: one shard more.
    assert room * SIZE <= most <= (room + 1) * SIZE
    assert all(name.endswith(".tar") for name in files(folder)) and held_bytes(folder) <= room * SIZE
    if room == 6:
        assert sorted(web_shards.fetched()) == list(range(6))


HOLD = BORROW + "copy = borrow(*sys.argv[1:])\nprint('held', flush=True)\ntime.sleep(60)\n"


def test_killed_while_it_fetches(web_shards: WebShards, folder: Path) -> None:
    shard, index = web_shards.put(0)
    other = web_shards.put(1)
    web_shards.faults.add(pause_seconds=0.1, times=2)
    process = run_python(HOLD, folder, SIZE, shard.url, index.size_bytes, index.digest)
    try:
        assert waited(lambda: folder.is_dir() and any(name.endswith(".part") for name in files(folder)))
        with pytest.raises(CacheFullError):  # its room is taken from the start
            ShardCache(folder, SIZE).borrow(*other, wait_seconds=0)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert files(folder) == [ShardCache(folder, SIZE).name_of(shard, index) + ".part"]
    with ShardCache(folder, SIZE).borrow(shard, index, wait_seconds=0) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(0)
        assert files(folder) == [copy.path.name]


def test_what_another_left_unfinished_gives_room(web_shards: WebShards, folder: Path) -> None:
    folder.mkdir()
    part = folder / f"{0:040x}.tar.part"
    part.write_bytes(bytes(1000))
    ShardCache(folder, 10 * SIZE).borrow(*web_shards.put(0)).close()
    assert not part.exists()


def test_killed_while_it_reads(web_shards: WebShards, folder: Path) -> None:
    shard, index = web_shards.put(0)
    cache = ShardCache(folder, SIZE)
    process = run_python(HOLD, folder, SIZE, shard.url, index.size_bytes, index.digest)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(CacheFullError):
            cache.borrow(*web_shards.put(1), wait_seconds=0)
        with cache.borrow(shard, index) as copy:
            assert copy.read_at(0, SIZE) == web_shards.data(0)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    cache.borrow(*web_shards.put(1), wait_seconds=0).close()
    assert web_shards.fetched() == [0, 1]


FORK = (
    BORROW
    + """
import os
from vshard.stream.cache import OpenShards
from vshard.stream.held import remove_unused
folder, limit, address, size, digest = sys.argv[1:]
place, facts = parse_place(address), SimpleNamespace(size_bytes=int(size), digest=digest)
shards = OpenShards(ShardCache(Path(folder), int(limit)), 2)
copy = shards.get(place, facts)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.read(reader, 1)  # the parent has closed its copy: the one inherited holds nothing
    mine = shards.get(place, facts)
    os._exit(0 if mine is not copy and copy.closed and not remove_unused(mine.path) else 1)
copy.close()
held = ShardCache(Path(folder), int(limit)).borrow(place, facts)
grandchild = os.fork()
if grandchild == 0:
    held.close()  # gives back nothing of its parent's
    os._exit(0)
assert os.waitpid(grandchild, 0)[1] == 0
assert not remove_unused(held.path)
held.close()
other = held.path.with_name("0" * 40 + ".tar")
os.link(held.path, other)
assert remove_unused(other)  # though the child has its parent's file still open
os.write(writer, b"x")
assert os.waitpid(child, 0)[1] == 0
print("right")
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_neither_keeps_nor_gives_back_what_its_parent_holds(
    web_shards: WebShards, folder: Path
) -> None:
    shard, index = web_shards.put(0)
    process = run_python(FORK, folder, SIZE, shard.url, index.size_bytes, index.digest)
    assert process.communicate(timeout=20)[0] == "right\n"
