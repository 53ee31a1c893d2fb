"""The records in a shard, read in one pass or picked by an index; plain, compressed, local or in a store.

What is read is what is there: an index only tells where to look, and names and sizes in the tar must agree with it.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import zstandard

from ..base.errors import ShardError, VshardError
from ..base.pipes import Pipe, open_pipe
from ..base.stores import Place, open_reading
from ..records import names
from .tar import Readable, TarMember, read_members

# Far above any real record (a long one of large pictures has some hundred MB): bounds memory.
MAX_RECORD_BYTES, MAX_RECORD_FILES = 1 << 30, 10_000
# A shard holds pictures, which hardly shrink; beyond this it is a bomb.
MAX_ZSTD_RATIO, ZSTD_RATIO_FROM_BYTES = 200, 1 << 26
_ZSTD_WINDOW_BYTES = 1 << 27
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_HASHED_BYTES = 1 << 20
# A frame to be skipped, longer than any block; as a block or a frame's beginning its bytes are not valid.
_FENCE = struct.pack("<II", 0x184D2A50, 1 << 18) + b"\xff" * (1 << 18)


class StoredFile(NamedTuple):
    """One file of a record: its bytes start at ``offset`` of the tar, its headers at ``start``."""

    file: str
    start: int
    offset: int
    data: bytes


@dataclass(frozen=True, repr=False)
class StoredRecord:
    """A record as it lies in a shard, in the shard's order and not yet checked.

    It fills the bytes ``start`` to ``stop`` of the tar.
    """

    key: str
    files: tuple[StoredFile, ...]
    start: int
    stop: int

    @property
    def contents(self) -> dict[str, bytes]:
        """Its bytes by file."""
        return {stored.file: stored.data for stored in self.files}

    def __repr__(self) -> str:
        return f"StoredRecord({self.key}: {len(self.files)} files at {self.start})"


class _Stored:
    """A file's bytes as they lie there, counted and hashed while they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        self.size_bytes += len(data)
        return data


class _Fenced:
    """A compressed file with a fence behind it: frames that are whole skip it, one that is cut off trips over it.

    Without it a file whose last checksum is cut off reads like a whole one.
    """

    def __init__(self, stored: _Stored) -> None:
        self._stored = stored
        self._fence = io.BytesIO(_FENCE)

    def read(self, size: int, /) -> bytes:
        return self._stored.read(size) or self._fence.read(size)


class ShardFile:
    """An open shard, read forwards: its tar's bytes, and at the end the size and digest of the file itself."""

    def __init__(self, file: BinaryIO, name: str, *, compressed: bool) -> None:
        self._name = name
        self._stored = _Stored(file)
        self._inflating: Readable | None = None
        self._position = 0
        if compressed:
            unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            fenced = cast(BinaryIO, _Fenced(self._stored))
            self._inflating = unpacker.stream_reader(fenced, read_across_frames=True)

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes of the tar.

        Raises:
            ShardError: what is compressed is damaged, or grows out of all proportion.
        """
        source = self._inflating
        data = self._stored.read(size) if source is None else self._inflate(source, size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        """Give how many bytes of the tar were read."""
        return self._position

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the file were read."""
        return self._stored.size_bytes

    def finish(self) -> tuple[int, str]:
        """Read what is left; give the file's size in bytes and the SHA-256 of the whole file in hex digits."""
        while self._stored.read(_HASHED_BYTES):
            pass
        return self._stored.size_bytes, self._stored.hash.hexdigest()

    def _inflate(self, source: Readable, size: int) -> bytes:
        try:
            data = source.read(size)
        except zstandard.ZstdError as error:
            raise ShardError(f"{self._name}: its compression is damaged; fetch or pack it again") from error
        most = max(self._stored.size_bytes * MAX_ZSTD_RATIO, ZSTD_RATIO_FROM_BYTES)
        if self._position + len(data) > most:
            raise ShardError(
                f"{self._name}: unpacks to more than {MAX_ZSTD_RATIO} times its size; it is no shard"
            )
        return data


