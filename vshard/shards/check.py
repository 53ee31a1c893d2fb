"""Checks one shard or one record folder, all of it, and says what is wrong instead of failing.

A shard is read once, forwards: its tar, its records, every picture down to the last pixel, and whether its index says
just that. One record at a time is in memory. Inflating takes three quarters of the time, SHA-256 the rest; decoding
the pictures with Pillow takes more than twice as long.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from isal import isal_zlib

from ..base.errors import RecordError, ShardError
from ..base.jobs import Meter
from ..base.pipes import Pipe
from ..base.stores import Place, facts, list_folder, read_file
from ..records import names
from ..records.png import check_pixels
from ..records.record import Record, from_files, is_record_file, read_folder
from .contents import StoredRecord, open_shard, read_records
from .index import (
    MAX_INDEX_BYTES,
    RecordEntry,
    ShardIndex,
    entry_of,
    index_place,
    index_possible,
    parse_index,
)

INDEX_OK, INDEX_MISSING, INDEX_BAD = "ok", "missing", "stale or damaged"
# Metadata that says something else than these of the pictures is damaged.
_COUNTED = ("frames", "height", "width")


class Problem(NamedTuple):
    """One damage, in words that follow the place's name; ``record`` is the key of the record it costs, if it does."""

    record: str | None
    text: str


@dataclass(frozen=True)
class Finding:
    """What was found at one place; it is whole where there are no ``problems``.

    ``form`` is "shard", "folder" (of one record) or "index" (one without its shard). ``records`` counts those that are
    there and those that its index knows and that are lost; ``frames`` the colour frames, as many masks go with them.
    ``index_state`` is "ok", "missing", "stale or damaged", or None where there can be no index.
    """

    place: Place | Pipe
    form: str
    records: int
    frames: int
    size_bytes: int
    index_state: str | None
    problems: tuple[Problem, ...]

    @property
    def damaged_records(self) -> int:
        """How many records are damaged or lost."""
        return len({problem.record for problem in self.problems} - {None})


class Piece(NamedTuple):
    """A record as it lies in a shard, judged.

    ``spans``: the [start, stop) of each file in the tar with its headers and without its padding. ``digest`` tells
    contents apart, "" for a damaged one.
    """

    entry: RecordEntry
    start: int
    spans: tuple[tuple[int, int], ...]
    digest: str
    problem: str | None


@dataclass(frozen=True, repr=False)
class ShardCheck:
    """A shard's finding and what mending needs.

    ``good``: the records to keep, in order; ``copies``: whole ones whose key stands there before. ``to_rewrite``:
    something else than the index is wrong. ``cannot_unpack`` or ``cannot_read`` say why its end is not known.
    ``index`` is what its index has to be if nothing else is wrong.
    """

    finding: Finding
    good: tuple[Piece, ...]
    copies: tuple[Piece, ...]
    to_rewrite: bool
    cannot_unpack: str | None
    cannot_read: str | None
    index: ShardIndex


class _Reading(NamedTuple):
    """What one pass over a shard gave; ``empty`` is its index less the records."""

    pieces: list[Piece]
    told: list[str]
    cannot_unpack: str | None
    cannot_read: str | None
    empty: ShardIndex


def check_shard(shard: Place | Pipe, meter: Meter) -> ShardCheck:
    """Check a shard and its index; the meter counts the shard's bytes.

    Raises:
        StoreError: its store cannot be reached, or the command of a pipe fails.
    """
    reading = _read(shard, meter)
    good, copies, problems = _settle(reading.pieces)
    problems += [
        Problem(None, text) for text in (*reading.told, reading.cannot_unpack, reading.cannot_read) if text
    ]
    rebuilt = replace(reading.empty, records=tuple(piece.entry for piece in good))
    damaged = bool(problems)
    state = None
    if not isinstance(shard, Pipe):
        seen = {piece.entry.key for piece in reading.pieces}
        state, of_index = _judge_index(_index_bytes(shard), rebuilt, seen, whole=not damaged)
        problems += of_index.problems
        damaged = damaged or of_index.shard_differs
        good = [piece for piece in good if piece.entry.key not in of_index.changed]
    finding = Finding(
        shard,
        "shard",
        len({piece.entry.key for piece in reading.pieces} | {p.record for p in problems if p.record}),
        sum(piece.entry.frame_count for piece in reading.pieces),
        reading.empty.size_bytes,
        state,
        tuple(problems),
    )
    return ShardCheck(
        finding,
        tuple(good),
        tuple(copies),
        damaged,
        reading.cannot_unpack,
        reading.cannot_read,
        rebuilt,
    )


