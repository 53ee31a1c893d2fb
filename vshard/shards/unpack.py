"""Shards -> record folders, byte for byte, whoever made the shard.

What is unpacked is what is in the tar: an index is not believed. Every record appears whole; one that is there already
must be the same, so a rerun of a stopped command makes what is missing.
"""

from __future__ import annotations

import shlex
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..base.ahead import THREAD_NAME
from ..base.errors import DatasetError, RecordError, ShardError
from ..base.files import make_own_folder
from ..base.jobs import Meter, run_jobs
from ..base.locks import only_one
from ..base.pipes import Pipe
from ..base.report import Report
from ..base.stores import Place, Remote, facts, make_place, open_reading
from ..records import names
from ..records.record import Record, from_files, write_record
from .contents import StoredRecord, is_compressed, open_shard, read_records
from .index import index_possible, read_entry, read_index, whole_records

# Records of one shard that are written at a time: most of it is waiting for the disk to have them (benchmarks/LOG.md).
WRITERS = 4
# Records read and not yet written; a larger one waits until it is alone.
WAITING_BYTES = 1 << 26


@dataclass(frozen=True)
class UnpackOptions:
    """What ``vshard unpack`` is asked: ``only`` is a pattern of record names (``*``, ``?``, ``[…]``)."""

    shards: tuple[Place | Pipe, ...]
    output: Place
    only: str | None = None
    jobs: int = 1


def unpack(options: UnpackOptions, report: Report) -> int:
    """Write records of shards as folders ``output/{key}/``; give how many there were.

    Raises:
        ShardError: a shard is damaged or not in our layout; records before the damage are kept.
        RecordError: a folder of a record's name is there with other contents.
        DatasetError: no record is named as ``only`` says.
        OutputError: it cannot be written.
        StoreError: a store cannot be reached, or not be written to.
    """
    sizes = [_size_bytes(shard) for shard in options.shards]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    report.start("unpacking", total, "bytes")
    wanted = _Wanted(options.only)
    with _Output(options.output) as output:
        counts = run_jobs(
            lambda one, meter: _unpack_shard(*one, wanted, output, meter),
            list(zip(options.shards, sizes, strict=True)),
            options.jobs,
            report,
        )
    report.finish()
    if options.only is not None and not sum(counts):
        begun = f"for all names that begin so write '{options.only}*'"
        raise DatasetError(
            f"--only {options.only}: no record of these shards is named so; "
            f"{begun if wanted.begun else 'see them with: vshard ls'}"
        )
    return sum(counts)


def read_stored(stored: StoredRecord, where: str) -> Record:
    """Make a record of what a shard holds.

    Raises:
        ShardError: it is damaged.
    """
    try:
        return from_files(stored.key, stored.contents, f"{where}:{stored.key}")
    except RecordError as error:
        raise ShardError(str(error)) from error


class _Wanted:
    """Which records are wanted: those named as a pattern says, None for all.

    ``begun``: a record was passed over whose name begins as the pattern says, and goes on.
    """

    def __init__(self, only: str | None) -> None:
        self.only = only
        self.begun = False

    def takes(self, key: str) -> bool:
        """Tell whether a record is wanted."""
        if self.only is None or fnmatchcase(key, self.only):
            return True
        self.begun = self.begun or fnmatchcase(key, f"{self.only}*")
        return False


def _unpack_shard(
    shard: Place | Pipe, size_bytes: int | None, wanted: _Wanted, output: _Output, meter: Meter
) -> int:
    """Write a shard's records; give how many were wanted.

    Raises:
        ShardError: it is damaged; the line tells how to see and mend it.
    """
    try:
        count, read_bytes = _write_records(shard, wanted, output, meter)
    except ShardError as error:
        raise ShardError(f"{error}; {_verify_advice(shard)}") from error
    if size_bytes is not None:
        meter.add(size_bytes - read_bytes)
    return count


def _verify_advice(shard: Place | Pipe) -> str:
    named = shlex.quote(str(shard))
    if isinstance(shard, Pipe):
        return f"see what is wrong with: vshard verify --allow-pipe {named}"
    if isinstance(shard, Remote) and shard.is_web:
        return f"see what is wrong with: vshard verify {named}"
    return f"see what is wrong with: vshard verify {named}, mend it with: vshard verify --repair {named}"


def _write_records(shard: Place | Pipe, wanted: _Wanted, output: _Output, meter: Meter) -> tuple[int, int]:
    """Write a shard's records, several at a time: each waits for the disk, or its store.

    Returns:
        how many there were, and how many of the shard's bytes the meter was told of.
    """
    count = told_bytes = 0
    writing: deque[tuple[Future[None], int]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix=f"{THREAD_NAME}write") as pool:
        for stored, read_bytes in _read_wanted(shard, wanted):
            size = stored.stop - stored.start
            while writing and sum(held for _, held in writing) + size > WAITING_BYTES:
                writing.popleft()[0].result()
            record = read_stored(stored, str(shard))
            writing.append((pool.submit(output.write, record), size))
            count += 1
            meter.add(read_bytes - told_bytes)
            told_bytes = read_bytes
        for written, _ in writing:
            written.result()
    return count, told_bytes


def _read_wanted(shard: Place | Pipe, wanted: _Wanted) -> Iterator[tuple[StoredRecord, int]]:
    """Give the wanted records of a shard, each with how many of the shard's bytes were read by then."""
    if wanted.only is not None and not isinstance(shard, Pipe) and not is_compressed(shard.name):
        index = read_index(shard)
        if index is not None and index_possible(index):
            with open_reading(shard) as file:
                for entry in index.records:
                    if wanted.takes(entry.key):
                        yield read_entry(file, entry, str(shard)), entry.members[-1].offset
            return
    with open_shard(shard) as opened:
        for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
            if wanted.takes(entry.key):
                yield stored, opened.stored_bytes
        size_bytes, digest = opened.finish()
    index = None if isinstance(shard, Pipe) else read_index(shard)
    if index is not None and index.size_bytes == size_bytes and index.digest != digest:
        raise ShardError(
            f"{shard}: its bytes are not those that its index was made of, though every picture is whole"
        )


class _Output:
    """The folder that records go to, made with the first one, and kept to this process if it is local.

    Where two shards hold a record of one name, the second waits and is compared with the first.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._held = ExitStack()
        self._made = False

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def write(self, record: Record) -> None:
        """Write a record; see :func:`write_record`."""
        with self._lock:
            if not self._made:
                self._make()
            key_lock = self._locks.setdefault(record.key.lower(), threading.Lock())
        with key_lock:
            write_record(self._place, record)

    def _make(self) -> None:
        make_place(self._place)
        if isinstance(self._place, Path):
            state = make_own_folder(self._place / names.STATE_FOLDER)
            self._held.enter_context(only_one(state / "unpack.lock", "unpacking into this folder"))
        self._made = True


def _size_bytes(shard: Place | Pipe) -> int | None:
    """Give the bytes of a shard, None of a pipe.

    Raises:
        ShardError: it is not there.
    """
    if isinstance(shard, Pipe):
        return None
    entry = facts(shard)
    if entry is None:
        raise ShardError(f"{shard}: cannot be read (no such file); check the path")
    return entry.size_bytes
