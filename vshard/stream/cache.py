"""Shards of stores, kept on this machine: a folder of whole, checked copies that stays below a limit.

In: a shard in a store, and the size and SHA-256 that its index gives. Out: an open file of this machine with exactly
those bytes. Any number of processes of one user share a folder, be they loader workers, ranks or other trainings:

- A copy is named after its shard's address and digest, so a shard that was replaced is another copy.
- Who reads a copy has it open, which others see (``held.py``): nothing that is read is removed, and a process that
  dies, however it dies, gives back all that it had.
- Who fetches a copy writes a ``.part`` that is locked and has its final size from the start: the sizes of the
  folder's files are all that is spoken for. A ``.part`` nobody holds was left by a crash and is removed.
- What goes and who fetches is decided under one lock of the folder, held for milliseconds.
- The time of a file's last change is when it was last used; what was used longest ago goes first.

Borrowing a copy that is there takes about 20 microseconds; 0.4 GB a second are fetched from a server beside us.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import platformdirs
from filelock import FileLock

from ..base.errors import OptionError, OutputError, ShardError
from ..base.files import PART_SUFFIX, part_of, writing
from ..base.places import Remote
from ..base.stopping import StoppedError
from ..base.stores import Place, open_reading
from .held import CachedShard, PartFile, remove_unused

DEFAULT_LIMIT_BYTES = 50 * 10**9
# Of the disk's free space, the rest is for others.
DEFAULT_LIMIT_PART = 0.8
# How long a reader waits while all of the cache is in use.
WAIT_SECONDS = 300.0
# How often one who waits looks again.
LOOK_SECONDS = 0.05
# How often a shard is fetched that comes with other bytes than it should.
TRIES = 2
_COPIED_BYTES = 1 << 20
_LOCK_FILE = "lock"
_OWN_FILE = re.compile(r"[0-9a-f]{40}\.tar(\.part)?")


class CacheFullError(OutputError):
    """All that the cache may hold is being read or fetched, or is to be read sooner."""


class ShardFacts(Protocol):
    """What is known of a whole shard: a :class:`~vshard.shards.index.ShardIndex`, or less."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def digest(self) -> str:
        """The SHA-256, 64 hex digits."""


