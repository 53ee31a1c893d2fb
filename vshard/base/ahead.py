"""Stages of a pipeline that overlap: each works in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# How often a waiting stage looks whether it is still wanted.
_LOOK_SECONDS = 0.2
# How long closing waits for a thread to end; one in the middle of longer work ends by itself, its result unused.
STOP_SECONDS = 1.0
_END = object()
# What the names of stages' threads begin with.
THREAD_NAME = "ahead-"


class _Failure:
    """An exception on its way to the consumer's thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def map_ahead(
    work: Callable[[Item], Result], items: Iterator[Item], held: int
) -> Generator[Result, None, None]:
    """Give ``work(item)`` for each item in order, worked out in a thread that runs ahead of the consumer.

    At most ``held`` finished results wait, beside the one in work: memory stays bounded however long ``items`` is.
    With ``held`` 0 there is no thread, and each result is worked out when it is asked for. Closing the iterator, or
    an error on either side, ends the thread after the item in work, without waiting long for that, and closes
    ``items``.

    Raises:
        Exception: whatever ``work`` or ``items`` raised, in the place of the result.
    """
    if held == 0:
        try:
            for item in items:
                yield work(item)
        finally:
            _close(items)
        return
    results: queue.Queue[Any] = queue.Queue(held)
    stopped = threading.Event()

    def offer(result: Any) -> None:
        while not stopped.is_set():
            try:
                results.put(result, timeout=_LOOK_SECONDS)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                offer(work(item))
                if stopped.is_set():
                    return
            offer(_END)
        except BaseException as error:
            offer(_Failure(error))
        finally:
            _close(items)

    thread = threading.Thread(
        target=run, name=f"{THREAD_NAME}{getattr(work, '__name__', 'stage')}", daemon=True
    )
    thread.start()
    try:
        while True:
            result = _wait(results)
            if result is _END:
                return
            if isinstance(result, _Failure):
                raise result.error
            yield result
    finally:
        stopped.set()
        thread.join(STOP_SECONDS)


def _wait(results: queue.Queue[Any]) -> Any:
    # A wait without an end cannot be interrupted from the keyboard on Windows.
    while True:
        try:
            return results.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            continue


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
