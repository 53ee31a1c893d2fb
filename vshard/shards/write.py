"""Records -> a series of tar shards ``{stem}-000000.tar, {stem}-000001.tar, …`` with their indexes.

A shard is written as ``.tar.part`` and renamed when it is whole; its index follows. Members are contiguous per
record, with fixed times, owners and modes: the same records give the same bytes. A record never crosses shards.
A run that was stopped goes on from its last :class:`Position`, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from ..base.ahead import THREAD_NAME
from ..base.errors import ShardError
from ..base.files import finish_file, part_of, writing
from ..base.stores import remove
from ..records import names
from ..records.record import Record, metadata_digest
from .contents import is_compressed
from .index import Member, RecordEntry, ShardIndex, index_place, scan_part, write_index
from .tar import BLOCK_BYTES, END_MARK, header_bytes, padded

# One number or more give the same bytes, none gives others.
_ZSTD_THREADS = 2


@dataclass(frozen=True)
class Position:
    """How far a series has come: whole shards, and bytes of the one under way."""

    shards: int = 0
    part_bytes: int = 0


def record_bytes(record: Record) -> int:
    """Give the bytes that ``record`` takes in a shard, headers and padding included."""
    return sum(member_bytes(len(data)) for data in record.files().values())


def member_bytes(size: int) -> int:
    """Give the bytes that a file of ``size`` bytes takes in a shard."""
    return BLOCK_BYTES + padded(size)


class ShardStream:
    """One shard on its way into an open file: records go in, its index comes out."""

    def __init__(self, file: BinaryIO, shard: str) -> None:
        """Begin an empty shard; ``shard`` is its file's name and tells whether it is compressed."""
        self._sink = _HashingSink(file)
        self._shard = shard
        self._entries: list[RecordEntry] = []
        self.tar_bytes = 0
        self._compressing = None
        if is_compressed(shard):
            packer = zstandard.ZstdCompressor(write_checksum=True, threads=_ZSTD_THREADS)
            self._compressing = packer.stream_writer(cast(BinaryIO, self._sink), closefd=False)

    def take_up(self, entries: tuple[RecordEntry, ...], tar: BinaryIO) -> None:
        """Go on behind ``entries``, whose bytes are all that ``tar`` holds from its beginning."""
        self._entries = list(entries)
        self._sink.take_up(tar)
        self.tar_bytes = self._sink.size_bytes

    def add(self, record: Record) -> None:
        """Append a record."""
        self.add_files(record.key, record.files())

    def add_files(self, key: str, contents: Mapping[str, bytes]) -> None:
        """Append a record's files as they are, in this order."""
        members = []
        parts = []
        for file, data in contents.items():
            members.append(Member(file, self.tar_bytes + BLOCK_BYTES, len(data)))
            parts += [
                header_bytes(names.member_name(key, file), len(data)),
                data,
                bytes(padded(len(data)) - len(data)),
            ]
            self.tar_bytes += member_bytes(len(data))
        self._write(parts)
        metadata = contents.get(names.METADATA_FILE)
        digest = "" if metadata is None else metadata_digest(metadata)
        self._entries.append(RecordEntry(key, digest, tuple(members)))

    def end(self) -> ShardIndex:
        """Write the end mark; give the index of what the file now holds."""
        self._write([END_MARK])
        self.tar_bytes += len(END_MARK)
        if self._compressing is not None:
            self._compressing.close()  # type: ignore[no-untyped-call]
        return ShardIndex(
            shard=self._shard,
            size_bytes=self._sink.size_bytes,
            digest=self._sink.hexdigest(),
            tar_bytes=self.tar_bytes,
            records=tuple(self._entries),
        )

    def _write(self, parts: list[bytes]) -> None:
        if self._compressing is None:
            self._sink.write_parts(parts)
        else:
            self._compressing.write(b"".join(parts))


