from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vshard.base.ahead import map_ahead


def running() -> int:
    return sum(thread.name.startswith("ahead-") for thread in threading.enumerate())


@pytest.mark.parametrize("held", [0, 1, 3])
def test_order_and_results_are_those_of_map(held: int) -> None:
    assert list(map_ahead(lambda n: n * n, iter(range(50)), held)) == [n * n for n in range(50)]
    assert running() == 0


@pytest.mark.parametrize("held", [1, 2, 4])
def test_no_more_than_held_results_wait(held: int) -> None:
    started = []

    def work(n: int) -> int:
        started.append(n)
        return n

    results = map_ahead(work, iter(range(100)), held)
    for taken in range(5):
        assert next(results) == taken
        time.sleep(0.05)
        # taken, those that wait, and the one that is done but finds no place
        assert len(started) <= taken + 1 + held + 1
    results.close()
    assert running() == 0


def test_stages_work_at_the_same_time() -> None:
    begun = {"first": threading.Event(), "second": threading.Event()}

    def first(n: int) -> int:
        if n == 2:
            begun["first"].set()
            assert begun["second"].wait(10), "item 1 is not in the second stage while item 2 is in the first"
        return n

    def second(n: int) -> int:
        if n == 1:
            begun["second"].set()
            assert begun["first"].wait(10), "item 2 is not in the first stage while item 1 is in the second"
        return n

    assert list(map_ahead(second, map_ahead(first, iter([1, 2]), 1), 1)) == [1, 2]


@pytest.mark.parametrize("held", [0, 1])
def test_an_error_arrives_after_the_results_before_it(held: int) -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from (1, 2)
            raise OSError("the disk")
        finally:
            closed.append(True)

    results = map_ahead(lambda n: n, items(), held)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="the disk"):
        next(results)
    assert closed and running() == 0


@pytest.mark.parametrize("held", [0, 2])
def test_closing_the_last_stage_closes_the_first(held: int) -> None:
    closed = []

    def endless() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed.append(True)

    chain = map_ahead(lambda n: n, map_ahead(lambda n: n, endless(), held), held)
    assert next(chain) == 0
    chain.close()
    assert closed and running() == 0