class Lender(Protocol):
    """What gives copies: a :class:`ShardCache`, or a :class:`~vshard.stream.prefetch.Prefetch` in front of one."""

    def borrow(self, shard: Remote, index: ShardFacts, *, wait_seconds: float = ...) -> CachedShard: ...

    def forget(self, copy: CachedShard) -> None: ...


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies of shards that holds at most ``limit_bytes``, those being fetched included.

    Holds nothing open, and goes to other processes as it is. Of processes with different limits each keeps its own.
    """

    folder: Path
    limit_bytes: int

    def borrow(self, shard: Remote, index: ShardFacts, *, wait_seconds: float = WAIT_SECONDS) -> CachedShard:
        """Give a copy of ``shard``, to be closed after use; it is fetched if it is not there.

        While another process fetches it, this waits.

        Raises:
            OptionError: the shard is larger than the cache's limit.
            CacheFullError: for ``wait_seconds`` there was no room.
            ShardError: it came twice with other bytes than its index says.
            StoreError, OutputError: it cannot be fetched, or not be written here.
        """
        until = time.monotonic() + wait_seconds
        while True:
            try:
                copy = self._open_or_fetch(shard, index, frozenset(), _never)
            except CacheFullError:
                if time.monotonic() >= until:
                    raise
            else:
                if copy is not None:
                    return copy
                # What others fetch now will fit.
                until = time.monotonic() + wait_seconds
            time.sleep(LOOK_SECONDS)

    def bring(
        self, shard: Remote, index: ShardFacts, *, keep: frozenset[str], stopped: Callable[[], bool]
    ) -> None:
        """Fetch ``shard`` if it is neither here nor being fetched, without removing the copies named in ``keep``.

        Raises:
            StoppedError: ``stopped()`` became true meanwhile; it is asked for each MiB.
            VshardError: as :meth:`borrow`, without waiting for room.
        """
        copy = self._open_or_fetch(shard, index, keep, stopped)
        if copy is not None:
            copy.close()

    def forget(self, copy: CachedShard) -> None:
        """Close and remove a copy that turned out to be damaged; one fetched anew meanwhile stays.

        Raises:
            OutputError: it cannot be removed (on Windows also while another process reads it).
        """
        with copy:
            damaged = os.fstat(copy.fileno())
        with self._deciding(), suppress(FileNotFoundError):
            if os.path.samestat(copy.path.stat(), damaged):
                copy.path.unlink()

    def name_of(self, shard: Remote, index: ShardFacts) -> str:
        """Give the name of the copy of ``shard`` in the folder."""
        # Without an address's query: its signature differs each time. Hashed: an index is not trusted with a path.
        whole = f"{shard}\n{index.digest}\n{index.size_bytes}"
        return hashlib.sha256(whole.encode()).hexdigest()[:40] + ".tar"

    def rank(self, names: list[str]) -> None:
        """Have these copies count as used just now, the first as the last one used."""
        now = time.time_ns()
        for place, name in enumerate(names):
            used = now - place * 1_000_000
            with writing(self.folder / name), suppress(FileNotFoundError):
                os.utime(self.folder / name, ns=(used, used))

    def _open_or_fetch(
        self, shard: Remote, index: ShardFacts, keep: frozenset[str], stopped: Callable[[], bool]
    ) -> CachedShard | None:
        """Give the copy that is there, else fetch it; None while another fetches it."""
        if index.size_bytes > self.limit_bytes:
            raise OptionError(
                f"{shard}: has {index.size_bytes} bytes, the cache {self.folder} may hold {self.limit_bytes}; "
                f"give --cache-limit at least {index.size_bytes}"
            )
        path = self.folder / self.name_of(shard, index)
        copy = self._open(path, index.size_bytes)
        if copy is not None:
            return copy
        part = self._begin(path, index.size_bytes, keep)
        return None if part is None else self._fetch(shard, index, path, part, stopped)

    def _open(self, path: Path, size_bytes: int) -> CachedShard | None:
        with writing(path):
            try:
                copy = CachedShard(path)
            except FileNotFoundError:
                return None
        found = os.fstat(copy.fileno())
        if found.st_nlink == 0:  # removed between opening and locking
            copy.close()
            return None
        if found.st_size != size_bytes:
            self.forget(copy)
            return None
        return copy

    def _begin(self, path: Path, size_bytes: int, keep: frozenset[str]) -> PartFile | None:
        """Make room and the file to fetch into; None where the copy is there by now, or another fetches it."""
        with self._deciding():
            if path.exists() or not remove_unused(part_of(path)):
                return None
            self._make_room(size_bytes, keep)
            return PartFile(part_of(path), size_bytes)

    def _fetch(
        self, shard: Remote, index: ShardFacts, path: Path, part: PartFile, stopped: Callable[[], bool]
    ) -> CachedShard:
        expected = _told(index.size_bytes, index.digest)
        try:
            for _ in range(TRIES):
                found = _copy(shard, index.size_bytes, part, stopped)
                if found == expected:
                    break
            else:
                raise ShardError(
                    f"{shard}: came {TRIES} times with other bytes than its index says ({found}, not {expected}); "
                    f"make the index again: vshard index --force {shard}, or put the right shard there again"
                )
            with writing(path):
                os.fsync(part.fileno())
            with self._deciding():
                part.close()
                part.path.replace(path)
                return CachedShard(path)
        except BaseException:
            with self._deciding():
                if not part.closed:  # else it may be another's by now
                    part.discard()
            raise

    def _make_room(self, size_bytes: int, keep: frozenset[str]) -> None:
        """Remove what nobody reads, fetches or will read sooner, last used first, until so many bytes fit.

        Raises:
            CacheFullError: they do not.
        """
        # What a crash left goes before anything else, and always.
        found = [
            (0 if path.suffix == PART_SUFFIX else facts.st_mtime_ns, facts.st_size, path)
            for path, facts in _own_files(self.folder)
        ]
        held = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if used and held + size_bytes <= self.limit_bytes:
                break
            if path.name not in keep and remove_unused(path):
                held -= size
        if held + size_bytes > self.limit_bytes:
            raise CacheFullError(
                f"{self.folder}: {held} of the {self.limit_bytes} bytes it may hold are in use, a shard of "
                f"{size_bytes} finds no room; give a larger --cache-limit or fewer --num-workers"
            )

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Hold the folder's lock; what the system refuses is an OutputError."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK_FILE, thread_local=False, poll_interval=0.005):
                yield


class OpenShards:
    """The copies that one process reads now: at most ``most`` stay open, the longest unused is given back first.

    Picklable, and to be used after a fork: what a parent has open is left to it. Not for two threads at once.
    """

    def __init__(self, lender: Lender, most: int) -> None:
        self._lender = lender
        self._most = most
        self._open: OrderedDict[tuple[Remote, str], CachedShard] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[Lender, int]]:
        return OpenShards, (self._lender, self._most)

    def get(self, shard: Remote, index: ShardFacts) -> CachedShard:
        """Give the open copy of ``shard``, which stays open until ``most`` others were asked for.

        Raises:
            VshardError: as :meth:`ShardCache.borrow`.
        """
        self._leave_parents()
        key = (shard, index.digest)
        if key not in self._open:
            while len(self._open) >= self._most:
                self._open.popitem(last=False)[1].close()
            try:
                copy = self._lender.borrow(shard, index, wait_seconds=0)
            except CacheFullError:
                # What is open here may be what is in the way.
                self.close()
                copy = self._lender.borrow(shard, index)
            self._open[key] = copy
        self._open.move_to_end(key)
        return self._open[key]

    def forget(self, shard: Remote, index: ShardFacts) -> None:
        """Remove the copy that :meth:`get` gave, for it is damaged: the next ``get`` fetches the shard again."""
        self._leave_parents()
        copy = self._open.pop((shard, index.digest), None)
        if copy is not None:
            self._lender.forget(copy)

    def close(self) -> None:
        """Give back all that is open."""
        while self._open:
            self._open.popitem()[1].close()

    def _leave_parents(self) -> None:
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()


def default_folder() -> Path:
    """Give the user's folder for copies of shards."""
    return platformdirs.user_cache_path("vshard") / "shards"


