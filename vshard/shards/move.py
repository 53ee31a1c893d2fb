"""Records on their way from one split to another, as a plan says that lies on the disk meanwhile.

New shards are made first, then the old ones are written without what is in the new ones, then folders move. Each step
is whole or not at all, so at every moment each record is whole in one of the splits or in both, and doing the plan
again from its beginning does what is left. In a store a folder is copied file by file before it is removed.

Neither the plan nor an index is believed about what may go: a record leaves a shard when the same bytes were read in
the other split, and what stays there is what the shard itself holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base.errors import DatasetError, OutputError, RecordError, ShardError, VshardError
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
from ..records.record import MAX_FILE_BYTES, from_files, read_folder
from .contents import StoredRecord, is_compressed, open_shard, read_records
from .holdings import REPAIR, Holdings, digest_of, look, read_digests
from .image import member_bytes
from .index import (
    MAX_INDEX_BYTES,
    ShardIndex,
    index_place,
    load_index,
    read_entry,
    read_index,
    whole_records,
    write_index,
)
from .tar import END_MARK
from .write import ShardStream

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
        DatasetError: a record lies in two shards, two names differ only by case, or a shard's name cannot be printed.
        OutputError: a folder's name is taken, or it cannot be moved because the splits are on different disks.
    """
    moving = set(keys)
    _check_names({*source.forms(), *target.forms()})
    held = _holders(source, moving)
    folders = tuple(key for key in keys if key in source.folders)
    _check_room(folders, source.place, target.place)
    return Plan(
        choice,
        tuple(keys),
        folders,
        held,
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
        return _parse(json.loads(read_file(place, MAX_INDEX_BYTES)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{place}: is not the plan of a split ({error}); remove this file, no record is lost by it"
        ) from error


def move(plan: Plan, source: Place, target: Place, report: Report) -> None:
    """Do what is left of ``plan``.

    Raises:
        RecordError: a record is damaged.
        ShardError: a shard is damaged, its index is not its own, or a record is no longer there.
        OutputError, StoreError: something cannot be written.
    """
    if isinstance(target, Path):
        make_place(target)
    if plan.made:
        report.start(f"writing shards of {target}", sum(shard.size_bytes for shard in plan.made), "bytes")
        run_jobs(lambda shard, meter: _make(shard, source, target, meter), plan.made, AT_ONCE, report)
    shards = [load_index(source / name) for name in plan.shards if facts(source / name) is not None]
    if shards:
        held = {entry.key for index in shards for entry in index.records}
        there = _find_copies(target, held & {*plan.keys}, report)
        report.start(f"writing shards of {source} anew", sum(index.size_bytes for index in shards), "bytes")
        run_jobs(
            lambda index, meter: _take_out(source / index.shard, index, there, meter), shards, AT_ONCE, report
        )
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


def _holders(source: Holdings, keys: Collection[str]) -> tuple[str, ...]:
    """Give the names of the shards that hold any of ``keys``, each of which may be in one only."""
    found: dict[str, str] = {}
    for name, index in source.shards.items():
        for key in sorted({entry.key for entry in index.records}.intersection(keys)):
            if key in found:
                raise DatasetError(
                    f"{source.place / name}: record {key} is in {found[key]} too; {REPAIR} {source.place}"
                )
            found[key] = name
    shards = tuple(dict.fromkeys(name for name in source.shards if name in found.values()))
    for name in shards:
        if not _is_shard_here(name):
            raise DatasetError(f"{source.place}: shard {name!a} has a name that cannot be printed; rename it")
    return shards


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


def _parse(content: Any) -> Plan:
    """Build a plan of JSON that anybody may have written; a ValueError's text repeats nothing of it."""
    fields = _object(content, "schema", "choice", "keys", "folders", "shards", "made")
    choice = _object(fields["choice"], "eval", "by_video", "seed")
    if fields["schema"] != SCHEMA or not isinstance(fields["made"], list):
        raise ValueError("unknown schema")
    if not (_is_whole_number(choice["eval"]) and _is_whole_number(choice["seed"])):
        raise ValueError("eval and seed are no whole numbers")
    if not isinstance(choice["by_video"], bool):
        raise ValueError("by_video is neither true nor false")
    made = tuple(map(_parse_shard, fields["made"]))
    keys = _names(fields["keys"], names.is_record_key)
    folders = _names(fields["folders"], names.is_record_key)
    into = [key for shard in made for key in shard.keys]
    _names([shard.name.lower() for shard in made], _is_shard_here)
    if not {*folders, *_names(into, names.is_record_key)} <= {*keys}:
        raise ValueError("moves records that are not among its keys")
    return Plan(choice, keys, folders, _names(fields["shards"], _is_shard_here), made)


def _parse_shard(content: Any) -> NewShard:
    fields = _object(content, "name", "size_bytes", "sources")
    name, size, sources = fields["name"], fields["size_bytes"], fields["sources"]
    if not _is_whole_number(size) or not 0 <= size < 1 << 62:
        raise ValueError("size_bytes is no number of bytes")
    if not isinstance(sources, dict) or not all(sources.values()):
        raise ValueError("a new shard has no records")
    _names([name, *sources], _is_shard_here)
    return NewShard(name, size, {shard: _names(some, names.is_record_key) for shard, some in sources.items()})


def _object(value: Any, *fields: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != {*fields}:
        raise ValueError(f"wanted is an object of {', '.join(fields)}")
    return value


def _names(value: Any, is_name: Callable[[str], bool]) -> tuple[str, ...]:
    """Check a list of names: no name may lead out of the splits."""
    if not isinstance(value, list) or not all(isinstance(name, str) and is_name(name) for name in value):
        raise ValueError("names what is no record and no shard")
    if len({*value}) < len(value):
        raise ValueError("names a record or a shard twice")
    return tuple(value)


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_shard_here(name: str) -> bool:
    return names.is_shard(name) and name.isprintable() and not {"/", "\\"} & set(name)


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
                try:
                    from_files(stored.key, stored.contents, f"{source / name}:{stored.key}")
                except RecordError as error:
                    raise RecordError(f"{error}; {REPAIR}") from error
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


def _take_out(shard: Place, index: ShardIndex, there: Mapping[str, str | VshardError], meter: Meter) -> None:
    """Write a shard anew under its name without the records that are ``there``; remove it if none is left."""
    staying = sum(entry.key not in there for entry in index.records)
    if staying == len(index.records):
        if read_index(shard) != index:
            write_index(shard, index)
        meter.add(index.size_bytes)
        return
    if not staying:
        for _ in _staying(shard, index, there, meter):
            pass
        remove(index_place(shard))
        remove(shard)
        return
    with writing_whole(shard) as file:
        stream = ShardStream(file, shard.name)
        for stored in _staying(shard, index, there, meter):
            stream.add_files(stored.key, stored.contents)
        written = stream.end()
        remove(index_place(shard))
    write_index(shard, written)


def _staying(
    shard: Place, index: ShardIndex, there: Mapping[str, str | VshardError], meter: Meter
) -> Iterator[StoredRecord]:
    """Read a shard through; give the records that are not ``there``.

    Raises:
        ShardError: one that is there is another one or damaged, or, at the end, the shard holds other records than its
            index says.
    """
    found = []
    told = 0
    with open_shard(shard) as opened:
        for entry, stored in whole_records(read_records(opened, str(shard)), str(shard)):
            found.append(entry)
            copy = there.get(stored.key)
            if copy is None:
                yield stored
            elif copy != digest_of(stored.contents):
                problem = copy if isinstance(copy, VshardError) else "it is not the same there"
                raise ShardError(
                    f"{shard}: record {stored.key} stays, as it is not whole in the other split ({problem}); {REPAIR}"
                )
            meter.add(opened.stored_bytes - told)
            told = opened.stored_bytes
    if tuple(found) != index.records:
        raise ShardError(
            f"{shard}: holds {len(found)} records, other than the {len(index.records)} of its index; nothing was taken "
            f"out of it; build the index again with: vshard index --force {shard}"
        )


def _find_copies(target: Place, keys: Collection[str], report: Report) -> dict[str, str | VshardError]:
    """Read ``keys`` where they went: a digest of each record, or what is wrong with it."""
    missing = {key: RecordError(f"{target}: holds no record {key}") for key in keys}
    return {**missing, **read_digests(look(target, AT_ONCE, report), keys, AT_ONCE, report)} if keys else {}


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
        read_folder(target)
        for name in files:
            remove(source / name)
    meter.add(1)