def check_folder(folder: Place) -> tuple[Finding, str]:
    """Check a record's folder; give the finding and its contents' digest ("" where it is damaged).

    Raises:
        StoreError: it cannot be reached.
    """
    problem, digest, frames, size_bytes = None, "", 0, 0
    try:
        if not names.is_record_key(folder.name):
            raise RecordError(
                f"{folder}: a record's name may hold only A-Z a-z 0-9 _ - and {names.KEY_LENGTH_MAX} characters; "
                "rename the folder"
            )
        record = read_folder(folder)
        frames, size_bytes = len(record.frames), sum(map(len, record.files().values()))
        check_record(record, str(folder))
        digest = digest_of(record)
    except RecordError as error:
        problem = _without(str(error), folder)
        ours = [entry for entry in list_folder(folder) if is_record_file(entry.name)]
        frames = sum(entry.name.endswith("_C.png") for entry in ours)
        size_bytes = sum(entry.size_bytes for entry in ours)
    problems = () if problem is None else (Problem(folder.name, problem),)
    return Finding(folder, "folder", 1, frames, size_bytes, None, problems), digest


def check_orphan(index: Place) -> Finding:
    """Give the finding of an index whose shard is not there: every record in it is lost.

    Raises:
        StoreError: it cannot be reached.
    """
    data = read_file(index, MAX_INDEX_BYTES)
    parsed = parse_index(data)
    records = () if parsed is None else parsed.records
    lost = [Problem(record.key, f"{record.key}: was in it") for record in records]
    problems = (Problem(None, "its shard is not there"), *lost)
    frames = sum(record.frame_count for record in records)
    return Finding(index, "index", len(records), frames, len(data), None, problems)


def check_record(record: Record, where: str) -> None:
    """Check that every picture decodes, all are of one size, and the metadata says the same.

    Raises:
        RecordError: it is not so.
    """
    sizes = {
        file: check_pixels(data, f"{where}/{file}")
        for file, data in record.files().items()
        if file != names.METADATA_FILE
    }
    height, width = next(iter(sizes.values()))
    for file, size in sizes.items():
        if size != (height, width):
            raise RecordError(
                f"{where}/{file}: is {size[1]}x{size[0]} pixels, the first frame {width}x{height}; all must be of one "
                "size; make the record again"
            )
    found = dict(zip(_COUNTED, (len(record.frames), height, width), strict=True))
    said = json.loads(record.metadata)
    for name in _COUNTED:
        if said.get(name, found[name]) != found[name]:
            raise RecordError(
                f"{where}: its metadata says {name} {str(said[name])[:40]}, its pictures say {found[name]}; make the "
                "record again"
            )


def digest_of(record: Record) -> str:
    """Give a digest that tells a record's contents from others; quick, and no proof against intent."""
    digest = hashlib.blake2b(digest_size=16)
    for file, data in record.files().items():
        digest.update(f"{file} {len(data)} {isal_zlib.crc32(data)}\n".encode())
    return digest.hexdigest()


def _read(shard: Place | Pipe, meter: Meter) -> _Reading:
    pieces: list[Piece] = []
    told: list[str] = []
    cannot_unpack = cannot_read = None
    tar_bytes = size_bytes = counted = 0
    digest = ""
    try:
        with open_shard(shard) as file:
            try:
                for stored in read_records(file, str(shard), on_damage=told.append):
                    pieces.append(_judge(stored))
                    meter.add(file.stored_bytes - counted)
                    counted = file.stored_bytes
            except ShardError as error:
                cannot_unpack = _without(str(error), shard)
            tar_bytes = file.tell()
            size_bytes, digest = file.finish()
            meter.add(size_bytes - counted)
    except ShardError as error:
        cannot_read = _without(str(error), shard)
    name = str(shard) if isinstance(shard, Pipe) else shard.name
    return _Reading(
        pieces, told, cannot_unpack, cannot_read, ShardIndex(name, size_bytes, digest, tar_bytes, ())
    )


