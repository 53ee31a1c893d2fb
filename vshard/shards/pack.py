"""Record folders -> shards, and back, without changing a byte of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DatasetError, OptionError, OutputError, RecordError, ShardError
from ..base.files import make_folder
from ..base.locks import only_one
from ..base.report import Report
from ..records import names
from ..records.record import Record, from_files, list_record_folders, other_files, read_folder, write_record
from .index import ShardIndex, index_path, load_index, scan_shard
from .write import Position, ShardWriter

_SHARD_BYTES_MIN = 1 << 20


@dataclass(frozen=True)
class Packed:
    """What packing made."""

    records: int
    shards: tuple[Path, ...]
    size_bytes: int


def pack(source: Path, output: Path, *, name: str, shard_bytes: int, report: Report) -> Packed:
    """Pack the record folders in ``source`` into ``output/{name}-000000.tar, …``, sorted by key.

    The same folders give the same shards. Shards of that name that are there already are replaced only by the
    same bytes.

    Raises:
        DatasetError: ``source`` holds no record folders.
        OptionError: ``name`` or ``shard_bytes`` is out of its range.
        OutputError: other shards of that name are there, or they cannot be written.
        RecordError: a record is damaged.
    """
    if not names.is_record_key(name):
        raise OptionError(f"--name {name!r}: only A-Z a-z 0-9 _ - are allowed; choose another name")
    if shard_bytes < _SHARD_BYTES_MIN:
        raise OptionError(f"--shard-size {shard_bytes}: allowed is {_SHARD_BYTES_MIN} bytes or more")
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds the record folders")
    folders = list_record_folders(source)
    if not folders:
        raise DatasetError(
            f"{source}: holds no record folders (KEY/0000_C.png, KEY/0000_M.png, …); give a split such as "
            "DATA/train, or make records with: vshard generate"
        )
    make_folder(output)
    state = make_folder(output / names.STATE_FOLDER)
    with only_one(state / f"pack-{name}.lock", f"packing {name}"):
        return _pack(folders, source, output, name, shard_bytes, report)


def _pack(
    folders: list[Path], source: Path, output: Path, name: str, shard_bytes: int, report: Report
) -> Packed:
    scratch = make_folder(output / names.STATE_FOLDER / f"pack-{name}")
    writer = ShardWriter(scratch, name, shard_bytes, Position())
    left_out: list[Path] = []
    report.start(f"packing {source}", len(folders), "records")
    try:
        for done, folder in enumerate(folders, 1):
            writer.add(read_folder(folder))
            left_out += other_files(folder)
            report.advance(done)
        writer.close()
        shards = _move_in(writer.finished, output, name)
    finally:
        writer.abandon()
        _remove_scratch(scratch)
    report.finish()
    if left_out:
        report.warn(f"{len(left_out)} files that are no record's were left out, the first is {left_out[0]}")
    return Packed(len(folders), shards, sum(shard.stat().st_size for shard in shards))


def unpack(shards: list[Path], output: Path, report: Report) -> int:
    """Write every record of ``shards`` as a folder ``output/{key}/``; give how many there were.

    Raises:
        ShardError: a shard is damaged or not in our layout; records before the damage are kept.
        RecordError: a folder of a record's name is there with other contents.
        OutputError: it cannot be written.
    """
    # The tar itself, not the index beside it: what is unpacked is what is there.
    indexes = [scan_shard(shard) for shard in shards]
    total = sum(len(index.records) for index in indexes)
    make_folder(output)
    report.start("unpacking", total, "records")
    done = 0
    for shard, index in zip(shards, indexes, strict=True):
        for record in read_shard(shard, index):
            write_record(output, record)
            done += 1
            report.advance(done)
    report.finish()
    return done


def read_shard(shard: Path, index: ShardIndex) -> Iterator[Record]:
    """Read the records of a shard in order.

    Raises:
        ShardError: the shard is shorter than its index says, or a record in it is damaged.
    """
    with shard.open("rb") as file:
        for entry in index.records:
            contents = {}
            for member in entry.members:
                file.seek(member.offset)
                data = file.read(member.length)
                if len(data) != member.length:
                    raise ShardError(f"{shard}: is cut off inside record {entry.key}; fetch or pack it again")
                contents[member.file] = data
            try:
                yield from_files(entry.key, contents, f"{shard}:{entry.key}")
            except RecordError as error:
                raise ShardError(str(error)) from error


def _move_in(shards: list[Path], output: Path, name: str) -> tuple[Path, ...]:
    """Move finished shards to where they belong, unless others of that name are there."""
    targets = tuple(output / shard.name for shard in shards)
    there = set(output.glob(f"{name}-{'[0-9]' * names.SHARD_DIGITS}{names.SHARD_SUFFIX}"))
    clash = sorted(there - set(targets))
    clash += [
        target
        for shard, target in zip(shards, targets, strict=True)
        if target.exists() and load_index(target).digest != load_index(shard).digest
    ]
    if clash:
        raise OutputError(
            f"{clash[0]}: is there already with other records; remove it or choose another -o or --name"
        )
    for shard, target in zip(shards, targets, strict=True):
        shard.replace(target)
        index_path(shard).replace(index_path(target))
    return targets


def _remove_scratch(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
