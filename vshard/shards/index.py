"""What lies where in a shard.

Beside ``name.tar`` stands ``name.tar.idx``: JSON with, for each record, its key, its metadata's digest and the
(offset, length) of every file, and the shard's own size and digest. Readers use it to fetch just the bytes they
need. It is rebuilt by reading the shard when it is absent or speaks of another size. The index of a ``.tar.zst``
counts offsets in the tar inside; size and digest are those of the file as it lies there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ..base.errors import ShardError
from ..base.stores import Place, facts, read_file, write_whole
from ..records import names
from ..records.record import MAX_FILE_BYTES, metadata_digest
from .contents import (
    MAX_RECORD_BYTES,
    MAX_ZSTD_RATIO,
    ZSTD_RATIO_FROM_BYTES,
    StoredRecord,
    gather,
    is_compressed,
    open_shard,
    read_records,
)
from .tar import BLOCK_BYTES, END_MARK, padded, read_members

SCHEMA = "vshard.index/2"
MAX_INDEX_BYTES = 1 << 28
# Others' tars have an extended header before a member, and their end filled up to 20 blocks.
MAX_GAP_BYTES = 3 * BLOCK_BYTES
MAX_TAIL_GAP_BYTES = 22 * BLOCK_BYTES


@dataclass(frozen=True)
class Member:
    """One file of a record inside a shard: where its bytes start and how many there are."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class RecordEntry:
    """One record of a shard; ``members`` in the shard's order, ``metadata_digest`` "" where it has no metadata."""

    key: str
    metadata_digest: str
    members: tuple[Member, ...]

    @property
    def frame_count(self) -> int:
        """How many colour frames the record holds."""
        return sum(member.file.endswith("_C.png") for member in self.members)

    @property
    def size_bytes(self) -> int:
        """How many bytes its files have."""
        return sum(member.length for member in self.members)


@dataclass(frozen=True, repr=False)
class ShardIndex:
    """The index of one shard; ``digest`` is the SHA-256 of the whole file, as ``sha256sum`` prints it.

    ``size_bytes`` counts the file, ``tar_bytes`` the tar in it: the same but for a compressed shard.
    """

    shard: str
    size_bytes: int
    digest: str
    tar_bytes: int
    records: tuple[RecordEntry, ...]

    def to_bytes(self) -> bytes:
        """Write the index as JSON, one way only, a line a record."""
        head = {
            "schema": SCHEMA,
            "shard": self.shard,
            "size_bytes": self.size_bytes,
            "sha256": self.digest,
            "tar_bytes": self.tar_bytes,
        }
        lines = [
            json.dumps([r.key, r.metadata_digest, [[m.file, m.offset, m.length] for m in r.members]])
            for r in self.records
        ]
        return (json.dumps(head)[:-1] + ', "records": [\n' + ",\n".join(lines) + "\n]}\n").encode()

    def __repr__(self) -> str:
        return f"ShardIndex({self.shard}: {len(self.records)} records, {self.size_bytes} bytes)"


def index_place(shard: Place) -> Place:
    """Give where the index of ``shard`` stands."""
    return shard.with_name(shard.name + names.INDEX_SUFFIX)


def load_index(shard: Place) -> ShardIndex:
    """Give the index of ``shard``: the file beside it if it fits, else by reading the shard.

    Raises:
        ShardError: the shard is not there, cut off, damaged or not in our layout.
        StoreError: it cannot be reached.
    """
    entry = facts(shard)
    if entry is None or entry.is_folder:
        found = "no such file" if entry is None else "is a folder, not a shard"
        raise ShardError(f"{shard}: {found}; check the path")
    index = read_index(shard)
    if index is not None and index.size_bytes == entry.size_bytes and index_possible(index):
        return index
    return scan_shard(shard)


def scan_shard(shard: Place) -> ShardIndex:
    """Build the index of ``shard`` from the shard itself; reads the whole file.

    Raises:
        ShardError: as :func:`load_index`.
    """
    with open_shard(shard) as file:
        stored = read_records(file, str(shard))
        records = tuple(entry for entry, _ in whole_records(stored, str(shard)))
        tar_bytes = file.tell()
        size_bytes, digest = file.finish()
    return ShardIndex(shard.name, size_bytes, digest, tar_bytes, records)


def scan_part(file: BinaryIO, where: str, stop: int) -> tuple[RecordEntry, ...]:
    """Give the records of an unfinished shard that fill its first ``stop`` bytes.

    Raises:
        ShardError: they do not.
    """
    found = list(whole_records(read_records(file, where, stop=stop), where))
    end = found[-1][1].stop if found else 0
    if end != stop:
        raise ShardError(f"{where}: its records end after {end} bytes, not after {stop}; pack it again")
    return tuple(entry for entry, _ in found)