def _judge(stored: StoredRecord) -> Piece:
    entry = entry_of(stored)
    problem, digest = None, ""
    try:
        record = from_files(stored.key, stored.contents, stored.key)
        check_record(record, stored.key)
        digest = digest_of(record)
    except RecordError as error:
        problem = str(error)
    spans = tuple((file.start, file.offset + len(file.data)) for file in stored.files)
    return Piece(entry, stored.start, spans, digest, problem)


def _settle(pieces: Iterable[Piece]) -> tuple[list[Piece], list[Piece], list[Problem]]:
    """Give the pieces that are records, those that stand there before already, and what is wrong."""
    by_key: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_key.setdefault(piece.entry.key, []).append(piece)
    good: list[Piece] = []
    copies: list[Piece] = []
    problems = []
    folded: dict[str, str] = {}
    for key, same in by_key.items():
        damage = next((piece.problem for piece in same if piece.problem), None)
        if damage is not None:
            # A piece that looks whole may be the beginning of a longer record.
            apart = f"{key}: lies in {len(same)} pieces that do not all make a record; pack it again"
            problems.append(Problem(key, damage if len(same) == 1 else apart))
        elif folded.setdefault(key.lower(), key) != key:
            problems.append(
                Problem(key, f"{key}: differs from {folded[key.lower()]} only by case; rename one")
            )
        else:
            good.append(same[0])
            copies += same[1:]
            if len(same) > 1:
                problems.append(Problem(key, f"{key}: stands there {len(same)} times"))
    return good, copies, problems


class _OfIndex(NamedTuple):
    """What an index tells of its shard: ``changed`` records, and whether the shard's bytes are others than it says."""

    problems: list[Problem]
    changed: frozenset[str] = frozenset()
    shard_differs: bool = False


def _judge_index(
    data: bytes | None, rebuilt: ShardIndex, seen: set[str], *, whole: bool
) -> tuple[str, _OfIndex]:
    """Compare an index file with what its shard holds, which was found ``whole`` without it."""
    if data is None:
        return INDEX_MISSING, _OfIndex([])
    index = parse_index(data)
    if index is None or not index_possible(index):
        return INDEX_BAD, _OfIndex([Problem(None, "its index is damaged")])
    if whole and rebuilt.to_bytes() == data:
        return INDEX_OK, _OfIndex([])
    same_size = (index.size_bytes, index.tar_bytes) == (rebuilt.size_bytes, rebuilt.tar_bytes)
    if index.digest == rebuilt.digest:
        # The shard is the one that was indexed: nothing of it can be lost.
        return (INDEX_BAD, _OfIndex([_STALE])) if whole else (INDEX_OK, _OfIndex([]))
    problems = [
        Problem(record.key, f"{record.key}: is in the index and no longer in the shard")
        for record in index.records
        if record.key not in seen
    ]
    if not same_size:
        return INDEX_BAD, _OfIndex([*problems, _STALE] if whole else problems)
    known = {record.key: record for record in index.records}
    changed = [
        entry.key
        for entry in rebuilt.records
        if entry.key in known
        and known[entry.key].members == entry.members
        and known[entry.key].metadata_digest != entry.metadata_digest
    ]
    problems += [Problem(key, f"{key}: its metadata is not what the index describes") for key in changed]
    if not whole or changed:
        return INDEX_OK, _OfIndex(problems, frozenset(changed), bool(changed))
    if replace(index, digest=rebuilt.digest).to_bytes() == rebuilt.to_bytes():
        text = "its bytes are not those that its index describes"
        return INDEX_BAD, _OfIndex([Problem(None, text)], shard_differs=True)
    return INDEX_BAD, _OfIndex([*problems, _STALE])


_STALE = Problem(None, "its index does not describe it")


def _index_bytes(shard: Place) -> bytes | None:
    place = index_place(shard)
    entry = facts(place)
    if entry is None:
        return None
    return b"" if entry.is_folder or entry.size_bytes > MAX_INDEX_BYTES else read_file(place, MAX_INDEX_BYTES)


def _without(text: str, place: Place | Pipe) -> str:
    """Give an error's text without the place's name at its beginning."""
    return text.removeprefix(str(place)).lstrip(":/ ")
