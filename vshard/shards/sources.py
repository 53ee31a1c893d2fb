"""Where records are: in folders of record folders, in shards, here or in a store.

In: what a user names, a folder, a shard or a pattern. Out: a :class:`SourceRecord` each, with its size, before any of
it is read. A folder stands for its record folders; if it has none, for its shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DatasetError, RecordError, ShardError
from ..base.files import writing
from ..base.report import Report
from ..base.stores import Entry, Place, expand, facts, list_folder, open_reading
from ..records import names
from ..records.record import (
    Record,
    folder_files,
    from_files,
    holds_frames,
    is_record_file,
    list_record_folders,
    read_folder,
)
from .contents import is_compressed, open_shard
from .image import member_bytes
from .index import RecordEntry, load_index, read_entry

# A block of 512 bytes: metadata made from the pictures has about 200.
DERIVED_BYTES_MOST = 512


@dataclass(frozen=True)
class SourceRecord:
    """One record and where it is: its folder, or its entry in a shard.

    ``shard_bytes`` is what it takes in a shard. ``stamp`` changes when its files may have changed. ``origin`` is the
    folder or shard that the user named; ``place`` may be a copy.
    """

    key: str
    origin: Place
    place: Place
    entry: RecordEntry | None
    shard_bytes: int
    stamp: str


def is_index(name: str) -> bool:
    """Tell whether a file is a shard's index; a pattern of shards names it along."""
    return name.endswith(names.INDEX_SUFFIX) and names.is_shard(name.removesuffix(names.INDEX_SUFFIX))


def list_shards(folder: Place) -> list[Place]:
    """Give the shards that lie directly in ``folder``, sorted by name, compressed ones too."""
    return [
        folder / entry.name
        for entry in list_folder(folder)
        if not entry.is_folder and names.is_shard(entry.name)
    ]


def find_shards(texts: Iterable[str]) -> list[Place]:
    """Give the shards that ``texts`` name: files, patterns, or folders of shards.

    Raises:
        ShardError: one is not there, or is neither a shard nor a folder that holds some.
    """
    found: list[Place] = []
    for place in (place for text in texts for place in expand(text) if not is_index(place.name)):
        entry = facts(place)
        if entry is None:
            raise ShardError(f"{place}: no such file; check the path")
        if not entry.is_folder:
            found.append(_check_shard(place))
            continue
        shards = list_shards(place)
        if not shards:
            raise ShardError(
                f"{place}: this folder holds no shard (*.tar, *.tar.zst); give shards or their folder"
            )
        found += shards
    return list(dict.fromkeys(found))


def find_records(texts: Iterable[str], new_folder: Callable[[], Path], report: Report) -> list[SourceRecord]:
    """Give the records that ``texts`` name, sorted by key.

    Args:
        texts: folders, shards, or patterns of them.
        new_folder: makes a folder for the unpacked bytes of a compressed shard.
        report: told of records and files that are left out.

    Raises:
        DatasetError: there is none, or two of one key differ.
        ShardError: a shard is damaged or not there.
        RecordError: a record folder is not as it must be.
    """
    found: dict[str, SourceRecord] = {}
    odd: list[Place] = []
    twice = 0
    named = (place for text in texts for place in expand(text) if not is_index(place.name))
    for place in dict.fromkeys(named):
        for record in _records_at(place, new_folder, report, odd):
            other = found.setdefault(record.key, record)
            twice += other is not record
            if other is not record and read_source(other).files() != read_source(record).files():
                raise DatasetError(
                    f"{record.place}: record {record.key} is in {other.place} too, with other contents; keep one"
                )
    if twice:
        report.say(
            f"the sources hold {twice} records more than once, with the same contents; each is taken once"
        )
    if odd:
        report.warn(f"{len(odd)} files that are no record's are left out, the first is {odd[0]}")
    folded: dict[str, str] = {}
    for key in sorted(found):
        if folded.setdefault(key.lower(), key) != key:
            raise DatasetError(
                f"{found[key].place}: records {folded[key.lower()]} and {key} differ only by case; rename one"
            )
    return [found[key] for key in sorted(found)]