def cache_for(place: Place, limit_bytes: int | None) -> ShardCache | None:
    """Give the user's cache for what is in a store, with the default limit or another; None for what is here."""
    if not isinstance(place, Remote):
        return None
    folder = default_folder()
    return ShardCache(folder, default_limit_bytes(folder) if limit_bytes is None else limit_bytes)


def default_limit_bytes(folder: Path) -> int:
    """Give 50 GB, or 80 % of what its disk has free (with what the cache there holds) where that is less."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with writing(folder):
        free = shutil.disk_usage(nearest).free
        held = sum(facts.st_size for _, facts in _own_files(folder))
    return min(DEFAULT_LIMIT_BYTES, int((free + held) * DEFAULT_LIMIT_PART))


def _copy(shard: Remote, size_bytes: int, part: PartFile, stopped: Callable[[], bool]) -> str:
    """Fetch ``shard`` into ``part``; give what came. Nothing is fetched that has another size."""
    digest = hashlib.sha256()
    with open_reading(shard) as source, writing(part.path):
        found_bytes = source.seek(0, os.SEEK_END)
        if found_bytes != size_bytes:
            return _told(found_bytes, "")
        source.seek(0)
        part.seek(0)
        while block := source.read(_COPIED_BYTES):
            if stopped():
                raise StoppedError(f"{shard}: not fetched to its end; it is fetched when it is needed")
            digest.update(block)
            rest = memoryview(block)
            while rest:  # a disk that fills takes a part first
                rest = rest[part.write(rest) :]
    return _told(size_bytes, digest.hexdigest())


def _told(size_bytes: int, digest: str) -> str:
    return f"{size_bytes} bytes, sha256 {digest}" if digest else f"{size_bytes} bytes"


def _own_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Give the copies and parts in ``folder``; those that others remove meanwhile are left out."""
    for path in folder.glob("*.tar*"):
        if _OWN_FILE.fullmatch(path.name):
            with suppress(FileNotFoundError):
                yield path, path.stat()


def _never() -> bool:
    return False
