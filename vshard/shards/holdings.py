"""What a folder of records holds, and a reader of any part of it.

First names and sizes alone (:func:`look`, :func:`find`): the files of record folders, the indexes of shards. Then
:func:`read_each` opens one copy of each record that is wanted, the shard's where there is one, and reads by ranges only
what is asked of it. Here or in a store, several at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from ..base.errors import DatasetError, RecordError, ShardError, VshardError
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import Entry, Place, expand, facts, list_folder, open_reading, read_file
from ..records import names
from ..records.record import MAX_FILE_BYTES, from_files, is_record_file, read_plain_file
from .contents import is_compressed, open_shard, read_records
from .index import Member, RecordEntry, ShardIndex, is_whole, load_index, whole_records
from .sources import is_index

Result = TypeVar("Result")

SPLITS = ("train", "eval")
IN_FOLDER = "folder"
REPAIR = "set what is damaged or there twice aside with: vshard verify --repair"
# A store answers several questions at a time, also about one shard.
_RECORDS_A_JOB = 32
# An error names so many splits or datasets.
_MOST_TOLD = 5


@dataclass(frozen=True, repr=False)
class Holdings:
    """The records that lie in the folder ``place``.

    ``folders``: their files' bytes by key and name. ``shards``: by file name, plain ones first. ``damage``: why a
    folder or shard cannot be read, by its name.
    """

    place: Place
    folders: Mapping[str, Mapping[str, int]]
    shards: Mapping[str, ShardIndex]
    damage: Mapping[str, VshardError]

    def entries(self) -> dict[str, tuple[str, RecordEntry]]:
        """Give each record that is in a shard: the shard's name and the entry, by key; of several the first."""
        found: dict[str, tuple[str, RecordEntry]] = {}
        for name, index in self.shards.items():
            for entry in index.records:
                found.setdefault(entry.key, (name, entry))
        return found

    def forms(self) -> dict[str, tuple[str, ...]]:
        """Give where each record lies, "folder" and names of shards, by key in the order of keys."""
        found: dict[str, list[str]] = {key: [IN_FOLDER] for key in self.folders}
        for name, index in self.shards.items():
            for entry in index.records:
                found.setdefault(entry.key, []).append(name)
        return {key: tuple(found[key]) for key in sorted(found)}

    def sizes(self) -> dict[str, int]:
        """Give the bytes of each record's files by key, one copy counted: the shard's where there is one."""
        loose = {key: sum(files.values()) for key, files in self.folders.items()}
        return loose | {key: entry.size_bytes for key, (_, entry) in self.entries().items()}

    def __repr__(self) -> str:
        return f"Holdings({self.place}: {len(self.folders)} folders, {len(self.shards)} shards)"


class Copy(NamedTuple):
    """One copy of a record, open for reading: ``files`` are its files' names."""

    key: str
    where: str
    files: frozenset[str]
    read: Callable[[str], bytes]


class _Batch(NamedTuple):
    """Records that one job reads: of a shard, or (None) folders."""

    shard: str | None
    entries: tuple[RecordEntry, ...]


class _Inside(NamedTuple):
    """A shard or a folder that may be a record's."""

    place: Place
    is_folder: bool


def look(split: Place, jobs: int, report: Report) -> Holdings:
    """Look into a split; one that is not there holds nothing.

    Raises:
        StoreError: a store or folder cannot be read.
    """
    return _look(split, _inside(split) if facts(split) is not None else [], jobs, report)


def find(texts: Iterable[str], jobs: int, report: Report) -> list[Holdings]:
    """Look into datasets, splits, record folders, shards or patterns of them.

    One answer a folder: of a dataset train/ first, then eval/, then others by name. Indexes that a pattern names along
    with their shards are left out.

    Raises:
        DatasetError: one names nothing that holds records.
        StoreError: as :func:`look`.
    """
    found: dict[Place, dict[str, _Inside]] = {}
    for place in dict.fromkeys(place for text in texts for place in _expanded(text)):
        for split, inside in _named(place):
            found.setdefault(split, {}).update({each.place.name: each for each in inside})
    held = [_look(split, list(found[split].values()), jobs, report) for split in sorted(found, key=_order)]
    for one in held:
        if not one.folders and not one.shards and not one.damage:
            _refuse_above(one.place)
            raise DatasetError(
                f"{one.place}: holds no record folders (KEY/0000_C.png, KEY/0000_M.png, …) and no shards; make records "
                "with: vshard generate"
            )
    return held


def refuse_dataset(place: Place) -> None:
    """Refuse the folder of a dataset where a split is wanted; one that is not there or holds shards is let pass.

    Raises:
        DatasetError: it holds splits.
    """
    there = facts(place)
    entries = list_folder(place) if there is not None and there.is_folder else []
    splits = _splits_of(entries)
    if splits and not any(names.is_shard(entry.name) for entry in entries):
        raise DatasetError(_choose_below(place, "split", splits))


