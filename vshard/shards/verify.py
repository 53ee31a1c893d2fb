"""Shards, their indexes and record folders, here or in a store -> what is damaged.

Nothing is changed and nothing found is an error: damage is told, and so is what only differs. Places are checked side
by side, each by itself (``check.py``); then the records of one folder are compared across its shards, for training
refuses a key that is in two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..base.errors import DatasetError, RecordError, ShardError, StoreError
from ..base.files import PART_SUFFIX
from ..base.jobs import Meter, run_jobs
from ..base.pipes import Pipe, parse_pipe
from ..base.report import Report
from ..base.stores import Entry, Place, Remote, expand, facts, list_folder, read_file
from ..records import names
from ..records.record import is_record_file, read_folder
from .check import Finding, check_record, check_shard, digest_of, without
from .index import MAX_INDEX_BYTES, index_possible, parse_index
from .indexing import Problem

SPLITS = ("train", "eval")
# Forms of what lies in a split and is nothing of it: an empty folder, where a record may have been, and all else.
EMPTY, STRAY = "empty", "stray"
# A job of so many record folders is long enough to be worth a thread's while.
_FOLDERS_A_JOB = 32


class Target(NamedTuple):
    """One thing to verify; ``form`` as in :class:`Finding`. ``size_bytes`` is None where only reading tells it.

    What lies in a split and is neither a shard, an index nor a record has the form "empty" (a folder) or "stray".
    """

    place: Place | Pipe
    form: str
    size_bytes: int | None

    @property
    def is_stray(self) -> bool:
        """Whether it is nothing of its split, so that there is nothing to check."""
        return self.form in (EMPTY, STRAY)


@dataclass(frozen=True)
class Verified:
    """What was found, a finding a target that is no stray, in their order.

    ``remarks`` are no damage. ``twice``: for a shard, which of its keys an earlier shard of its folder holds, and
    which shard that is. ``twins``: for a damaged record folder, the first shard beside it that holds it whole.
    """

    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    twice: dict[Place | Pipe, dict[str, Place]]
    twins: dict[Place | Pipe, Place]

    @property
    def damaged(self) -> tuple[Finding, ...]:
        """Those that are not whole."""
        return tuple(finding for finding in self.findings if finding.problems)

    @property
    def records(self) -> int:
        """How many records were found, lost ones included."""
        return sum(finding.records for finding in self.findings)

    @property
    def damaged_records(self) -> int:
        """How many of them are damaged or lost."""
        return sum(finding.damaged_records for finding in self.findings)


class _Checked(NamedTuple):
    """A finding, and the digests of the whole records there by key."""

    finding: Finding
    digests: dict[str, str]


def find_targets(texts: Iterable[str], *, allow_pipe: bool = False) -> tuple[Target, ...]:
    """Give what ``texts`` name: shards, record folders, splits, datasets (``train/``, ``eval/``), patterns, pipes.

    Raises:
        DatasetError: one is not there or holds neither a record nor a shard.
        ShardError: one is a file and no shard.
        OptionError: a pattern that matches nothing, or a pipe that is not allowed.
        StoreError: one cannot be reached.
    """
    found: list[Target] = []
    for text in texts:
        pipe = parse_pipe(text, allowed=allow_pipe)
        if pipe is not None:
            found.append(Target(pipe, "shard", None))
            continue
        for place in expand(text):
            found += _targets_at(place)
    return tuple({target.place: target for target in found}.values())


def find_shards_in(texts: Iterable[str]) -> tuple[Place, ...]:
    """Give the shards among what ``texts`` name, as :func:`find_targets` does.

    Raises:
        ShardError: there is none; else as :func:`find_targets`.
    """
    texts = tuple(texts)
    targets = find_targets(texts)
    shards = tuple(t.place for t in targets if t.form == "shard" and not isinstance(t.place, Pipe))
    if not shards:
        raise ShardError(f"{texts[0]}: no shard (*.tar, *.tar.zst) is there; make some with: vshard pack")
    return shards


def verify(targets: Iterable[Target], jobs: int, report: Report) -> Verified:
    """Check every target, ``jobs`` at a time; strays are only remarked upon.

    Raises:
        StoreError: a store cannot be reached, or the command of a pipe fails.
    """
    every = tuple(targets)
    targets = tuple(target for target in every if not target.is_stray)
    sizes = [target.size_bytes for target in targets]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    report.start("verifying", total, "bytes")
    batches = run_jobs(_check_all, _batches(targets), jobs, report)
    report.finish()
    by_place = {checked.finding.place: checked for batch in batches for checked in batch}
    checked = [by_place[target.place] for target in targets]
    holders, twice = _find_holders(checked)
    findings = [_with_twice(one, twice.get(one.finding.place, {}), by_place) for one in checked]
    twins, remarks = _compare_folders(checked, holders, by_place)
    remarks += _tell_strays([target for target in every if target.is_stray])
    return Verified(tuple(findings), tuple(remarks), twice, twins)


def _targets_at(place: Place) -> list[Target]:
    there = facts(place)
    if there is None:
        raise DatasetError(f"{place}: no such folder or file; check the path")
    if not there.is_folder:
        return [_file_target(place, there)]
    entries = list_folder(place)
    if _is_record(entries):
        # A folder named "." or ".." has no key.
        named = place.resolve() if isinstance(place, Path) and not names.is_record_key(place.name) else place
        return [_folder_target(named, entries)]
    found = _targets_in(place, entries)
    there_too = {entry.name for entry in entries if entry.is_folder}
    splits = [place / name for name in SPLITS if name in there_too]
    if splits:
        # A dataset's folder may hold anything.
        found = [target for target in found if not target.is_stray]
    for split in splits:
        found += _targets_in(split, list_folder(split))
    if all(target.is_stray for target in found):
        raise DatasetError(
            f"{place}: nothing to verify: no shard (*.tar, *.tar.zst) and no record folder (KEY/0000_C.png, …); give a "
            "shard, a split such as DATA/train, or the dataset's folder"
        )
    return found


def _targets_in(split: Place, entries: list[Entry]) -> list[Target]:
    files = {entry.name: entry for entry in entries if not entry.is_folder}
    found = []
    for name, entry in files.items():
        if names.is_shard(name):
            found.append(Target(split / name, "shard", entry.size_bytes))
        elif _is_index(name):
            if name.removesuffix(names.INDEX_SUFFIX) not in files:
                found.append(Target(split / name, "index", entry.size_bytes))
        elif not name.startswith(".") and not name.endswith(PART_SUFFIX):
            found.append(Target(split / name, STRAY, 0))
    for entry in entries:
        if entry.is_folder and entry.name != names.STATE_FOLDER:
            inside = list_folder(split / entry.name)
            if _is_record(inside):
                found.append(_folder_target(split / entry.name, inside))
            elif not entry.name.startswith("."):
                found.append(Target(split / entry.name, STRAY if inside else EMPTY, 0))
    return found


def _file_target(place: Place, there: Entry) -> Target:
    if _is_index(place.name):
        shard = place.with_name(place.name.removesuffix(names.INDEX_SUFFIX))
        entry = facts(shard)
        return (
            Target(place, "index", there.size_bytes)
            if entry is None
            else Target(shard, "shard", entry.size_bytes)
        )
    if not names.is_shard(place.name):
        raise ShardError(f"{place}: is no shard and no folder; a shard's name ends in .tar or .tar.zst")
    return Target(place, "shard", there.size_bytes)


def _folder_target(folder: Place, entries: list[Entry]) -> Target:
    return Target(folder, "folder", sum(entry.size_bytes for entry in entries if is_record_file(entry.name)))


def _is_record(entries: list[Entry]) -> bool:
    return any(names.is_frame_or_mask(entry.name) for entry in entries)


def _is_index(name: str) -> bool:
    return name.endswith(names.INDEX_SUFFIX) and names.is_shard(name.removesuffix(names.INDEX_SUFFIX))


def _batches(targets: tuple[Target, ...]) -> list[tuple[Target, ...]]:
    """Give each shard a job of its own, and folders one in groups."""
    folders = iter([target for target in targets if target.form == "folder"])
    groups = iter(lambda: tuple(islice(folders, _FOLDERS_A_JOB)), ())
    return [*((target,) for target in targets if target.form != "folder"), *groups]


def _check_all(batch: tuple[Target, ...], meter: Meter) -> list[_Checked]:
    return [_check(target, meter) for target in batch]


def _check(target: Target, meter: Meter) -> _Checked:
    if target.form == "shard":
        check = check_shard(target.place, meter)
        return _Checked(check.finding, {piece.entry.key: piece.digest for piece in check.good})
    assert not isinstance(target.place, Pipe)
    if target.form == "index":
        finding, digests = _check_orphan(target.place), {}
    else:
        finding, digest = _check_folder(target.place)
        digests = {target.place.name: digest} if digest else {}
    meter.add(target.size_bytes or 0)
    return _Checked(finding, digests)


def _check_folder(folder: Place) -> tuple[Finding, str]:
    """Check a record's folder; give the finding and its contents' digest ("" where it is damaged).

    Raises:
        StoreError: it cannot be reached.
    """
    problem, digest, frames, size_bytes = None, "", 0, 0
    try:
        if not names.is_record_key(folder.name):
            raise RecordError(
                f"{folder}: a record's name may hold only A-Z a-z 0-9 _ - and {names.KEY_LENGTH_MAX} characters; "
                "rename the folder"
            )
        record = read_folder(folder)
        frames, size_bytes = len(record.frames), sum(map(len, record.files().values()))
        check_record(record, str(folder))
        digest = digest_of(record)
    except RecordError as error:
        problem = names.printable(without(str(error), folder))
        ours = [entry for entry in list_folder(folder) if is_record_file(entry.name)]
        frames = sum(entry.name.endswith("_C.png") for entry in ours)
        size_bytes = sum(entry.size_bytes for entry in ours)
    problems = () if problem is None else (Problem(folder.name, problem),)
    return Finding(folder, "folder", 1, frames, size_bytes, None, problems), digest


def _check_orphan(index: Place) -> Finding:
    """Give the finding of an index whose shard is not there: every record in it is lost.

    Raises:
        StoreError: it cannot be reached.
    """
    unreadable = []
    try:
        data = read_file(index, MAX_INDEX_BYTES)
    except StoreError as error:
        if isinstance(index, Remote):
            raise
        data, unreadable = b"", [Problem(None, names.printable(without(str(error), index)))]
    parsed = parse_index(data)
    records = () if parsed is None or not index_possible(parsed) else parsed.records
    lost = [Problem(record.key, f"{record.key}: was in it") for record in records]
    problems = (Problem(None, "its shard is not there"), *unreadable, *lost)
    frames = sum(record.frame_count for record in records)
    return Finding(index, "index", len(records), frames, len(data), None, problems)


def _find_holders(
    checked: list[_Checked],
) -> tuple[dict[tuple[Place, str], Place], dict[Place | Pipe, dict[str, Place]]]:
    """Give the first shard, by name, that holds a folder's record whole, by (folder, key); and who else holds it.

    That is, for each shard, its keys that are in an earlier one of its folder, with that one.
    """
    holders: dict[tuple[Place, str], Place] = {}
    twice: dict[Place | Pipe, dict[str, Place]] = {}
    for one in sorted(checked, key=lambda one: str(one.finding.place)):
        shard = one.finding.place
        if one.finding.form != "shard" or isinstance(shard, Pipe):
            continue
        for key in one.digests:
            holder = holders.setdefault((shard.parent, key), shard)
            if holder != shard:
                twice.setdefault(shard, {})[key] = holder
    return holders, twice


def _with_twice(one: _Checked, held: dict[str, Place], by_place: dict[Place | Pipe, _Checked]) -> Finding:
    """Add the records that ``held`` says are in other shards to what is wrong."""
    problems = [
        Problem(key, f"{key}: is in {first.name} too, {'the same' if same else 'with other contents'}")
        for key, first in held.items()
        for same in [by_place[first].digests[key] == one.digests[key]]
    ]
    return replace(one.finding, problems=one.finding.problems + tuple(problems))


def _compare_folders(
    checked: list[_Checked], holders: dict[tuple[Place, str], Place], by_place: dict[Place | Pipe, _Checked]
) -> tuple[dict[Place | Pipe, Place], list[str]]:
    """Compare record folders with the shards beside them: give who holds damaged ones whole, and tell what differs."""
    twins: dict[Place | Pipe, Place] = {}
    remarks = []
    for one in checked:
        folder = one.finding.place
        if one.finding.form != "folder" or isinstance(folder, Pipe):
            continue
        key = folder.name
        shard = holders.get((folder.parent, key))
        if shard is None:
            continue
        if key not in one.digests:
            twins[folder] = shard
        elif one.digests[key] != by_place[shard].digests[key]:
            remarks.append(f"{folder}: differs from record {key} in {shard.name}; training reads the shard's")
    return twins, remarks


def _tell_strays(strays: list[Target]) -> list[str]:
    """Say what lies in splits and belongs to none, on a line: how many, and the first, an empty folder if one is."""
    if not strays:
        return []
    first = min(strays, key=lambda target: target.form != EMPTY)
    named = f"{first.place} (an empty folder)" if first.form == EMPTY else str(first.place)
    others = len(strays) - 1
    which = f"{named} and {others} more are" if others else f"{named} is"
    return [f"{which} neither shard, index nor record; training leaves {'them' if others else 'it'} out"]
