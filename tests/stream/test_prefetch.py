"""Shards fetched ahead: in order, below the cache's limit, and nobody pays for another's error."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cached_shards import SIZE, Wanted, WebShards, held_bytes, run_python, waited
from store_folders import FOREVER, one_line

from vshard.base.errors import OptionError, ShardError, StoreError
from vshard.stream.cache import OpenShards, ShardCache
from vshard.stream.prefetch import Prefetch

pytestmark = pytest.mark.usefixtures("quick")

Start = Callable[[int, list[Wanted], int, int], Prefetch]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start fetching ahead: room in shards, the order, how far ahead, jobs."""
    made: list[Prefetch] = []

    def begin(room: int, order: list[Wanted], ahead: int, jobs: int) -> Prefetch:
        made.append(Prefetch(ShardCache(folder, room * SIZE), order, ahead, jobs))
        made[-1].advance(0)
        return made[-1]

    yield begin
    for prefetch in made:
        prefetch.close()
    assert running() == 0


def running() -> int:
    return sum(thread.name == "ahead-shards" for thread in threading.enumerate())


def here(folder: Path, order: list[Wanted]) -> set[int]:
    """The positions whose shards are in the cache, whole."""
    cache = ShardCache(folder, 0)
    return {place for place, wanted in enumerate(order) if (folder / cache.name_of(*wanted)).exists()}


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_next_shards_come_and_no_more(
    web_shards: WebShards, folder: Path, start: Start, jobs: int
) -> None:
    order = [web_shards.put(number) for number in range(8)]
    prefetch = start(8, order, 3, jobs)
    assert waited(lambda: here(folder, order) == {0, 1, 2})
    time.sleep(0.1)
    assert here(folder, order) == {0, 1, 2}
    if jobs == 1:
        assert web_shards.fetched() == [0, 1, 2]
    prefetch.advance(2)
    assert waited(lambda: here(folder, order) == {0, 1, 2, 3, 4})
    prefetch.advance(7)
    assert waited(lambda: here(folder, order) == {0, 1, 2, 3, 4, 7})
    prefetch.advance(8)
    web_shards.faults.asked.clear()
    with prefetch.borrow(*order[4]) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(4)
    assert web_shards.faults.asked == []


@pytest.mark.parametrize(("room", "ahead", "jobs"), [(2, 6, 2), (1, 3, 1), (4, 4, 3)])
def test_little_room_costs_no_shard_twice(
    web_shards: WebShards, folder: Path, start: Start, room: int, ahead: int, jobs: int
) -> None:
    order = [web_shards.put(number) for number in range(8)]
    prefetch = start(room, order, ahead, jobs)
    shards = OpenShards(prefetch, 1)
    for position, wanted in enumerate(order):
        time.sleep(0.05)
        if jobs == 1:  # several jobs may bring a later one first where there is no room for all
            assert waited(lambda position=position: position in here(folder, order))
        assert shards.get(*wanted).read_at(0, SIZE) == web_shards.data(position)
        assert held_bytes(folder) <= room * SIZE
        shards.close()
        prefetch.advance(position + 1)
    if jobs == 1 or room >= ahead:
        assert sorted(web_shards.fetched()) == list(range(8))


def test_who_needs_a_shard_now_takes_the_room_of_what_is_needed_last(
    web_shards: WebShards, folder: Path, start: Start
) -> None:
    order = [web_shards.put(number) for number in range(6)]
    start(3, order[:3], 3, 1)
    assert waited(lambda: here(folder, order) == {0, 1, 2})
    time.sleep(0.05)
    for position, left in ((3, {0, 1, 3}), (4, {0, 3, 4})):
        ShardCache(folder, 3 * SIZE).borrow(*order[position], wait_seconds=0).close()
        assert here(folder, order) == left