def read_each(
    held: Holdings, keys: Iterable[str], work: Callable[[Copy], Result], jobs: int, report: Report
) -> dict[str, Result | VshardError]:
    """Give ``work(copy)`` of each record by key, or the RecordError or ShardError that came of reading it.

    Raises:
        StoreError: a store cannot be reached.
    """
    wanted = set(keys)
    chosen: dict[str, list[RecordEntry]] = {}
    entries = held.entries()
    for key, (shard, entry) in entries.items():
        if key in wanted:
            chosen.setdefault(shard, []).append(entry)
    batches = [
        _Batch(shard, part)
        for shard, some in chosen.items()
        for part in _parts(some, len(some) if is_compressed(shard) else _RECORDS_A_JOB)
    ]
    loose = [
        RecordEntry(key, "", tuple(Member(name, 0, size) for name, size in held.folders[key].items()))
        for key in sorted(wanted & held.folders.keys() - entries.keys())
    ]
    batches += [_Batch(None, part) for part in _parts(loose, _RECORDS_A_JOB)]
    if not batches:
        return {}
    report.start(f"reading {held.place}", sum(len(batch.entries) for batch in batches), "records")
    parts = run_jobs(lambda batch, meter: _read_batch(held, batch, work, meter), batches, jobs, report)
    report.finish()
    return {key: result for part in parts for key, result in part.items()}


def check_whole(held: Holdings, keys: Iterable[str], jobs: int, report: Report) -> None:
    """Read each record of ``keys``, in its folder and in its shard, and check that it is whole.

    Raises:
        RecordError: one is not.
        StoreError: a store cannot be reached.
    """
    wanted = set(keys)
    for form in (replace(held, folders={}), replace(held, shards={})):
        for told in read_digests(form, wanted, jobs, report).values():
            if isinstance(told, VshardError):
                raise RecordError(f"{told}; nothing was moved; {REPAIR}") from told


def read_digests(
    held: Holdings, keys: Iterable[str], jobs: int, report: Report
) -> dict[str, str | VshardError]:
    """Read each record whole: its :func:`digest_of`, or why it is none, by key.

    Raises:
        StoreError: a store cannot be reached.
    """

    def work(copy: Copy) -> str:
        contents = {name: copy.read(name) for name in copy.files}
        from_files(copy.key, contents, copy.where)
        return digest_of(contents)

    return read_each(held, keys, work, jobs, report)


def digest_of(contents: Mapping[str, bytes]) -> str:
    """Give the SHA-256 of a record's files, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name} {len(contents[name])}\n".encode())
        digest.update(contents[name])
    return digest.hexdigest()


def _parts(entries: Sequence[RecordEntry], size: int) -> list[tuple[RecordEntry, ...]]:
    left = iter(entries)
    return list(iter(lambda: tuple(islice(left, size)), ()))


def _named(place: Place) -> list[tuple[Place, list[_Inside]]]:
    """Give the folders that a user's word stands for, and what in them is meant."""
    there = facts(place)
    if there is None:
        raise DatasetError(f"{place}: no such folder or file; check the path")
    if not there.is_folder:
        if not names.is_shard(place.name):
            raise DatasetError(f"{place}: is no shard and no folder; a shard's name ends in .tar or .tar.zst")
        return [(place.parent, [_Inside(place, False)])]
    entries = list_folder(place)
    if any(names.is_frame_or_mask(entry.name) for entry in entries):
        return [(place.parent, [_Inside(place, True)])]
    splits = [place / name for name in _splits_of(entries)]
    return [(split, _inside(split)) for split in splits] or [(place, _inside(place))]


def _expanded(text: str) -> list[Place]:
    places = expand(text)
    return [place for place in places if not is_index(place.name)] or places


def _order(split: Place) -> tuple[str, int, str]:
    place = SPLITS.index(split.name) if split.name in SPLITS else len(SPLITS)
    return str(split.parent), place, str(split)


def _refuse_above(folder: Place) -> None:
    """Refuse the folder above some datasets."""
    below = [folder / entry.name for entry in list_folder(folder) if entry.is_folder]
    datasets = [place.name for place in below if _splits_of(list_folder(place))]
    if datasets:
        raise DatasetError(_choose_below(folder, "dataset", datasets))


def _splits_of(entries: Sequence[Entry]) -> list[str]:
    folders = {entry.name for entry in entries if entry.is_folder}
    return [name for name in SPLITS if name in folders]


