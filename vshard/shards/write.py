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
from ..records.record import Record
from .contents import is_compressed
from .image import Images, RecordImage, member_bytes
from .index import Member, RecordEntry, ShardIndex, index_place, scan_part, write_index
from .tar import END_MARK

# One number or more give the same bytes, none gives others.
_ZSTD_THREADS = 2
# Pieces that wait to be hashed.
_WAITING_MOST = 2


@dataclass(frozen=True)
class Position:
    """How far a series has come: whole shards, and bytes of the one under way."""

    shards: int = 0
    part_bytes: int = 0


def record_bytes(record: Record) -> int:
    """Give the bytes that ``record`` takes in a shard, headers and padding included."""
    return sum(member_bytes(len(data)) for data in record.files().values())


class ShardStream:
    """One shard on its way into an open file: records go in, its index comes out."""

    def __init__(self, file: BinaryIO, shard: str) -> None:
        """Begin an empty shard; ``shard`` is its file's name and tells whether it is compressed."""
        self._images = Images()
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
        self.add_image(self._images.make(key, contents.items()))

    def add_image(self, image: RecordImage) -> None:
        """Append a record; its image is released when it has been hashed."""
        members = tuple(
            Member(member.file, self.tar_bytes + member.offset, member.length) for member in image.members
        )
        self._entries.append(RecordEntry(image.key, image.digest, members))
        self.tar_bytes += len(image.data)
        if self._compressing is None:
            self._sink.write_image(image)
        else:
            self._compressing.write(image.data)
            image.release()

    def end(self) -> ShardIndex:
        """Write the end mark; give the index of what the file now holds."""
        self.tar_bytes += len(END_MARK)
        if self._compressing is None:
            self._sink.write(END_MARK)
        else:
            self._compressing.write(END_MARK)
            self._compressing.close()  # type: ignore[no-untyped-call]
        return ShardIndex(
            shard=self._shard,
            size_bytes=self._sink.size_bytes,
            digest=self._sink.hexdigest(),
            tar_bytes=self.tar_bytes,
            records=tuple(self._entries),
        )


class _HashingSink:
    """A file that counts and hashes what goes into it; hashing is a thread's, beside the writing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix=f"{THREAD_NAME}hash")
        self._waiting: deque[tuple[Future[None], RecordImage | None]] = deque()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._append(data, None)
        return len(data)

    def write_image(self, image: RecordImage) -> None:
        """Append an image; it is released once it is written and hashed."""
        self._append(image.data, image)

    def take_up(self, file: BinaryIO) -> None:
        """Count and hash what ``file`` holds from where it is, without writing it."""
        while block := file.read(1 << 20):
            self._hash.update(block)
            self.size_bytes += len(block)

    def hexdigest(self) -> str:
        """Give the SHA-256 of everything; nothing can be written after it."""
        self._wait(0)
        self._hashing.shutdown()
        return self._hash.hexdigest()

    def _append(self, data: bytes | memoryview, image: RecordImage | None) -> None:
        self._wait(_WAITING_MOST)
        self._waiting.append((self._hashing.submit(self._hash.update, data), image))
        self._file.write(data)
        self.size_bytes += len(data)

    def _wait(self, held: int) -> None:
        """Wait until no more than ``held`` pieces are to be hashed."""
        while len(self._waiting) > held:
            hashed, image = self._waiting.popleft()
            hashed.result()
            if image is not None:
                image.release()


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