def write_index(shard: Place, index: ShardIndex) -> None:
    """Write ``index`` beside its shard, whole or not at all."""
    write_whole(index_place(shard), index.to_bytes())


def entry_of(stored: StoredRecord) -> RecordEntry:
    """Give the index entry of a record that was read from a shard."""
    metadata = stored.contents.get(names.METADATA_FILE)
    members = tuple(Member(file.file, file.offset, len(file.data)) for file in stored.files)
    return RecordEntry(stored.key, "" if metadata is None else metadata_digest(metadata), members)


def read_entry(file: BinaryIO, entry: RecordEntry, where: str) -> StoredRecord:
    """Read one record of an uncompressed shard where its index says it is.

    Raises:
        ShardError: something else is there.
    """
    start = entry.members[0].offset - BLOCK_BYTES
    stop = max(member.offset + padded(member.length) for member in entry.members)
    if stop - start > MAX_RECORD_BYTES:
        raise ShardError(
            f"{where}: record {entry.key} has more than {MAX_RECORD_BYTES} bytes; it is no record"
        )
    file.seek(start)
    data = file.read(stop - start)
    advice = "the index is of another file; build it again with: vshard index"
    try:
        members = list(read_members(io.BytesIO(data), where, first=start, stop=stop))
    except ShardError as error:
        raise ShardError(f"{where}: record {entry.key} is not where its index says; {advice}") from error
    found = [(member.name, member.offset, len(member.data)) for member in members]
    if found != [(names.member_name(entry.key, m.file), m.offset, m.length) for m in entry.members]:
        raise ShardError(f"{where}: record {entry.key} is not where its index says; {advice}")
    return gather(entry.key, members)


def whole_records(records: Iterable[StoredRecord], where: str) -> Iterator[tuple[RecordEntry, StoredRecord]]:
    """Give each record with its entry, checking that it is whole and stands there once.

    Raises:
        ShardError: one is not; also where two keys differ only by case, which some file systems take for the same.
    """
    seen: dict[str, str] = {}
    for stored in records:
        record = entry_of(stored)
        if not is_whole(record):
            raise ShardError(
                f"{where}: record {record.key} is not whole (each frame once with its mask, from 0000 on); "
                "pack it again, or set it aside with: vshard verify --repair"
            )
        other = seen.get(record.key.lower())
        if other is not None:
            how = (
                "stands there twice or in pieces"
                if other == record.key
                else f"differs from {other} only by case"
            )
            raise ShardError(f"{where}: record {record.key} {how}; pack it again, or: vshard verify --repair")
        seen[record.key.lower()] = record.key
        yield record, stored


def read_index(shard: Place) -> ShardIndex | None:
    """Read the index file of ``shard``; None where it is absent or not a valid one (it can be rebuilt).

    Raises:
        StoreError: it cannot be reached.
    """
    place = index_place(shard)
    entry = facts(place)
    if entry is None or entry.is_folder or entry.size_bytes > MAX_INDEX_BYTES:
        return None
    return parse_index(read_file(place, MAX_INDEX_BYTES))


def parse_index(data: bytes) -> ShardIndex | None:
    """Read the bytes of an index file; None where they are not one."""
    try:
        content = json.loads(data)
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
        return ShardIndex(
            str(content["shard"]),
            int(content["size_bytes"]),
            str(content["sha256"]),
            int(content["tar_bytes"]),
            records,
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def is_whole(record: RecordEntry) -> bool:
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


def index_possible(index: ShardIndex) -> bool:
    """Tell whether an index is possible: whole records, each once, that fill the shard but for headers.

    One that leaves room for a record it does not name is not believed: what it hides would be lost.
    """
    places = sorted((m.offset, m.length) for record in index.records for m in record.members)
    ends = [0, *(offset + padded(length) for offset, length in places)]
    gaps = [offset - BLOCK_BYTES - end for (offset, _), end in zip(places, ends, strict=False)]
    tail = index.tar_bytes - ends[-1]
    once = len({record.key.lower() for record in index.records}) == len(index.records)
    return (
        all(0 <= gap <= MAX_GAP_BYTES for gap in gaps)
        and len(END_MARK) <= tail <= MAX_TAIL_GAP_BYTES
        and index.tar_bytes <= _tar_bytes_most(index)
        and once
        and all(map(is_whole, index.records))
        and all(
            names.split_member(names.member_name(record.key, member.file)) is not None
            and 0 <= member.length <= MAX_FILE_BYTES
            for record in index.records
            for member in record.members
        )
    )


def _tar_bytes_most(index: ShardIndex) -> int:
    if is_compressed(index.shard):
        return max(index.size_bytes * MAX_ZSTD_RATIO, ZSTD_RATIO_FROM_BYTES)
    return index.size_bytes