def _choose_below(folder: Place, what: str, found: Sequence[str]) -> str:
    if len(found) == 1:
        return f"{folder}: holds the {what} {found[0]}; give that: {folder / found[0]}"
    told = [*found[:_MOST_TOLD], f"{len(found) - _MOST_TOLD} more"] if len(found) > _MOST_TOLD + 1 else found
    several = f"{', '.join(told[:-1])} and {told[-1]}"
    return f"{folder}: holds the {what}s {several}; give one of them: {folder / found[0]}"


def _inside(split: Place) -> list[_Inside]:
    """Give the shards of a split, plain ones first, and all its folders but our own."""

    def last(entry: Entry) -> tuple[bool, bool, str]:
        return entry.is_folder, is_compressed(entry.name), entry.name

    return [
        _Inside(split / entry.name, entry.is_folder)
        for entry in sorted(list_folder(split), key=last)
        if (entry.name != names.STATE_FOLDER if entry.is_folder else names.is_shard(entry.name))
    ]


def _look(split: Place, inside: Sequence[_Inside], jobs: int, report: Report) -> Holdings:
    looked = run_jobs(lambda each, _meter: _look_into(each), inside, jobs, report)
    folders: dict[str, dict[str, int]] = {}
    shards: dict[str, ShardIndex] = {}
    damage: dict[str, VshardError] = {}
    for each, found in zip(inside, looked, strict=True):
        if isinstance(found, VshardError):
            damage[each.place.name] = found
        elif isinstance(found, ShardIndex):
            shards[each.place.name] = found
        elif found:
            folders[each.place.name] = found
    return Holdings(split, folders, shards, damage)


def _look_into(inside: _Inside) -> dict[str, int] | ShardIndex | VshardError:
    """Give a shard's index, or a folder's files by name, none where it is no record's."""
    place = inside.place
    if not inside.is_folder:
        try:
            return load_index(place)
        except ShardError as error:
            return error
    files = {entry.name: entry.size_bytes for entry in list_folder(place) if is_record_file(entry.name)}
    if not any(map(names.is_frame_or_mask, files)):
        return {}
    if not names.is_record_key(place.name):
        return RecordError(
            f"{place}: this record's name may hold only A-Z a-z 0-9 _ - and {names.KEY_LENGTH_MAX} characters; "
            "rename the folder"
        )
    return files


def _read_batch(
    held: Holdings, batch: _Batch, work: Callable[[Copy], Result], meter: Meter
) -> dict[str, Result | VshardError]:
    found: dict[str, Result | VshardError] = {}

    def take(entry: RecordEntry, where: str, read: Callable[[str], bytes]) -> None:
        try:
            if not is_whole(entry):
                raise RecordError(
                    f"{where}: is not whole (each frame once with its mask, from 0000 on); see: vshard verify"
                )
            found[entry.key] = work(Copy(entry.key, where, frozenset(m.file for m in entry.members), read))
        except (RecordError, ShardError) as error:
            found[entry.key] = error
        meter.add(1)

    if batch.shard is None:
        for entry in batch.entries:
            folder = held.place / entry.key
            take(entry, str(folder), _folder_reader(folder))
        return found
    shard = held.place / batch.shard
    try:
        if is_compressed(shard.name):
            _stream(shard, {entry.key for entry in batch.entries}, take)
        else:
            with open_reading(shard) as file:
                for entry in batch.entries:
                    where = f"{shard}:{entry.key}"
                    take(entry, where, _member_reader(file, entry, where))
    except ShardError as error:
        found |= {entry.key: error for entry in batch.entries if entry.key not in found}
    return found


def _stream(
    shard: Place, wanted: set[str], take: Callable[[RecordEntry, str, Callable[[str], bytes]], None]
) -> None:
    """Read through a compressed shard, in which nothing can be looked up."""
    with open_shard(shard) as opened:
        for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
            if entry.key in wanted:
                take(entry, f"{shard}:{entry.key}", stored.contents.__getitem__)


def _member_reader(file: BinaryIO, entry: RecordEntry, where: str) -> Callable[[str], bytes]:
    """Give a reader of a record's files in a plain shard."""
    members = {member.file: member for member in entry.members}

    def read(name: str) -> bytes:
        member = members[name]
        file.seek(member.offset)
        data = file.read(member.length)
        if len(data) < member.length:
            raise ShardError(f"{where}: is cut off inside {name}; see: vshard verify")
        return data

    return read


def _folder_reader(folder: Place) -> Callable[[str], bytes]:
    """Give a reader of the files in a record's folder."""

    def read(name: str) -> bytes:
        place = folder / name
        if not isinstance(place, Path):
            return read_file(place, MAX_FILE_BYTES)
        try:
            return read_plain_file(place)
        except OSError as error:
            raise RecordError(f"{place}: cannot be read ({error.strerror}); check the record") from error

    return read
