"""Records -> a series of tar shards ``{stem}-000000.tar, {stem}-000001.tar, …`` with their indexes.

A shard is written as ``.tar.part`` and renamed when it is whole; its index follows. Members are contiguous per
record, with fixed times, owners and modes: the same records give the same bytes. A record never crosses shards.
A run that was stopped goes on from its last :class:`Position`, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..base.errors import ShardError
from ..base.files import finish_file, part_of, write_file, writing
from ..records import names
from ..records.record import Record, metadata_digest
from .index import BLOCK_BYTES, Member, RecordEntry, ShardIndex, index_path, scan_records

_END_MARK = bytes(2 * BLOCK_BYTES)


@dataclass(frozen=True)
class Position:
    """How far a series has come: whole shards, and bytes of the one under way."""

    shards: int = 0
    part_bytes: int = 0


def record_bytes(record: Record) -> int:
    """Give the bytes that ``record`` takes in a shard, headers and padding included."""
    return sum(BLOCK_BYTES + -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES for data in record.files().values())


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
        self._entries: list[RecordEntry] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._size = 0
        self._file: BinaryIO | None = None
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
        return Position(self._number, self._size)

    def add(self, record: Record) -> None:
        """Append a record, closing the shard under way first if it would grow over the limit."""
        if self._size and self._size + record_bytes(record) > self._shard_bytes:
            self._finish_shard()
        with writing(self._path):
            if self._file is None:
                self._file = part_of(self._path).open("wb")
            members = []
            for file, data in record.files().items():
                info = tarfile.TarInfo(names.member_name(record.key, file))
                info.size = len(data)
                info.mode = 0o644
                header = info.tobuf(format=tarfile.USTAR_FORMAT)
                self._write(header)
                members.append(Member(file, self._size, len(data)))
                self._write(data + bytes(-len(data) % BLOCK_BYTES))
        self._entries.append(RecordEntry(record.key, metadata_digest(record.metadata), tuple(members)))

    def close(self) -> None:
        """Finish the shard under way, if it holds a record."""
        if self._size:
            self._finish_shard()

    def abandon(self) -> None:
        """Let go of the file under way, leaving it as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self._folder / names.shard_file(self._stem, self._number)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def _finish_shard(self) -> None:
        assert self._file is not None
        with writing(self._path):
            self._write(_END_MARK)
            self._file.flush()
            self._file.close()
        self._file = None
        finish_file(self._path)
        index = ShardIndex(self._path.name, self._size, self._digest.hexdigest(), tuple(self._entries))
        write_file(index_path(self._path), index.to_bytes())
        self.finished.append(self._path)
        self._number += 1
        self._entries, self._digest, self._size = [], hashlib.blake2b(digest_size=16), 0

    def _go_on(self, part_bytes: int) -> None:
        """Open the shard under way and forget what lies behind ``part_bytes``."""
        part = part_of(self._path)
        if self._path.exists() and not part.exists():
            # It was finished after the position was noted: take it up again; the same records follow.
            index_path(self._path).unlink(missing_ok=True)
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
            entries, end = scan_records(self._file, str(part), part_bytes)
        except ShardError:
            end = -1
        if end != part_bytes:
            self.abandon()
            raise ShardError(
                f"{part}: this unfinished shard is damaged; run the same command with --overwrite"
            )
        self._entries = list(entries)
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            self._digest.update(block)
        self._size = part_bytes
