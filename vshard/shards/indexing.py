"""Builds the indexes of shards, ours and others', by reading them, and tells by them what shards have lost.

An index is the only witness of what its shard was: one that tells of other bytes is not written over unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..base.errors import OutputError, ShardError, StoreError
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import Place, Remote, facts, read_file
from ..records import names
from .index import (
    MAX_INDEX_BYTES,
    RecordEntry,
    ShardIndex,
    index_place,
    index_possible,
    read_index,
    scan_shard,
    write_index,
)

# "differs" says nothing against the index: the shard is not the one that it describes.
INDEX_OK, INDEX_MISSING, INDEX_DIFFERS, INDEX_BAD = "ok", "missing", "differs", "stale or damaged"
METADATA_LOST = "its metadata is lost"


class Problem(NamedTuple):
    """One damage, in words that follow the place's name; ``record`` is the key of the record it costs, if it does."""

    record: str | None
    text: str


class OfIndex(NamedTuple):
    """What an index tells of its shard: ``changed`` records, and whether the shard's bytes are others than it says."""

    state: str
    problems: tuple[Problem, ...] = ()
    changed: frozenset[str] = frozenset()
    shard_differs: bool = False


@dataclass(frozen=True)
class Indexed:
    """What became of one shard: ``index`` is None where its shard is damaged or has changed, which ``damage`` says.

    ``built`` tells a new index from one that stayed because it speaks of the shard's size.
    """

    shard: Place
    index: ShardIndex | None
    built: bool
    damage: str | None


def build_indexes(
    shards: Sequence[Place], jobs: int, report: Report, *, force: bool = False
) -> tuple[Indexed, ...]:
    """Build the index of each shard that has none or one that speaks of another size, or of all with ``force``.

    A shard that is read and has its old index's size but other contents gets none: most likely it is damaged, and the
    old index is all that tells so.

    Raises:
        ShardError: one is not there.
        OutputError: an index cannot be written, or a link is in its place.
        StoreError: a store cannot be reached, or can only be read.
    """
    sizes = {shard: _size_bytes(shard) for shard in shards}

    def build(shard: Place, meter: Meter) -> Indexed:
        index = old = read_index(shard)
        fits = old is not None and old.size_bytes == sizes[shard] and index_possible(old) and not force
        damage = None
        try:
            if not fits:
                check_no_link(index_place(shard))
                index = scan_shard(shard)
                _check_unchanged(shard, index, old)
                write_index(shard, index)
        except ShardError as error:
            index, damage = None, str(error)
        meter.add(sizes[shard])
        return Indexed(shard, index, not fits, damage)

    report.start("indexing", sum(sizes.values()), "bytes")
    done = run_jobs(build, shards, jobs, report)
    report.finish()
    return tuple(done)


def judge_index(
    data: bytes | None, index: ShardIndex | None, rebuilt: ShardIndex, seen: set[str], *, whole: bool
) -> OfIndex:
    """Compare an index file with what its shard holds.

    Args:
        data: the file's bytes, None where there is none.
        index: what they say, None where they are no index.
        rebuilt: the index that the shard should have.
        seen: the keys found in the shard, also of damaged records.
        whole: nothing was found wrong with the shard without its index.
    """
    if data is None:
        return OfIndex(INDEX_MISSING)
    if index is None or not index_possible(index):
        return OfIndex(INDEX_BAD, (Problem(None, "its index is damaged"),))
    if whole and rebuilt.to_bytes() == data:
        return OfIndex(INDEX_OK)
    if index.digest == rebuilt.digest:
        # The shard is the one that was indexed: nothing of it can be lost.
        return OfIndex(INDEX_BAD, (_STALE,)) if whole else OfIndex(INDEX_OK)
    problems = tuple(
        Problem(record.key, f"{record.key}: is in the index and no longer in the shard")
        for record in index.records
        if record.key not in seen
    )
    if not whole:
        return OfIndex(INDEX_DIFFERS, problems)
    if (index.size_bytes, index.tar_bytes) != (rebuilt.size_bytes, rebuilt.tar_bytes):
        return OfIndex(INDEX_BAD, (*problems, _STALE))
    known = {record.key: record for record in index.records}
    changed = [
        entry.key
        for entry in rebuilt.records
        if entry.key in known
        and known[entry.key].members == entry.members
        and known[entry.key].metadata_digest != entry.metadata_digest
    ]
    problems += tuple(Problem(key, f"{key}: its metadata is not what the index describes") for key in changed)
    if changed:
        return OfIndex(INDEX_DIFFERS, problems, frozenset(changed), shard_differs=True)
    if replace(index, digest=rebuilt.digest).to_bytes() == rebuilt.to_bytes():
        other = Problem(None, "its bytes are not those that its index describes")
        return OfIndex(INDEX_DIFFERS, (other,), shard_differs=True)
    return OfIndex(INDEX_BAD, (*problems, _STALE))


_STALE = Problem(None, "its index does not describe it")


def index_bytes(shard: Place) -> bytes | None:
    """Give the bytes of a shard's index file; None where there is none, empty where it is no file to be read.

    Raises:
        StoreError: its store cannot be reached.
    """
    place = index_place(shard)
    entry = facts(place)
    if entry is None:
        return None
    if entry.is_folder or entry.size_bytes > MAX_INDEX_BYTES:
        return b""
    try:
        return read_file(place, MAX_INDEX_BYTES)
    except StoreError:
        if isinstance(place, Remote):
            raise
        return b""


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


def _check_unchanged(shard: Place, index: ShardIndex, old: ShardIndex | None) -> None:
    """Check that a shard of its old index's size is what that index was made of; another size is another tar's."""
    if old is not None and old.size_bytes == index.size_bytes and old.digest != index.digest:
        raise ShardError(
            f"{shard}: its content has changed since its index was made, its size has not; no new index was "
            f"written; if it was rewritten on purpose, remove {index_place(shard)} first"
        )


def _size_bytes(shard: Place) -> int:
    entry = facts(shard)
    if entry is None or entry.is_folder:
        raise ShardError(f"{shard}: no such file; check the path")
    return entry.size_bytes
