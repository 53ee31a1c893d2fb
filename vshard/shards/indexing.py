"""Builds the indexes of shards, ours and others', by reading them, and tells what a record has lost by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import OutputError, ShardError
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import Place, facts
from ..records import names
from .index import RecordEntry, ShardIndex, index_place, index_possible, read_index, scan_shard, write_index

METADATA_LOST = "its metadata is lost"


@dataclass(frozen=True)
class Indexed:
    """What became of one shard: ``index`` is None where its shard is damaged, which ``damage`` says.

    ``built`` tells a new index from one that was up to date.
    """

    shard: Place
    index: ShardIndex | None
    built: bool
    damage: str | None


def build_indexes(
    shards: Sequence[Place], jobs: int, report: Report, *, force: bool = False
) -> tuple[Indexed, ...]:
    """Build the index of each shard that has none or one that does not fit it, or of all with ``force``.

    Raises:
        ShardError: one is not there.
        OutputError: an index cannot be written, or a link is in its place.
        StoreError: a store cannot be reached, or can only be read.
    """
    sizes = {shard: _size_bytes(shard) for shard in shards}

    def build(shard: Place, meter: Meter) -> Indexed:
        index = None if force else read_index(shard)
        fits = index is not None and index.size_bytes == sizes[shard] and index_possible(index)
        damage = None
        try:
            if not fits:
                check_no_link(index_place(shard))
                index = scan_shard(shard)
                write_index(shard, index)
        except ShardError as error:
            index, damage = None, str(error)
        meter.add(sizes[shard])
        return Indexed(shard, index, not fits, damage)

    report.start("indexing", sum(sizes.values()), "bytes")
    done = run_jobs(build, shards, jobs, report)
    report.finish()
    return tuple(done)


def find_difference(now: RecordEntry, entry: RecordEntry) -> str | None:
    """Say in what a record differs from its ``entry`` in the index, wherever it lies in the shard now."""
    files, wanted = (
        {(member.file, member.length) for member in one.members if member.file != names.METADATA_FILE}
        for one in (now, entry)
    )
    if files != wanted:
        return "its files are not those that the index describes"
    if entry.metadata_digest and not now.metadata_digest:
        return METADATA_LOST
    if entry.metadata_digest != now.metadata_digest:
        return "its metadata is not what the index describes"
    return None


def check_no_link(place: Place) -> None:
    """Check that no symbolic link is where something is to be written: in a stranger's folder it may lead anywhere.

    Raises:
        OutputError: one is.
    """
    if isinstance(place, Path) and place.is_symlink():
        raise OutputError(f"{place}: is a symbolic link, and nothing is written through it; remove the link")


def _size_bytes(shard: Place) -> int:
    entry = facts(shard)
    if entry is None or entry.is_folder:
        raise ShardError(f"{shard}: no such file; check the path")
    return entry.size_bytes
