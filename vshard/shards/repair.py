"""Takes what is damaged out of shards and splits, and loses nothing else.

Damaged records move to ``SPLIT/.vshard/damaged/``: folders as they are, and of a shard all bytes of the old tar that
belong to no record kept, headers included, so that kept and moved together are all that was there. A shard is written
anew from its good records. What is moved is written whole first, then the new shard replaces the old one, then its
index: stopped at any moment, the same command finishes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..base.errors import OptionError, ShardError
from ..base.files import make_folder, sync_folder, writing
from ..base.jobs import Meter
from ..base.locks import only_one
from ..base.pipes import Pipe
from ..base.remote_files import check_writable
from ..base.report import Report
from ..base.stores import (
    Place,
    Remote,
    facts,
    list_folder,
    open_reading,
    remove,
    writing_whole,
)
from ..records import names
from ..records.record import Record, from_files
from .check import Finding, Piece, check_shard, digest_of
from .contents import open_shard, read_records
from .index import index_place, write_index
from .indexing import INDEX_MISSING, check_no_link
from .tar import BLOCK_BYTES, Source, padded
from .verify import Target, Verified, verify
from .write import ShardStream

DAMAGED_FOLDER = "damaged"
# A shard that is written anew, beside its place; `.tar.part` is generation's.
MENDED_SUFFIX = ".mended"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Mended:
    """What was done to one place; ``moved`` is where what was damaged lies now, None where there was nothing to keep.

    ``records``: keys that are no longer at ``place``. ``did`` says it in words. ``whole_in``: for a record folder, the
    shard beside it that holds the record whole.
    """

    place: Place
    records: tuple[str, ...]
    moved: Place | None
    did: str
    whole_in: Place | None = None


@dataclass(frozen=True)
class Repaired:
    """What was found, what was done, and what is there now."""

    found: Verified
    mended: tuple[Mended, ...]
    left: Verified


def repair(targets: Iterable[Target], jobs: int, report: Report) -> Repaired:
    """Verify ``targets``, mend what is damaged, and verify that.

    Raises:
        OptionError: one is a command's pipe.
        OutputError: another repair of a folder is running, it cannot be written, or a link leads out of it.
        ShardError: a shard or index is no file, cannot be read to its end, or changed meanwhile; it stays as it is.
        StoreError: a store cannot be reached, or can only be read.
    """
    targets = tuple(targets)
    places = []
    for target in targets:
        if isinstance(target.place, Pipe):
            raise OptionError("--repair: what a command writes cannot be mended; save it as a file first")
        if not target.is_stray:
            _check_file(target.place)
            if target.form == "shard":
                _check_file(index_place(target.place))
            places.append(target.place)
    with ExitStack() as stack:
        folders = {place.parent.resolve() for place in places if isinstance(place, Path)}
        for folder in sorted(folders):
            state = folder / names.STATE_FOLDER
            lock = state / "verify.lock"
            for place in (state, state / DAMAGED_FOLDER, lock):
                check_no_link(place)
            make_folder(state)
            stack.enter_context(only_one(lock, "repairing it"))
        found = verify(targets, jobs, report)
        for finding in found.damaged:
            if isinstance(finding.place, Remote):
                check_writable(finding.place)
        to_mend = sorted(
            (finding for finding in found.findings if _wants_mending(finding)),
            key=lambda finding: str(finding.place),
        )
        for finding in to_mend:
            if finding.form == "shard" and not isinstance(finding.place, Pipe):
                check_no_link(index_place(finding.place))
        report.start("mending", sum(finding.size_bytes for finding in to_mend), "bytes")
        meter = Meter(report)
        mended = [_mend(finding, found, meter) for finding in to_mend]
        again = {finding.place for finding in to_mend}
        gone = {place for place in places if place in again and facts(place) is None}
        checked = verify([t for t in targets if t.place in again - gone], jobs, report)
    now = {finding.place: finding for finding in checked.findings}
    left = tuple(now.get(old.place, old) for old in found.findings if old.place not in gone)
    return Repaired(found, tuple(mended), Verified(left, found.remarks, checked.twice, checked.twins))


def _check_file(place: Place) -> None:
    """Check that a shard or index is no named pipe or device, which nobody can write anew.

    Raises:
        ShardError: it is.
    """
    if isinstance(place, Path) and place.exists() and not (place.is_file() or place.is_dir()):
        raise ShardError(
            f"{place}: is a named pipe or device and no file, so it cannot be mended; remove it, or save what it gives "
            "as a file and mend that"
        )


def _wants_mending(finding: Finding) -> bool:
    readonly = isinstance(finding.place, Remote) and finding.place.is_web
    return bool(finding.problems) or (finding.index_state == INDEX_MISSING and not readonly)


def _mend(finding: Finding, found: Verified, meter: Meter) -> Mended:
    place = finding.place
    assert not isinstance(place, Pipe)
    if finding.form == "shard":
        return _mend_shard(place, found.twice.get(place, {}), meter)
    damaged = _damaged_folder(place)
    if finding.form == "index":
        moved = _put_aside(damaged, place.name, lambda: _chunks(place))
        remove(place)
    else:
        moved = _move_folder(place, damaged) if isinstance(place, Path) else _move_in_store(place, damaged)
    meter.add(finding.size_bytes)
    keys = tuple(problem.record for problem in finding.problems if problem.record is not None)
    return Mended(place, keys if finding.form == "folder" else (), moved, "moved", found.twins.get(place))


def _mend_shard(shard: Place, held: dict[str, Place], meter: Meter) -> Mended:
    """Mend a shard; ``held`` names the shard that keeps a record which is in both."""
    check = check_shard(shard, meter)
    if check.cannot_read is not None:
        raise ShardError(
            f"{shard}: {check.cannot_read}; copy what can be read of it to another disk and mend the copy"
        )
    if not check.to_rewrite and not held:
        write_index(shard, check.index)
        return Mended(shard, (), None, "its index was built")
    kept = [piece for piece in check.good if piece.entry.key not in held]
    spare = _spare(shard, kept, [*check.copies, *(p for p in check.good if p.entry.key in held)], held)
    tar_name = shard.name.removesuffix(".zst")
    if check.cannot_unpack is not None:
        # What lies behind the damage is only in the compressed file.
        moved = _put_aside(_damaged_folder(shard), shard.name, lambda: _chunks(shard))
    else:
        moved = _put_aside(_damaged_folder(shard), tar_name, lambda: _left_over(shard, [*kept, *spare]))
    if kept:
        _write_anew(shard, kept)
    else:
        index = index_place(shard)
        if facts(index) is not None:
            _put_aside(_damaged_folder(shard), index.name, lambda: _chunks(index))
        remove(shard)
        remove(index)
    gone = {problem.record for problem in check.finding.problems if problem.record} | held.keys()
    gone -= {piece.entry.key for piece in kept}
    count_text = "1 record" if len(kept) == 1 else f"{len(kept)} records"
    did = f"written anew with {count_text}" if kept else "removed, for it held no whole record"
    return Mended(shard, tuple(sorted(gone)), moved, did)


def _spare(shard: Place, kept: list[Piece], extra: list[Piece], held: dict[str, Place]) -> list[Piece]:
    """Give those of ``extra`` that equal, byte for byte, the record that stays for their key."""
    if not extra:
        return []
    keys = {piece.entry.key for piece in extra}
    here = _contents(shard, keys, {piece.start for piece in [*kept, *extra]})
    there = {
        holder: _contents(holder, {key for key in held if held[key] == holder}) for holder in held.values()
    }
    stays = {key: next(iter((there[held[key]] if key in held else here)[key].values())) for key in keys}
    return [piece for piece in extra if here[piece.entry.key][piece.start] == stays[piece.entry.key]]


def _contents(shard: Place, keys: set[str], starts: set[int] | None = None) -> dict[str, dict[int, bytes]]:
    """Give a digest of the files of each record of these keys, by key and by where it begins."""
    found: dict[str, dict[int, bytes]] = {key: {} for key in keys}
    for start, record in _records(shard, keys, starts):
        digest = hashlib.sha256()
        for file, data in record.files().items():
            digest.update(f"{file} {len(data)}\n".encode())
            digest.update(data)
        found[record.key][start] = digest.digest()
    return found


def _records(shard: Place, keys: set[str], starts: set[int] | None) -> Iterator[tuple[int, Record]]:
    """Read the records of these keys that begin at ``starts`` (None: all), each with where it begins."""
    last = sys.maxsize if starts is None else max(starts)
    with open_shard(shard) as file:
        for stored in read_records(file, str(shard), on_damage=lambda _: None):
            if stored.key in keys and (starts is None or stored.start in starts):
                yield stored.start, from_files(stored.key, stored.contents, f"{shard}:{stored.key}")
            if stored.start >= last:
                return


def _write_anew(shard: Place, kept: list[Piece]) -> None:
    """Write ``kept`` to the shard's name, in order, then its index."""
    target = shard.resolve() if isinstance(shard, Path) else shard
    work = target.with_name(target.name + MENDED_SUFFIX) if isinstance(target, Path) else target
    check_no_link(work)
    digests = {piece.start: piece.digest for piece in kept}
    with writing_whole(work) as file:
        stream = ShardStream(file, shard.name)
        for start, record in _records(shard, {piece.entry.key for piece in kept}, set(digests)):
            if digests.pop(start) != digest_of(record):
                break
            stream.add(record)
        if digests:
            raise ShardError(f"{shard}: changed while it was mended; run the same command again")
        index = stream.end()
    if isinstance(work, Path) and isinstance(target, Path):
        with writing(target):
            work.replace(target)
            sync_folder(target.parent)
    write_index(shard, index)


