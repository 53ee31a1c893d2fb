"""Records -> a series of shards, the same for the same records however many jobs make it.

Everything is planned before a byte is written. Local shards are made in ``OUT/.vshard/pack-NAME/`` and move to ``OUT``
when all are whole; in a store each appears when it is whole. A note of what they are made of lies there meanwhile: a
rerun of the same command takes what is finished, and begins anew if a source has changed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ..base.ahead import map_ahead
from ..base.errors import DatasetError, OptionError, OutputError, RecordError, ShardError
from ..base.files import check_folder, make_folder, make_own_folder
from ..base.jobs import Meter, run_jobs
from ..base.locks import only_one
from ..base.report import Report
from ..base.stores import Place, facts, list_folder, make_place, read_file, remove, write_whole, writing_whole
from ..records import names
from ..records.png import recode_png
from ..records.record import list_record_folders
from .image import Images
from .index import MAX_INDEX_BYTES, ShardIndex, index_place, load_index, read_index, write_index
from .plan import PackOptions, check_pack_options, plan_shards
from .sources import SourceRecord, find_records, fingerprint_of, list_shards, source_files
from .write import ShardStream

NOTE_SCHEMA = "vshard.pack/1"


@dataclass(frozen=True)
class Packed:
    """The series that is there after packing; ``made`` counts the shards that were not there before."""

    records: int
    shards: tuple[Place, ...]
    size_bytes: int
    made: int


class _PlannedShard(NamedTuple):
    """One shard to be made at ``work``, which belongs at ``target``."""

    records: tuple[SourceRecord, ...]
    work: Place
    target: Place


def pack(options: PackOptions, report: Report) -> Packed:
    """Pack records into ``output/{name}-000000.tar, …``.

    The same records and options give the same shards. Shards of that name that are there already stay if they are the
    same; others are refused.

    Raises:
        DatasetError: the sources hold no record, or two of one name that differ.
        OptionError: an option is out of its range.
        OutputError: other shards of that name are there, or they cannot be written.
        RecordError: a record is damaged.
        ShardError: a shard among the sources is damaged.
        StoreError: a store cannot be reached, or not be written to.
    """
    check_pack_options(options)
    with ExitStack() as stack:

        def new_folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vshard-")))

        records = find_records(options.sources, new_folder, report)
        if isinstance(options.output, Path):
            check_folder(options.output)
        make_place(options.output)
        stack.enter_context(_alone(options))
        return _pack(records, options, report)


def _pack(records: list[SourceRecord], options: PackOptions, report: Report) -> Packed:
    work = _work_place(options)
    shards = [
        _PlannedShard(planned, work / name, options.output / name)
        for number, planned in enumerate(plan_shards(records, options))
        for name in [names.shard_file(options.name, number, options.suffix)]
    ]
    _warn_of_eval(records, options, report)
    note = _note(records, options)
    resumed = _read_note(_note_place(options)) == note
    if not resumed:
        _remove_work(options)
        if options.overwrite:
            _remove_series(records, options)
    _check_free(shards, records, options)
    total = sum(record.shard_bytes for record in records)
    try:
        if not resumed:
            _check_same(shards, options, report)
            if isinstance(work, Path):
                make_folder(work)
            write_whole(_note_place(options), note)
        report.start(f"packing {len(records)} records", total, "bytes")
        made = run_jobs(lambda shard, meter: _make(shard, options, meter), shards, options.jobs, report)
        if isinstance(work, Path):
            _move_in(shards)
        _remove_work(options)
    except (RecordError, ShardError, DatasetError, OptionError):
        # What is left cannot be used: with a source mended or taken out, everything is planned anew.
        _remove_work(options)
        raise
    report.finish()
    targets = tuple(shard.target for shard in shards)
    sizes = [entry.size_bytes for entry in map(facts, targets) if entry is not None]
    return Packed(len(records), targets, sum(sizes), sum(made))


def _make(shard: _PlannedShard, options: PackOptions, meter: Meter) -> bool:
    """Write one shard and its index; tell whether they were not there."""
    if _is_finished(shard.work) or _is_finished(shard.target):
        meter.add(sum(record.shard_bytes for record in shard.records))
        return False
    with writing_whole(shard.work) as file:
        index = _write(shard, file, options, meter)
    write_index(shard.work, index)
    return True


def _write(shard: _PlannedShard, file: BinaryIO, options: PackOptions, meter: Meter) -> ShardIndex:
    stream, lent = ShardStream(file, shard.target.name), Images()
    images = map_ahead(lambda source: lent.make(source.key, _files(source, options)), iter(shard.records), 1)
    try:
        for source, image in zip(shard.records, images, strict=True):
            stream.add_image(image)
            meter.add(source.shard_bytes)
    finally:
        images.close()
    return stream.end()


def _files(source: SourceRecord, options: PackOptions) -> Iterator[tuple[str, bytes]]:
    for file, data in source_files(source):
        recoded = options.recode and file != names.METADATA_FILE
        yield file, recode_png(data, f"{source.place}/{file}") if recoded else data


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> int:
        """Forget ``data``."""
        return len(data)


def _check_same(shards: Sequence[_PlannedShard], options: PackOptions, report: Report) -> None:
    """Check that shards that are there already, made by an earlier command, are those that would be made.

    Raises:
        OutputError: one is not.
    """
    there = [shard for shard in shards if facts(shard.target) is not None]
    if not there:
        return

    def compare(shard: _PlannedShard, meter: Meter) -> None:
        wanted = _write(shard, cast(BinaryIO, _Nowhere()), options, meter)
        if load_index(shard.target).digest != wanted.digest:
            raise _clash(shard.target)

    report.start("comparing shards", sum(r.shard_bytes for shard in there for r in shard.records), "bytes")
    run_jobs(compare, there, options.jobs, report)


def _check_free(
    shards: Sequence[_PlannedShard], records: Sequence[SourceRecord], options: PackOptions
) -> None:
    """Check that no other shard of this name, and none with one of these records, is in the output folder."""
    targets = {shard.target.name for shard in shards}
    keys = {record.key for record in records}
    # A folder of a store is there only when something is in it.
    for shard in list_shards(options.output) if facts(options.output) is not None else ():
        if shard.name in targets:
            continue
        if names.shard_stem(shard.name) == options.name:
            raise _clash(shard)
        twice = next((entry.key for entry in load_index(shard).records if entry.key in keys), None)
        if twice is not None:
            raise OutputError(
                f"{shard}: holds record {twice} already, and a folder of shards may hold a record only once; choose "
                "another -o"
            )


def _warn_of_eval(records: Sequence[SourceRecord], options: PackOptions, report: Report) -> None:
    """Warn of records that eval/ beside the output has too: a split took them out of what is packed again."""
    beside = options.output.parent / "eval"
    if options.output.name == beside.name or facts(beside) is None:
        return
    keys = {folder.name for folder in list_record_folders(beside)}
    keys |= {entry.key for shard in list_shards(beside) for entry in load_index(shard).records}
    shared = [record.key for record in records if record.key in keys]
    if shared:
        report.warn(
            f"{beside}: has {len(shared)} of these records too, the first is {shared[0]}; training counts them for "
            "eval only: pack first, then split"
        )


def _clash(shard: Place) -> OutputError:
    return OutputError(
        f"{shard}: is there already with other records; remove it, choose another -o or --name, or give --overwrite"
    )


def _is_finished(shard: Place) -> bool:
    """Tell whether a shard is there whole with its index; the index is written last."""
    there, index = facts(shard), read_index(shard)
    return there is not None and index is not None and index.size_bytes == there.size_bytes


def _move_in(shards: Sequence[_PlannedShard]) -> None:
    """Move finished local shards to where they belong; a rerun moves what is left."""
    for shard in shards:
        for work, target in (
            (shard.work, shard.target),
            (index_place(shard.work), index_place(shard.target)),
        ):
            assert isinstance(work, Path)
            assert isinstance(target, Path)
            if work.exists():
                work.replace(target)


def _note(records: Sequence[SourceRecord], options: PackOptions) -> bytes:
    """Say what a series is made of: equal notes, equal shards."""
    asked = {
        key: value
        for key, value in asdict(options).items()
        if key in ("name", "shard_bytes", "shard_records", "shuffle", "compress", "recode")
    }
    content = {"schema": NOTE_SCHEMA, "records": len(records), "inputs": fingerprint_of(records), **asked}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _read_note(place: Place) -> bytes | None:
    return read_file(place, MAX_INDEX_BYTES) if facts(place) is not None else None


def _state_place(options: PackOptions) -> Place:
    return options.output / names.STATE_FOLDER


def _work_place(options: PackOptions) -> Place:
    """Give where shards are made: beside their place, or at it in a store, where nothing can be moved."""
    local = isinstance(options.output, Path)
    return _state_place(options) / f"pack-{options.name}" if local else options.output


def _note_place(options: PackOptions) -> Place:
    if isinstance(options.output, Path):
        return _work_place(options) / "note.json"
    return _state_place(options) / f"pack-{options.name}.json"


def _remove_work(options: PackOptions) -> None:
    """Remove the note and whatever local shards were not moved in."""
    work = _work_place(options)
    if isinstance(work, Path):
        shutil.rmtree(work, ignore_errors=True)
        make_folder(work.parent)
    else:
        remove(_note_place(options))


def _remove_series(records: Sequence[SourceRecord], options: PackOptions) -> None:
    """Remove every shard of this name with its index.

    Raises:
        OutputError: a source is among them.
    """
    output = _real(options.output)
    for origin in {record.origin for record in records}:
        if names.shard_stem(origin.name) == options.name and _real(origin.parent) == output:
            raise OutputError(
                f"{origin}: is packed itself, and --overwrite would remove it first; choose another -o or --name"
            )
    for entry in list_folder(options.output) if facts(options.output) is not None else ():
        if names.shard_stem(entry.name.removesuffix(names.INDEX_SUFFIX)) == options.name:
            remove(options.output / entry.name)


def _real(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


@contextmanager
def _alone(options: PackOptions) -> Iterator[None]:
    """Keep a second local pack into the same folder out; a store has no locks."""
    state = _state_place(options)
    lock = (
        only_one(make_own_folder(state) / "pack.lock", "packing into this folder")
        if isinstance(state, Path)
        else nullcontext()
    )
    with lock:
        yield
