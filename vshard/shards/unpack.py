"""Shards -> record folders, byte for byte, whoever made the shard.

What is unpacked is what is in the tar: an index is not believed. Every record appears whole; one that is there already
must be the same, so a rerun of a stopped command makes what is missing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
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
from ..base.stores import Place, facts, make_place, open_reading
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
    total = total_bytes(options.shards)
    report.start("unpacking", total, "bytes")
    with _Output(options.output) as output:
        counts = run_jobs(
            lambda shard, meter: _unpack_shard(shard, options.only, output, meter),
            options.shards,
            options.jobs,
            report,
        )
    report.finish()
    if options.only is not None and not sum(counts):
        raise DatasetError(
            f"--only {options.only}: no record of these shards is named so; see them with: vshard ls"
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


def _unpack_shard(shard: Place | Pipe, only: str | None, output: _Output, meter: Meter) -> int:
    """Write a shard's records, several at a time: each waits for the disk, or its store."""
    count = told_bytes = 0
    writing: deque[tuple[Future[None], int]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix=f"{THREAD_NAME}write") as pool:
        for stored, read_bytes in _wanted(shard, only):
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
    return count


def _wanted(shard: Place | Pipe, only: str | None) -> Iterator[tuple[StoredRecord, int]]:
    """Give the wanted records of a shard, each with how many of the shard's bytes were read by then."""
    if only is not None and not isinstance(shard, Pipe) and not is_compressed(shard.name):
        index = read_index(shard)
        if index is not None and index_possible(index):
            with open_reading(shard) as file:
                for entry in index.records:
                    if fnmatchcase(entry.key, only):
                        yield read_entry(file, entry, str(shard)), entry.members[-1].offset
            return
    with open_shard(shard) as opened:
        for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
            if only is None or fnmatchcase(entry.key, only):
                yield stored, opened.stored_bytes
        size_bytes, digest = opened.finish()
    index = None if isinstance(shard, Pipe) else read_index(shard)
    if index is not None and index.size_bytes == size_bytes and index.digest != digest:
        raise ShardError(
            f"{shard}: its bytes are not those that its index was made of, though every picture is whole; see what "
            f"is wrong with: vshard verify {shard}"
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


def total_bytes(shards: Sequence[Place | Pipe]) -> int | None:
    """Give the bytes of all shards together, None where one is a pipe.

    Raises:
        ShardError: one is not there.
    """
    total = 0
    for shard in shards:
        if isinstance(shard, Pipe):
            return None
        entry = facts(shard)
        if entry is None:
            raise ShardError(f"{shard}: cannot be read (no such file); check the path")
        total += entry.size_bytes
    return total
