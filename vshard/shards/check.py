"""Checks one shard, all of it, and says what is wrong instead of failing.

A shard is read once, forwards: its tar, its records, every picture down to the last pixel, and whether its index says
just that. One record at a time is in memory. Inflating takes three quarters of the time, SHA-256 the rest; decoding
the pictures with Pillow takes more than twice as long.
"""

from __future__ import annotations

import hashlib
import json
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from isal import isal_zlib

from ..base.errors import RecordError, ShardError, StoreError
from ..base.jobs import Meter
from ..base.pipes import Pipe
from ..base.stores import Place, Remote
from ..records import names
from ..records.png import check_pixels
from ..records.record import Record, from_files
from .contents import StoredRecord, open_shard, read_records
from .index import RecordEntry, ShardIndex, entry_of, index_possible, is_whole, parse_index
from .indexing import METADATA_LOST, Problem, find_difference, index_bytes, judge_index
from .tar import Torn

# Metadata that says something else than these of the pictures is damaged.
_COUNTED = ("frames", "height", "width")
# A stranger's value is cut to this.
_MOST_SHOWN = 100


@dataclass(frozen=True)
class Finding:
    """What was found at one place; it is whole where there are no ``problems``.

    ``form`` is "shard", "folder" (of one record) or "index" (one without its shard). ``records`` counts those that are
    there and those that its index knows and that are lost; ``frames`` the colour frames, as many masks go with them.
    ``index_state`` is one of the states in ``indexing.py``, None where there can be no index.
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

    ``spans``: the [start, stop) of each file in the tar with its headers and without its padding. ``counted``: its
    metadata says how many frames it has. ``digest`` tells contents apart, "" for a damaged one.
    """

    entry: RecordEntry
    start: int
    stop: int
    counted: bool
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
    """What one pass over a shard gave; ``empty`` is its index less the records.

    ``torn``: the places, in order, behind which members may be lost.
    """

    pieces: list[Piece]
    told: list[str]
    torn: list[int]
    cannot_unpack: str | None
    cannot_read: str | None
    empty: ShardIndex


def check_shard(shard: Place | Pipe, meter: Meter) -> ShardCheck:
    """Check a shard and its index; the meter counts the shard's bytes.

    Raises:
        StoreError: its store cannot be reached, or the command of a pipe fails.
    """
    reading = _read(shard, meter)
    stored_index = None if isinstance(shard, Pipe) else index_bytes(shard)
    index = None if stored_index is None else parse_index(stored_index)
    pieces = _near_damage(reading.pieces, reading.torn)
    good, copies, problems = _settle(pieces)
    if index is not None and index_possible(index):
        damaged = bool(problems or reading.told or reading.cannot_unpack)
        good, copies, problems = _settle(_compare(pieces, index, damaged=damaged))
    # What befell the whole shard comes first: it is why records are not whole.
    causes = (*reading.told, reading.cannot_unpack, reading.cannot_read)
    problems = [*(Problem(None, text) for text in causes if text), *problems]
    rebuilt = replace(reading.empty, records=tuple(piece.entry for piece in good))
    damaged = bool(problems)
    state = None
    if not isinstance(shard, Pipe):
        seen = {piece.entry.key for piece in reading.pieces}
        of_index = judge_index(stored_index, index, rebuilt, seen, whole=not damaged)
        state = of_index.state
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
                f"{where}: its metadata says {name} {ascii(said[name])[:_MOST_SHOWN]}, its pictures say {found[name]}; "
                "make the record again"
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
                # A cause is the unpacker's, in its own words.
                cannot_unpack = (
                    without(str(error), shard)
                    if error.__cause__ is None
                    else f"its compression is damaged or cut off: its tar can be unpacked up to byte {file.tell()}"
                )
            tar_bytes = file.tell()
            size_bytes, digest = file.finish()
            meter.add(size_bytes - counted)
    except (ShardError, StoreError) as error:
        if isinstance(error, StoreError) and isinstance(shard, (Pipe, Remote)):
            raise
        cannot_read = without(str(error), shard)
    torn = [text.place for text in told if isinstance(text, Torn)] + [tar_bytes] * (cannot_unpack is not None)
    name = str(shard) if isinstance(shard, Pipe) else shard.name
    return _Reading(
        pieces, told, torn, cannot_unpack, cannot_read, ShardIndex(name, size_bytes, digest, tar_bytes, ())
    )


