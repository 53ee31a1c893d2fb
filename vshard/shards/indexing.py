"""Builds the indexes of shards, ours and others', by reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..base.errors import ShardError
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import Place, facts
from .index import ShardIndex, index_possible, read_index, scan_shard, write_index


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
        OutputError: an index cannot be written.
        StoreError: a store cannot be reached, or can only be read.
    """
    sizes = {shard: _size_bytes(shard) for shard in shards}

    def build(shard: Place, meter: Meter) -> Indexed:
        index = None if force else read_index(shard)
        fits = index is not None and index.size_bytes == sizes[shard] and index_possible(index)
        damage = None
        try:
            if not fits:
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


def _size_bytes(shard: Place) -> int:
    entry = facts(shard)
    if entry is None or entry.is_folder:
        raise ShardError(f"{shard}: no such file; check the path")
    return entry.size_bytes
