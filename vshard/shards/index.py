"""What lies where in a shard.

Beside ``name.tar`` stands ``name.tar.idx``: JSON with, for each record, its key, its metadata's digest and the
(offset, length) of every file, and the shard's own size and digest. Readers use it to fetch just the bytes they
need. It is rebuilt by scanning the tar when it is absent or speaks of another size.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO, cast

from ..base.errors import ShardError
from ..records import names
from ..records.record import MAX_FILE_BYTES, metadata_digest

SCHEMA = "vshard.index/1"
MAX_INDEX_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 20
BLOCK_BYTES = 512


@dataclass(frozen=True)
class Member:
    """One file of a record inside a shard: where its bytes start and how many there are."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class RecordEntry:
    """One record of a shard; ``members`` in the shard's order."""

    key: str
    metadata_digest: str
    members: tuple[Member, ...]

    @property
    def frame_count(self) -> int:
        """How many colour frames the record holds."""
        return sum(member.file.endswith("_C.png") for member in self.members)


@dataclass(frozen=True, repr=False)
class ShardIndex:
    """The index of one shard; ``digest`` is 32 hex digits of BLAKE2 over the whole file."""

    shard: str
    size_bytes: int
    digest: str
    records: tuple[RecordEntry, ...]

    def to_bytes(self) -> bytes:
        """Write the index as JSON, one way only, a line a record."""
        head = {"schema": SCHEMA, "shard": self.shard, "size_bytes": self.size_bytes, "digest": self.digest}
        lines = [
            json.dumps([r.key, r.metadata_digest, [[m.file, m.offset, m.length] for m in r.members]])
            for r in self.records
        ]
        return (json.dumps(head)[:-1] + ', "records": [\n' + ",\n".join(lines) + "\n]}\n").encode()

    def __repr__(self) -> str:
        return f"ShardIndex({self.shard}: {len(self.records)} records, {self.size_bytes} bytes)"


def index_path(shard: Path) -> Path:
    """Give where the index of ``shard`` stands."""
    return shard.with_name(shard.name + names.INDEX_SUFFIX)


def load_index(shard: Path) -> ShardIndex:
    """Give the index of ``shard``: the file beside it if it fits, else by scanning the tar.

    Raises:
        ShardError: the tar is not there, cut off, damaged or not in our layout.
    """
    try:
        size = shard.stat().st_size
    except OSError as error:
        raise ShardError(f"{shard}: cannot be read ({error.strerror}); check the path") from error
    index = _read_index(index_path(shard))
    if index is not None and index.size_bytes == size and _members_inside(index):
        return index
    return scan_shard(shard)


def scan_shard(shard: Path) -> ShardIndex:
    """Build the index of ``shard`` from the tar itself; reads the whole file for its digest.

    Raises:
        ShardError: as :func:`load_index`.
    """
    try:
        with shard.open("rb") as file:
            records, end = scan_records(file, str(shard))
            file.seek(end)
            if file.read(2 * BLOCK_BYTES) != bytes(2 * BLOCK_BYTES):
                raise ShardError(
                    f"{shard}: is cut off (no end mark after {end} bytes); fetch or pack it again"
                )
            while block := file.read(1 << 20):
                if block.strip(b"\0"):
                    raise ShardError(
                        f"{shard}: has data behind its end mark (two tars in one?); pack it again"
                    )
            file.seek(0)
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 20):
                digest.update(block)
            size = file.tell()
    except OSError as error:
        raise ShardError(f"{shard}: cannot be read ({error.strerror}); check the file") from error
    return ShardIndex(shard.name, size, digest.hexdigest(), records)


def scan_records(file: BinaryIO, name: str, stop: int | None = None) -> tuple[tuple[RecordEntry, ...], int]:
    """Walk the members of a tar up to its end or to byte ``stop``; give the records and where they end.

    Raises:
        ShardError: a member is no plain file of a record, is too large, or a record is not contiguous.
    """
    records: list[RecordEntry] = []
    seen: set[str] = set()
    key, members, digest = "", list[Member](), ""
    end = 0

    def close_record() -> None:
        if key:
            records.append(RecordEntry(key, digest, tuple(members)))
            if not _is_whole(records[-1]):
                raise ShardError(
                    f"{name}: record {key} is not whole (each frame once with its mask, from 0000 on); pack it again"
                )

    file.seek(0)
    try:
        tar = tarfile.open(fileobj=cast("IO[bytes]", _HeaderReader(file)), mode="r:")  # noqa: SIM115  (the caller's)
        while (stop is None or end < stop) and (info := tar.next()) is not None:
            plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            parts = names.split_member(info.name) if plain else None
            if parts is None:
                raise ShardError(
                    f"{name}: member {info.name!r} is not a record's file (wanted KEY.json, KEY.0000_C.png, "
                    "KEY.0000_M.png); pack the records again"
                )
            if info.size > MAX_FILE_BYTES:
                raise ShardError(
                    f"{name}: member {info.name!r} has {info.size} bytes, at most {MAX_FILE_BYTES} allowed"
                )
            if info.size < 0 or info.offset_data < end:
                raise ShardError(
                    f"{name}: member {info.name!r} has an impossible size; fetch or pack it again"
                )
            if parts[0] != key:
                close_record()
                key, members, digest = parts[0], [], ""
                if key in seen:
                    raise ShardError(f"{name}: record {key} stands there twice or in pieces; pack it again")
                seen.add(key)
            members.append(Member(parts[1], info.offset_data, info.size))
            end = info.offset_data + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
            if parts[1] == names.METADATA_FILE:
                file.seek(info.offset_data)
                digest = metadata_digest(file.read(info.size))
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{name}: is not a whole tar file ({error}); fetch or pack it again") from error
    close_record()
    return tuple(records), end


def _read_index(path: Path) -> ShardIndex | None:
    """Read an index file; None where it is absent or not a valid one (it can be rebuilt)."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            return None
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA:
            return None
        records = tuple(
            RecordEntry(
                str(key),
                str(digest),
                tuple(Member(str(file), int(offset), int(length)) for file, offset, length in members),
            )
            for key, digest, members in content["records"]
        )
        return ShardIndex(str(content["shard"]), int(content["size_bytes"]), str(content["digest"]), records)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class _HeaderReader:
    """What tarfile reads a tar through: it is after headers alone, so a large read is a trap."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _is_whole(record: RecordEntry) -> bool:
    """Tell whether a record has each frame once, each with its mask, numbered from 0, and at most one metadata."""
    files = [member.file for member in record.members if member.file != names.METADATA_FILE]
    count = record.frame_count
    wanted = {file for i in range(count) for file in (names.frame_file(i), names.mask_file(i))}
    return (
        count > 0
        and set(files) == wanted
        and len(files) == 2 * count
        and len(record.members) - len(files) <= 1
    )


def _members_inside(index: ShardIndex) -> bool:
    """Tell whether an index is possible: whole records, each once, every file inside the shard and no two overlap."""
    places = sorted((m.offset, m.length) for record in index.records for m in record.members)
    apart = all(a[0] + a[1] <= b[0] for a, b in pairwise(places))
    once = len({record.key for record in index.records}) == len(index.records)
    return (
        apart
        and once
        and all(map(_is_whole, index.records))
        and all(
            names.split_member(names.member_name(record.key, member.file)) is not None
            and member.offset >= 0
            and 0 <= member.length <= MAX_FILE_BYTES
            and member.offset + member.length <= index.size_bytes
            for record in index.records
            for member in record.members
        )
    )