@contextmanager
def open_shard(shard: Place | Pipe) -> Iterator[ShardFile]:
    """Open a shard, or what a command writes, to read it forwards once.

    Raises:
        ShardError: it cannot be opened or read.
        StoreError: its store cannot be reached, or the command fails.
    """
    if isinstance(shard, Pipe):
        with open_pipe(shard) as piped, io.BufferedReader(cast(io.RawIOBase, piped)) as file:
            yield shard_of(file, str(shard))
        return
    try:
        with open_reading(shard) as opened:
            yield ShardFile(opened, str(shard), compressed=is_compressed(shard.name))
    except OSError as error:
        if isinstance(error, VshardError):
            raise
        raise ShardError(f"{shard}: cannot be read ({error.strerror}); check the file") from error


def shard_of(file: io.BufferedReader[Any], name: str) -> ShardFile:
    """Give the shard that comes out of ``file``, compressed or not as its first bytes say."""
    compressed = file.peek(len(_ZSTD_MAGIC)).startswith(_ZSTD_MAGIC)
    return ShardFile(cast(BinaryIO, file), name, compressed=compressed)


def is_compressed(name: str) -> bool:
    """Tell whether a shard of this name is a compressed one."""
    return name.endswith(names.COMPRESSED_SUFFIX)


def read_records(
    file: ShardFile | BinaryIO,
    where: str,
    *,
    stop: int | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[StoredRecord]:
    """Read the records of a tar in order; one whose files lie apart comes in pieces.

    Args:
        file: at its beginning.
        where: what to call it in an error.
        stop: end at this byte in place of an end mark.
        on_damage: as in :func:`read_members`; members that are no record's files, and the first GiB of a record
            that has more, are told to it and left out; a record that comes twice on end is given twice.

    Raises:
        ShardError: a member is no file of a record, a record has more than 1 GiB, or as in :func:`read_members`; what
            is compressed is damaged.
    """

    def tell(problem: str, advice: str) -> None:
        if on_damage is None:
            raise ShardError(f"{where}: {problem}; {advice}")
        on_damage(problem)

    gathered: list[TarMember] = []
    gathered_key = ""
    gathered_names: set[str] = set()
    gathered_bytes = 0
    try:
        for member in read_members(file, where, stop=stop, on_damage=on_damage):
            parts = names.split_member(member.name)
            if parts is None:
                tell(
                    f"member {member.name[:100]!a} is no record's file (wanted KEY.json, KEY.0000_C.png, "
                    "KEY.0000_M.png)",
                    "pack the records again",
                )
                continue
            again = on_damage is not None and member.name in gathered_names
            if gathered and (parts[0] != gathered_key or again):
                yield gather(gathered_key, gathered)
                gathered, gathered_names, gathered_bytes = [], set(), 0
            gathered_key = parts[0]
            gathered_names.add(member.name)
            gathered.append(member)
            gathered_bytes += len(member.data)
            if gathered_bytes > MAX_RECORD_BYTES or len(gathered) > MAX_RECORD_FILES:
                tell(
                    f"record {gathered_key} has more than {MAX_RECORD_BYTES} bytes or {MAX_RECORD_FILES} files",
                    "it is no record",
                )
                gathered, gathered_names, gathered_bytes = [], set(), 0
    except ShardError:
        # What is compressed is damaged: what came before may be whole.
        if on_damage is not None and gathered:
            yield gather(gathered_key, gathered)
        raise
    if gathered:
        yield gather(gathered_key, gathered)


def gather(key: str, members: list[TarMember]) -> StoredRecord:
    """Make a record of the members that lie together."""
    stored = tuple(
        StoredFile(file, member.start, member.offset, member.data)
        for member in members
        for _, file in [names.split_member(member.name) or ("", "")]
    )
    return StoredRecord(key, stored, members[0].start, members[-1].stop)
