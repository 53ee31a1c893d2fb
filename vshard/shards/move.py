"""Records on their way from one split to another, as a plan says that lies on the disk meanwhile.

New shards are made first, then the old ones are written without what is in the new ones, then folders move. Each step
is whole or not at all, so at every moment each record is whole in one of the splits or in both, and doing the plan
again from its beginning does what is left. In a store a folder is copied file by file before it is removed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base.errors import DatasetError, OutputError, ShardError
from ..base.files import sync_folder, writing
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import (
    Place,
    facts,
    list_folder,
    make_place,
    open_reading,
    read_file,
    remove,
    write_whole,
    writing_whole,
)
from ..records import names
from ..records.record import MAX_FILE_BYTES
from .contents import StoredRecord, is_compressed, open_shard, read_records
from .holdings import Holdings
from .index import (
    MAX_INDEX_BYTES,
    RecordEntry,
    index_place,
    load_index,
    read_entry,
    read_index,
    whole_records,
    write_index,
)
from .tar import END_MARK
from .write import ShardStream, member_bytes

SCHEMA = "vshard.split/1"
STEM = "moved"
# Shards and folders that are worked on at a time.
AT_ONCE = 4


@dataclass(frozen=True)
class NewShard:
    """A shard to be made of records of others: ``sources`` are keys by the name of the shard they lie in."""

    name: str
    size_bytes: int
    sources: Mapping[str, Sequence[str]]

    @property
    def keys(self) -> list[str]:
        """Its records in order."""
        return [key for some in self.sources.values() for key in some]


@dataclass(frozen=True)
class Plan:
    """What moves.

    ``choice``: the options it was made with. ``keys``: all that move. ``folders``: those that have a folder.
    ``shards``: the names of those that hold some.
    """

    choice: Mapping[str, Any]
    keys: tuple[str, ...]
    folders: tuple[str, ...]
    shards: tuple[str, ...]
    made: tuple[NewShard, ...]

    def to_bytes(self) -> bytes:
        """Write the plan as JSON."""
        return (json.dumps({"schema": SCHEMA} | asdict(self), indent=1, sort_keys=False) + "\n").encode()


def plan_move(
    keys: Sequence[str], source: Holdings, target: Holdings, shard_bytes: int, choice: Mapping[str, Any]
) -> Plan:
    """Plan how ``keys`` move from ``source`` to ``target``; new shards there have at most ``shard_bytes``.

    Raises:
        DatasetError: a record lies in two shards with different contents, or two names differ only by case.
        OutputError: a folder's name is taken, or it cannot be moved because the splits are on different disks.
    """
    moving = set(keys)
    _check_names({*source.forms(), *target.forms()})
    _check_copies(source, moving)
    folders = tuple(key for key in keys if key in source.folders)
    _check_room(folders, source.place, target.place)
    held = {name: moving & {entry.key for entry in index.records} for name, index in source.shards.items()}
    return Plan(
        choice,
        tuple(keys),
        folders,
        tuple(name for name, some in held.items() if some),
        tuple(_fill(source, moving, _free_stem(target.place), shard_bytes)),
    )


def read_plan(place: Place) -> Plan | None:
    """Read the plan at ``place``; None where none is.

    Raises:
        DatasetError: it is not one.
    """
    if facts(place) is None:
        return None
    try:
        content = json.loads(read_file(place, MAX_INDEX_BYTES))
        if content.pop("schema") != SCHEMA:
            raise ValueError("unknown schema")
        made = tuple(NewShard(**shard) for shard in content.pop("made"))
        plan = Plan(made=made, **{name: _tuple(value) for name, value in content.items()})
        keys = {*plan.keys, *plan.folders, *(key for shard in made for key in shard.keys)}
        shards = {*plan.shards, *(name for shard in made for name in (shard.name, *shard.sources))}
        # Whoever made the dataset may have written it: no name leads out of the splits.
        if not all(map(names.is_record_key, keys)) or not all(map(_is_shard_here, shards)):
            raise ValueError("names what is no record and no shard")
        if {"eval", "by_video", "seed"} != plan.choice.keys():
            raise ValueError("does not tell its options")
        return plan
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{place}: is not the plan of a split ({error}); remove this file, no record is lost by it"
        ) from error


def move(plan: Plan, source: Place, target: Place, report: Report) -> None:
    """Do what is left of ``plan``.

    Raises:
        ShardError: a shard is damaged, or a record is no longer there.
        OutputError, StoreError: something cannot be written.
    """
    if isinstance(target, Path):
        make_place(target)
    if plan.made:
        report.start(f"writing shards of {target}", sum(shard.size_bytes for shard in plan.made), "bytes")
        run_jobs(lambda shard, meter: _make(shard, source, target, meter), plan.made, AT_ONCE, report)
    sizes = {name: entry.size_bytes for name in plan.shards if (entry := facts(source / name)) is not None}
    leaving = frozenset(plan.keys)
    if sizes:
        report.start(f"writing shards of {source} anew", sum(sizes.values()), "bytes")
        run_jobs(lambda name, meter: _take_out(source / name, leaving, meter), sizes, AT_ONCE, report)
    if plan.folders:
        report.start(f"moving folders of {source}", len(plan.folders), "records")
        run_jobs(
            lambda key, meter: _move_folder(source / key, target / key, meter), plan.folders, AT_ONCE, report
        )
    report.finish()
    for folder in (source, target):
        if isinstance(folder, Path):
            sync_folder(folder)


def _check_names(keys: Collection[str]) -> None:
    folded: dict[str, str] = {}
    for key in sorted(keys):
        if folded.setdefault(key.lower(), key) != key:
            raise DatasetError(f"records {folded[key.lower()]} and {key} differ only by case; rename one")


def _check_copies(source: Holdings, keys: Collection[str]) -> None:
    """Check that copies of a record in several shards are the same, as far as their indexes tell."""
    seen: dict[str, tuple[str, RecordEntry]] = {}
    for name, index in source.shards.items():
        for entry in index.records:
            other, first = seen.setdefault(entry.key, (name, entry))
            same = entry.metadata_digest == first.metadata_digest and _lengths(entry) == _lengths(first)
            if entry.key in keys and not same:
                raise DatasetError(
                    f"{source.place / name}: record {entry.key} is in {other} too, with other contents; keep one"
                )


def _lengths(entry: RecordEntry) -> dict[str, int]:
    return {member.file: member.length for member in entry.members}


def _check_room(folders: Sequence[str], source: Place, target: Place) -> None:
    for key in folders:
        if facts(target / key) is not None:
            raise OutputError(f"{target / key}: is in the way of the record of this name; move it away")
    if not folders or not isinstance(source, Path) or not isinstance(target, Path) or not target.exists():
        return
    if source.stat().st_dev != target.stat().st_dev:
        raise OutputError(
            f"{target}: is on another disk than {source}, so no folder moves there in one step; bring both to one disk"
        )


def _free_stem(target: Place) -> str:
    """Give a name for new shards that none in ``target`` has: moved, moved2, …"""
    entries = list_folder(target) if facts(target) is not None else []
    taken = {names.shard_stem(entry.name.removesuffix(names.INDEX_SUFFIX)) for entry in entries}
    number = 1
    while (stem := f"{STEM}{number}" if number > 1 else STEM) in taken:
        number += 1
    return stem


def _fill(source: Holdings, keys: Collection[str], stem: str, shard_bytes: int) -> Iterator[NewShard]:
    """Share out the records that lie in shards, in the order of those."""
    sources: dict[str, list[str]] = {}
    size = number = 0
    for key, (name, entry) in source.entries().items():
        if key not in keys:
            continue
        taken = sum(member_bytes(member.length) for member in entry.members)
        if sources and size + taken + len(END_MARK) > shard_bytes:
            yield NewShard(names.shard_file(stem, number), size, sources)
            sources, size, number = {}, 0, number + 1
        sources.setdefault(name, []).append(key)
        size += taken
    if sources:
        yield NewShard(names.shard_file(stem, number), size, sources)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_shard_here(name: str) -> bool:
    return names.is_shard(name) and not {"/", "\\"} & set(name)


def _make(shard: NewShard, source: Place, target: Place, meter: Meter) -> None:
    """Write a new shard and its index, unless they are there."""
    place = target / shard.name
    if facts(place) is not None:
        index = load_index(place)
        if [entry.key for entry in index.records] != shard.keys:
            raise OutputError(f"{place}: is in the way of the shard to be made; move it away")
        if read_index(place) != index:
            write_index(place, index)
        meter.add(shard.size_bytes)
        return
    with writing_whole(place) as file:
        stream = ShardStream(file, place.name)
        for name, keys in shard.sources.items():
            for stored in _picked(source / name, keys):
                stream.add_files(stored.key, stored.contents)
                meter.add(stored.stop - stored.start)
        index = stream.end()
    write_index(place, index)


def _picked(shard: Place, keys: Sequence[str]) -> Iterator[StoredRecord]:
    """Read records of a shard, in the shard's order, which is that of ``keys``."""
    wanted = list(keys)
    if is_compressed(shard.name):
        with open_shard(shard) as opened:
            for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
                if wanted and entry.key == wanted[0]:
                    del wanted[0]
                    yield stored
    else:
        entries = {entry.key: entry for entry in load_index(shard).records}
        with open_reading(shard) as file:
            while wanted and wanted[0] in entries:
                yield read_entry(file, entries[wanted.pop(0)], str(shard))
    if wanted:
        raise ShardError(
            f"{shard}: record {wanted[0]} is not where the plan of the split says; remove the plan (.vshard/split.json "
            "beside the splits, no record is lost by it) and run vshard split again"
        )