def _left_over(shard: Place, pieces: list[Piece]) -> Iterator[bytes]:
    """Give the bytes of a tar that are none of ``pieces``, in blocks, less those of zeros where they say nothing.

    Padding that is not zeros comes with the rest of its block.
    """
    spans = sorted(span for piece in pieces for span in piece.spans)
    with open_shard(shard) as file:
        source = Source(file, 0)
        for start, stop in spans:
            yield from _between(source, start)
            whole = stop // BLOCK_BYTES * BLOCK_BYTES
            source.skip(whole - source.position)
            if whole < stop:
                block = source.take(BLOCK_BYTES)
                if block[stop - whole :].strip(b"\0"):
                    yield block
        yield from _between(source, None)


def _between(source: Source, stop: int | None) -> Iterator[bytes]:
    """Give the bytes up to ``stop`` less blocks of zeros before them; up to the end (None) also less those behind."""
    zeros = 0
    begun = False
    end = sys.maxsize if stop is None else stop
    while data := source.take(min(_READ_BYTES, end - source.position)):
        if not begun:
            data = data[(len(data) - len(data.lstrip(b"\0"))) // BLOCK_BYTES * BLOCK_BYTES :]
        filled = min(padded(len(data.rstrip(b"\0"))), len(data))
        if filled:
            yield from _zeros(zeros)
            yield data[:filled]
            begun, zeros = True, 0
        zeros += len(data) - filled if begun else 0
    if begun and stop is not None:
        yield from _zeros(zeros)


def _zeros(size: int) -> Iterator[bytes]:
    while size:
        piece = min(size, _READ_BYTES)
        yield bytes(piece)
        size -= piece


def _put_aside(folder: Place, name: str, chunks: Callable[[], Iterator[bytes]]) -> Place | None:
    """Write ``chunks`` to a file of this name, or of ``name.1`` …; one that holds them already will do.

    Returns:
        The file; None where there is nothing to write.
    """
    if next(chunks(), None) is None:
        return None
    if isinstance(folder, Path):
        make_folder(folder)
    place = next(p for p in _numbered(folder, name) if _is_free(p) or _holds(p, chunks()))
    if facts(place) is None:
        with writing_whole(place) as file:
            for chunk in chunks():
                file.write(chunk)
    return place


def _is_free(place: Place) -> bool:
    return facts(place) is None and not (isinstance(place, Path) and place.is_symlink())


def _holds(place: Place, chunks: Iterable[bytes]) -> bool:
    entry = facts(place)
    if entry is None or entry.is_folder:
        return False
    with open_reading(place) as file:
        return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)