def _judge(stored: StoredRecord) -> Piece:
    entry = entry_of(stored)
    problem, digest, counted = None, "", False
    try:
        record = from_files(stored.key, stored.contents, stored.key)
        check_record(record, stored.key)
        counted = names.METADATA_FILE in stored.contents and "frames" in json.loads(record.metadata)
        digest = digest_of(record)
    except RecordError as error:
        problem = names.printable(str(error))
    spans = tuple((file.start, file.offset + len(file.data)) for file in stored.files)
    return Piece(entry, stored.start, stored.stop, counted, spans, digest, problem)


def _near_damage(pieces: list[Piece], torn: list[int]) -> list[Piece]:
    """Find fault with the records beside a damaged header of which nothing says whether they are all there.

    Those that are not have their cause there.
    """
    whole = [piece for piece in pieces if piece.problem is None]
    unknown = {piece.start for piece in _beside(whole, torn) if not piece.counted}
    broken = {piece.start for piece in _beside(pieces, torn) if piece.problem and not is_whole(piece.entry)}
    reason = "a header beside it is damaged, and no metadata says whether it is all there"
    cause = "is not all there: the shard is damaged or cut off inside or beside it"
    return [
        _damaged(piece, reason)
        if piece.start in unknown
        else _damaged(piece, cause)
        if piece.start in broken
        else piece
        for piece in pieces
    ]


def _beside(pieces: list[Piece], torn: list[int]) -> Iterator[Piece]:
    """Give the pieces between whose neighbours one of the places in ``torn`` lies."""
    stops = [0, *(piece.stop for piece in pieces)]
    starts = [*(piece.start for piece in pieces[1:]), sys.maxsize]
    for piece, before, behind in zip(pieces, stops, starts, strict=False):
        place = bisect_left(torn, before)
        if place < len(torn) and torn[place] <= behind:
            yield piece


def _compare(pieces: list[Piece], index: ShardIndex, *, damaged: bool) -> list[Piece]:
    """Find fault with the records that are not what the index of their shard describes.

    That of a shard where nothing else is wrong may be out of date: there only lost metadata counts.
    """
    known = {record.key: record for record in index.records}
    reasons = {
        piece.start: find_difference(piece.entry, known.get(piece.entry.key, piece.entry))
        for piece in pieces
        if piece.problem is None
    }
    if not damaged and METADATA_LOST not in reasons.values():
        return pieces
    return [
        piece if reason is None else _damaged(piece, reason)
        for piece in pieces
        for reason in [reasons.get(piece.start)]
    ]


def _damaged(piece: Piece, reason: str) -> Piece:
    return piece._replace(problem=f"{piece.entry.key}: {reason}", digest="")


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
        broken = [piece for piece in same if piece.problem is not None]
        whole = [piece for piece in same if piece.problem is None]
        if not all(_begins(piece) for piece in broken):
            # A piece that looks whole may be the beginning of a longer record.
            whole = [piece for piece in whole if piece.counted]
        if not whole:
            apart = f"{key}: lies in {len(same)} pieces that do not all make a record; pack it again"
            problems.append(Problem(key, apart if len(same) > 1 else broken[0].problem or apart))
        elif folded.setdefault(key.lower(), key) != key:
            problems.append(
                Problem(key, f"{key}: differs from {folded[key.lower()]} only by case; rename one")
            )
        else:
            kept = next((piece for piece in whole if piece.counted), whole[0])
            good.append(kept)
            copies += [piece for piece in whole if piece is not kept]
            if len(same) > 1:
                how = f", {len(broken)} of them damaged" if broken else ""
                problems.append(Problem(key, f"{key}: stands there {len(same)} times{how}"))
    return sorted(good, key=lambda piece: piece.start), copies, problems


def _begins(piece: Piece) -> bool:
    """Tell whether a piece holds its record's first frame."""
    return any(member.file == names.frame_file(0) for member in piece.entry.members)


def without(text: str, place: Place | Pipe) -> str:
    """Give an error's text without the place's name at its beginning."""
    return text.removeprefix("cannot read ").removeprefix(str(place)).lstrip(":/ ")