def _take_out(shard: Place, leaving: Collection[str], meter: Meter) -> None:
    """Write a shard anew under its name without the records ``leaving``; remove it if none is left."""
    index = load_index(shard)
    staying = sum(entry.key not in leaving for entry in index.records)
    if staying == len(index.records):
        if read_index(shard) != index:
            write_index(shard, index)
        meter.add(index.size_bytes)
        return
    remove(index_place(shard))
    if not staying:
        remove(shard)
        meter.add(index.size_bytes)
        return
    told = 0
    with writing_whole(shard) as file:
        stream = ShardStream(file, shard.name)
        with open_shard(shard) as opened:
            for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
                if entry.key not in leaving:
                    stream.add_files(stored.key, stored.contents)
                meter.add(opened.stored_bytes - told)
                told = opened.stored_bytes
        written = stream.end()
    write_index(shard, written)


def _move_folder(source: Place, target: Place, meter: Meter) -> None:
    """Move a folder at once; in a store its files are copied, then removed."""
    if isinstance(source, Path):
        if source.exists():
            assert isinstance(target, Path)
            with writing(target):
                source.rename(target)
    elif facts(source) is not None:
        files = [entry.name for entry in list_folder(source) if not entry.is_folder]
        for name in files:
            write_whole(target / name, read_file(source / name, MAX_FILE_BYTES))
        for name in files:
            remove(source / name)
    meter.add(1)
