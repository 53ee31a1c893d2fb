"""The same work for many items, several at a time, in threads: what is heavy here lets go of Python's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from .ahead import THREAD_NAME
from .report import Report

Item = TypeVar("Item")
Result = TypeVar("Result")

# A wait without an end cannot be interrupted from the keyboard on Windows.
_LOOK_SECONDS = 0.2


class JobStoppedError(Exception):
    """Another job failed or the user stopped the work: this one's result is not wanted."""


class Meter:
    """Counts what is done of a task by all its jobs together."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._done = 0
        self.stopped = threading.Event()

    def add(self, amount: int, figures: str = "") -> None:
        """Say that ``amount`` more is done.

        Raises:
            JobStoppedError: the work is to end.
        """
        if self.stopped.is_set():
            raise JobStoppedError
        with self._lock:
            self._done += amount
            self._report.advance(self._done, figures)


def run_jobs(
    work: Callable[[Item, Meter], Result], items: Iterable[Item], jobs: int, report: Report
) -> list[Result]:
    """Give ``work(item, meter)`` of each item, in order, at most ``jobs`` at a time.

    ``work`` tells the meter what it has done, now and then: that is where it ends when the work is stopped.

    Raises:
        Exception: what the first failing item raised; jobs under way end at their next word to the meter.
    """
    meter = Meter(report)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix=f"{THREAD_NAME}job")
    futures: list[Future[Result]] = [pool.submit(work, item, meter) for item in items]
    try:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
            if any(future.exception() is not None for future in done):
                break
    finally:
        meter.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    failed = [future for future in futures if not future.cancelled() and future.exception() is not None]
    for future in failed:
        if not isinstance(future.exception(), JobStoppedError):
            future.result()
    return [future.result() for future in futures]