def read_source(source: SourceRecord) -> Record:
    """Read a record's files.

    Raises:
        RecordError: it is damaged, or a file is larger than 256 MiB.
        ShardError: its shard is not what its index says.
    """
    if source.entry is None:
        return read_folder(source.place)
    try:
        with open_reading(source.place) as file:
            contents = read_entry(file, source.entry, str(source.place)).contents
        return from_files(source.key, contents, f"{source.place}:{source.key}")
    except RecordError as error:
        raise ShardError(f"{error}; all damage: vshard verify {source.origin}") from error


def source_files(source: SourceRecord) -> Iterable[tuple[str, bytes]]:
    """Give a record's files one after the other; see :func:`read_source`."""
    return folder_files(source.place) if source.entry is None else read_source(source).files().items()


def fingerprint_of(records: Iterable[SourceRecord]) -> str:
    """Give a digest that changes when a record, its files' sizes or their stamps change."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(
            f"{record.key} {record.shard_bytes} {record.stamp}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _records_at(
    place: Place, new_folder: Callable[[], Path], report: Report, odd: list[Place]
) -> list[SourceRecord]:
    there = facts(place)
    if there is None:
        raise DatasetError(f"{place}: no such folder or file; check the path")
    if not there.is_folder:
        return _in_shard(_check_shard(place), there, new_folder)
    if holds_frames(place):
        return [_in_folder(place, odd)]
    folders, shards = list_record_folders(place), list_shards(place)
    if not folders and not shards:
        raise DatasetError(
            f"{place}: holds no record folders (KEY/0000_C.png, KEY/0000_M.png, …) and no shards; give a split such as "
            "DATA/train, or make records with: vshard generate"
        )
    if not folders:
        return [record for shard in shards for record in _records_at(shard, new_folder, report, odd)]
    keys = {folder.name for folder in folders}
    left = sum(entry.key not in keys for shard in shards for entry in load_index(shard).records)
    if left:
        report.warn(
            f"{place}: {left} records of its shards have no folder there and are left out; to take them name the "
            f"shards too: {place / '*.tar'}"
        )
    return [_in_folder(folder, odd) for folder in folders]


def _in_folder(folder: Place, odd: list[Place]) -> SourceRecord:
    entries = list_folder(folder)
    ours = [entry for entry in entries if is_record_file(entry.name)]
    odd += [folder / entry.name for entry in entries if not is_record_file(entry.name)]
    sizes = [entry.size_bytes for entry in ours]
    if not any(entry.name == names.METADATA_FILE for entry in ours):
        sizes.append(DERIVED_BYTES_MOST)
    stamp = " ".join(f"{entry.name} {entry.size_bytes} {entry.stamp}" for entry in ours)
    return SourceRecord(folder.name, folder, folder, None, sum(map(member_bytes, sizes)), stamp)


def _in_shard(shard: Place, there: Entry, new_folder: Callable[[], Path]) -> list[SourceRecord]:
    place = unpacked(shard, new_folder()) if is_compressed(shard.name) else shard
    records = []
    for entry in load_index(shard).records:
        sizes = [member.length for member in entry.members]
        if not entry.metadata_digest:
            sizes.append(DERIVED_BYTES_MOST)
        stamp = f"{there.size_bytes} {there.stamp}"
        records.append(SourceRecord(entry.key, shard, place, entry, sum(map(member_bytes, sizes)), stamp))
    return records


def unpacked(shard: Place, folder: Path) -> Path:
    """Write the tar inside a compressed shard to a file in ``folder``, for reading it in any order."""
    target = folder / f"unpacked{names.SHARD_SUFFIX}"
    with writing(target), open_shard(shard) as packed, target.open("wb") as file:
        while block := packed.read(1 << 20):
            file.write(block)
    return target


def _check_shard(place: Place) -> Place:
    if not names.is_shard(place.name):
        raise ShardError(f"{place}: is no shard and no folder; a shard's name ends in .tar or .tar.zst")
    return place