def test_an_error_waits_for_who_borrows_that_shard(web_shards: WebShards, folder: Path, start: Start) -> None:
    order = [web_shards.put(number) for number in range(5)]
    web_shards.faults.add(match="000001", times=FOREVER, status=403)
    (web_shards.root / order[2][0].name).write_bytes(b"another")
    prefetch = start(8, order, 4, 2)
    assert waited(lambda: here(folder, order) == {0, 3})
    assert waited(lambda: web_shards.fetched().count(2) == 2)
    time.sleep(0.1)
    web_shards.faults.coming.clear()
    web_shards.put(2)
    with prefetch.borrow(*order[3]) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(3)
    with pytest.raises(StoreError, match="000001.*access denied") as refused:
        prefetch.borrow(*order[1])
    one_line(refused)
    with pytest.raises(ShardError, match="000002.*other bytes"):
        prefetch.borrow(*order[2])
    for number in (1, 2):  # told once; what was mended is fetched now
        with prefetch.borrow(*order[number]) as copy:
            assert copy.read_at(0, SIZE) == web_shards.data(number)


def test_errors_of_shards_that_are_done_with_are_dropped(
    web_shards: WebShards, folder: Path, start: Start
) -> None:
    order = [web_shards.put(0, size=9 * SIZE), web_shards.put(1)]
    prefetch = start(8, order, 2, 1)
    assert waited(lambda: here(folder, order) == {1})
    prefetch.advance(1)
    assert prefetch._running().take_error(ShardCache(folder, 0).name_of(*order[0])) is None
    with pytest.raises(OptionError, match="--cache-limit"):
        prefetch.borrow(*order[0])


def test_closing_in_the_middle_is_quick_and_leaves_nothing(
    web_shards: WebShards, folder: Path, start: Start
) -> None:
    order = [web_shards.put(number, size=30 * SIZE) for number in range(2)]
    web_shards.faults.add(times=FOREVER, pause_seconds=0.02)
    prefetch = start(80, order, 2, 2)
    assert waited(lambda: held_bytes(folder) == 60 * SIZE if folder.is_dir() else False)
    before = time.monotonic()
    prefetch.close()
    assert time.monotonic() - before < 2
    web_shards.faults.coming.clear()
    assert waited(lambda: held_bytes(folder) == 0 and running() == 0)


def test_a_shard_that_is_being_fetched_is_waited_for(
    web_shards: WebShards, folder: Path, start: Start
) -> None:
    order = [web_shards.put(0)]
    web_shards.faults.add(times=3, pause_seconds=0.05)
    prefetch = start(1, order, 1, 1)
    assert waited(lambda: folder.is_dir() and held_bytes(folder) == SIZE)
    with prefetch.borrow(*order[0]) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(0)
    assert web_shards.fetched() == [0]


def test_threads_start_where_they_are_needed(web_shards: WebShards, folder: Path, start: Start) -> None:
    order = [web_shards.put(number) for number in range(2)]
    Prefetch(ShardCache(folder, 8 * SIZE), order, 2, 2)
    assert running() == 0
    prefetch = start(8, order, 1, 2)
    assert running() == 2
    assert waited(lambda: here(folder, order) == {0})
    prefetch.advance(1)
    there = pickle.loads(pickle.dumps(prefetch))
    assert running() == 2
    assert waited(lambda: here(folder, order) == {0, 1})
    with there.borrow(*order[0]) as copy:
        assert copy.read_at(0, SIZE) == web_shards.data(0)
    assert running() == 4
    there.close()
    assert running() == 2


FORK = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from vshard.base.stores import parse_place
from vshard.stream.cache import ShardCache
from vshard.stream.prefetch import Prefetch
folder = Path(sys.argv[1])
order = []
for line in sys.argv[2:]:
    address, size, digest = line.split()
    order.append((parse_place(address), SimpleNamespace(size_bytes=int(size), digest=digest)))
cache = ShardCache(folder, 1 << 30)
prefetch = Prefetch(cache, order, 1, 1)
prefetch.advance(0)
while not (folder / cache.name_of(*order[0])).exists():
    time.sleep(0.01)
child = os.fork()
prefetch.advance(1 if child else 2)  # the child has threads of its own
while not (folder / cache.name_of(*order[1 if child else 2])).exists():
    time.sleep(0.01)
prefetch.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("right")
"""


def test_a_forked_child_has_threads_of_its_own(web_shards: WebShards, folder: Path) -> None:
    wanted = [web_shards.put(number) for number in range(3)]
    arguments = [f"{shard.url} {index.size_bytes} {index.digest}" for shard, index in wanted]
    process = run_python(FORK, folder, *arguments)
    assert process.communicate(timeout=20)[0] == "right\n"