class _HashingSink:
    """A file that counts and hashes what goes into it; hashing is a thread's, beside the writing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix=f"{THREAD_NAME}hash")
        self._waiting: deque[Future[None]] = deque()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.write_parts([data])
        return len(data)

    def write_parts(self, parts: list[bytes]) -> None:
        """Append ``parts``; at most three calls' worth waits to be hashed."""
        while len(self._waiting) > 2:
            self._waiting.popleft().result()
        self._waiting.append(self._hashing.submit(self._update, parts))
        self._file.writelines(parts)
        self.size_bytes += sum(map(len, parts))

    def take_up(self, file: BinaryIO) -> None:
        """Count and hash what ``file`` holds from where it is, without writing it."""
        while block := file.read(1 << 20):
            self._hash.update(block)
            self.size_bytes += len(block)

    def hexdigest(self) -> str:
        """Give the SHA-256 of everything; nothing can be written after it."""
        self._hashing.shutdown()
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()

    def _update(self, parts: list[bytes]) -> None:
        for part in parts:
            self._hash.update(part)


class ShardWriter:
    """An open series of shards; ``add`` records, ``close`` at the end.

    Not closing loses nothing: the shard under way stays a ``.tar.part`` that ``position`` points into.
    """

    def __init__(self, folder: Path, stem: str, shard_bytes: int, start: Position) -> None:
        """Go on at ``start`` (``Position()`` for a new series).

        Raises:
            ShardError: what ``start`` points into is not there any more.
            OutputError: the shard cannot be written.
        """
        self._folder = folder
        self._stem = stem
        self._shard_bytes = shard_bytes
        self._number = start.shards
        self._file: BinaryIO | None = None
        self._stream: ShardStream | None = None
        self.finished: list[Path] = []
        with writing(self._path):
            self._go_on(start.part_bytes)

    @property
    def position(self) -> Position:
        """Where to go on after a stop; what it speaks of is on the disk."""
        if self._file is not None:
            with writing(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
        return Position(self._number, self._stream.tar_bytes if self._stream is not None else 0)

    def add(self, record: Record) -> None:
        """Append a record, closing the shard under way first if it would grow over the limit."""
        if self._stream is not None and self._stream.tar_bytes + record_bytes(record) > self._shard_bytes:
            self._finish_shard(self._stream)
        with writing(self._path):
            if self._stream is None:
                self._file = part_of(self._path).open("wb")
                self._stream = ShardStream(self._file, self._path.name)
            self._stream.add(record)

    def close(self) -> None:
        """Finish the shard under way, if it holds a record."""
        if self._stream is not None:
            self._finish_shard(self._stream)

    def abandon(self) -> None:
        """Let go of the file under way, leaving it as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self._folder / names.shard_file(self._stem, self._number)

    def _finish_shard(self, stream: ShardStream) -> None:
        assert self._file is not None
        with writing(self._path):
            index = stream.end()
            self._file.close()
        self._file = self._stream = None
        finish_file(self._path)
        write_index(self._path, index)
        self.finished.append(self._path)
        self._number += 1

    def _go_on(self, part_bytes: int) -> None:
        """Open the shard under way and forget what lies behind ``part_bytes``."""
        part = part_of(self._path)
        if self._path.exists() and not part.exists():
            # It was finished after the position was noted: take it up again; the same records follow.
            remove(index_place(self._path))
            self._path.rename(part)
        if part_bytes == 0:
            part.unlink(missing_ok=True)
            return
        if not part.exists() or part.stat().st_size < part_bytes:
            raise ShardError(
                f"{part}: the unfinished shard that this run would go on with is gone or cut; "
                "run the same command with --overwrite"
            )
        self._file = part.open("r+b")
        self._file.truncate(part_bytes)
        try:
            entries = scan_part(self._file, str(part), part_bytes)
        except ShardError as error:
            self.abandon()
            raise ShardError(
                f"{part}: this unfinished shard is damaged; run the same command with --overwrite"
            ) from error
        self._file.seek(0)
        self._stream = ShardStream(self._file, self._path.name)
        self._stream.take_up(entries, self._file)