def _move_folder(folder: Path, damaged: Place) -> Path:
    assert isinstance(damaged, Path)
    make_folder(damaged)
    target = next(place for place in _numbered(damaged, folder.name) if _is_free(place))
    assert isinstance(target, Path)
    with writing(target):
        folder.rename(target)
        sync_folder(damaged)
        sync_folder(folder.parent)
    return target


def _move_in_store(folder: Remote, damaged: Place) -> Place:
    """Copy a record's files, then remove them; a stopped one goes on where it was."""
    files = [entry.name for entry in list_folder(folder) if not entry.is_folder]
    target = next(
        place
        for place in _numbered(damaged, folder.name)
        if all(facts(place / f) is None or _holds(place / f, _chunks(folder / f)) for f in files)
    )
    for file in files:
        if facts(target / file) is None:
            with writing_whole(target / file) as out:
                for chunk in _chunks(folder / file):
                    out.write(chunk)
    # Its pictures last: while one is left, the folder is found as a record's.
    for file in sorted(files, key=names.is_frame_or_mask):
        remove(folder / file)
    return target


def _numbered(folder: Place, name: str) -> Iterator[Place]:
    yield folder / name
    for number in count(1):
        yield folder / f"{name}.{number}"


def _chunks(place: Place) -> Iterator[bytes]:
    with open_reading(place) as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _damaged_folder(place: Place) -> Place:
    return place.parent / names.STATE_FOLDER / DAMAGED_FOLDER
