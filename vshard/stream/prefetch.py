"""Shards fetched ahead of their use: threads bring the next ones of a known order into the cache.

They hold nothing borrowed, so nobody waits for room that is only kept for later: who needs a shard now may remove
what was fetched for later. The threads themselves remove nothing that comes before, and keep the order of the copies'
last use as the order of their need, so that what is needed last goes first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..base.ahead import STOP_SECONDS, THREAD_NAME
from ..base.places import Remote
from ..base.stopping import StoppedError
from .cache import WAIT_SECONDS, CacheFullError, ShardCache, ShardFacts
from .held import CachedShard

# How often a thread that found no room looks whether others left some.
_LOOK_SECONDS = 0.2


class Prefetch:
    """Keeps the next ``ahead`` shards of an order in a cache, fetching ``jobs`` of them at a time.

    ``shards``: the order, a shard as often as it comes; a picklable sequence where this goes to other processes.
    Threads start in the process that first asks for something, so it may be made before a fork or sent to a worker.
    """

    def __init__(
        self, cache: ShardCache, shards: Sequence[tuple[Remote, ShardFacts]], ahead: int, jobs: int
    ) -> None:
        self._cache = cache
        self._shards = shards
        self._ahead = ahead
        self._jobs = jobs
        self._done = 0
        self._crew: _Crew | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_crew": None}

    def advance(self, done: int) -> None:
        """Say that the first ``done`` shards of the order are not needed any more, and go on from there.

        The first call, with 0, starts the threads.
        """
        self._done = max(done, self._done)
        self._running().advance(self._done)

    def borrow(self, shard: Remote, index: ShardFacts, *, wait_seconds: float = WAIT_SECONDS) -> CachedShard:
        """Give a copy of ``shard``, fetched by now or not; see :meth:`ShardCache.borrow`.

        Raises:
            Exception: also what a thread met when it fetched this shard, once; the next call tries again.
        """
        crew = self._running()
        error = crew.take_error(self._cache.name_of(shard, index))
        if error is not None:
            raise error
        return self._cache.borrow(shard, index, wait_seconds=wait_seconds)

    def forget(self, copy: CachedShard) -> None:
        """Remove a damaged copy; see :meth:`ShardCache.forget`."""
        self._cache.forget(copy)

    def close(self) -> None:
        """End the threads, without waiting long for one in the middle of a request."""
        if self._crew is not None and self._crew.process == os.getpid():
            self._crew.close()

    def _running(self) -> _Crew:
        # Threads do not live on in a forked child, and locks may be held there for ever.
        if self._crew is None or self._crew.process != os.getpid():
            self._crew = _Crew(self._cache, self._shards, self._ahead, self._jobs, self._done)
        return self._crew


class _Crew:
    """The threads of one process; ``[done, done + ahead)`` are the positions they work on."""

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[tuple[Remote, ShardFacts]],
        ahead: int,
        jobs: int,
        done: int,
    ) -> None:
        self.process = os.getpid()
        self._cache = cache
        self._shards = shards
        self._ahead = ahead
        self._done = done
        self._begun: set[int] = set()
        self._errors: dict[str, Exception] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"{THREAD_NAME}shards", daemon=True) for _ in range(jobs)
        ]
        for thread in self._threads:
            thread.start()

    def advance(self, done: int) -> None:
        with self._changed:
            self._done = done
            self._begun = {position for position in self._begun if position >= done}
            wanted = set(self._wanted())
            self._errors = {name: error for name, error in self._errors.items() if name in wanted}
            self._changed.notify_all()
        self._rank()

    def take_error(self, name: str) -> Exception | None:
        with self._changed:
            return self._errors.pop(name, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))

    def _work(self) -> None:
        while (position := self._take()) is not None:
            shard, index = self._shards[position]
            try:
                with self._changed:
                    keep = frozenset(self._wanted())
                self._cache.bring(shard, index, keep=keep, stopped=lambda: self._closed)
                self._rank()
            except CacheFullError:
                with self._changed:
                    self._begun.discard(position)
                    self._changed.wait(_LOOK_SECONDS)
            except StoppedError:
                return
            except Exception as error:
                with self._changed:
                    self._errors[self._cache.name_of(shard, index)] = error

    def _take(self) -> int | None:
        """Wait for a position that nobody works on; None at the end."""
        with self._changed:
            while not self._closed:
                for position in self._window():
                    if position not in self._begun:
                        self._begun.add(position)
                        return position
                self._changed.wait()
        return None

    def _rank(self) -> None:
        with self._changed:
            names = self._wanted()
        self._cache.rank(names)

    def _window(self) -> range:
        return range(self._done, min(self._done + self._ahead, len(self._shards)))

    def _wanted(self) -> list[str]:
        """Give the names of the copies of the window, each once, in order."""
        return list(
            dict.fromkeys(self._cache.name_of(*self._shards[position]) for position in self._window())
        )
