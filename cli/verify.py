"""`vshard verify`: is every shard, index and record whole? And mending what is not."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from .columns import aligned
from .console import console, counted, size_text
from .places import allow_pipe_option, jobs_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vshard.shards.check import Finding
    from vshard.shards.repair import Mended
    from vshard.shards.verify import Verified

_PROBLEMS_SHOWN = 20
_FORMS = {"shard": "shard", "folder": "record folder", "index": "lone index"}


@click.command()
@click.argument("places", metavar="PLACE...", nargs=-1, required=True)
@click.option(
    "--repair",
    "mend",
    is_flag=True,
    help="Move damaged records to .vshard/damaged/ beside them, and write their shards and indexes anew.",
)
@jobs_option("Shards checked")
@allow_pipe_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(places: tuple[str, ...], mend: bool, jobs: int, allow_pipe: bool, as_json: bool) -> None:
    """Check every shard, index and record; mend what is damaged.

    PLACE is a shard, a record folder, a folder of them, a dataset with train/ and eval/, or a pattern; here or in a
    store (s3://, gs://, http(s)://). Every byte is read and every picture decoded. Exits with 1 if anything is damaged.

    \b
    Example:
      vshard verify data/city --repair
    """
    from vshard.base.errors import DatasetError
    from vshard.shards.repair import repair
    from vshard.shards.verify import find_targets, verify

    targets = find_targets(places, allow_pipe=allow_pipe)
    mended: tuple[Mended, ...] = ()
    with console() as report:
        if mend:
            repaired = repair(targets, jobs, report)
            mended, found = repaired.mended, repaired.left
        else:
            found = verify(targets, jobs, report)
    if as_json:
        click.echo(json.dumps(_facts(found, mended), indent=1))
    else:
        click.echo("\n".join([*map(_mended_line, mended), *_table(found)]))
    if found.damaged:
        raise DatasetError(
            f"{_damage(found)}{_advice(found, places)}"
            if not mend
            else f"{_damage(found)} still; run the same command again"
        )
    if not as_json:
        moved = sum(len(done.records) for done in mended)
        click.echo(
            f"{_contents(found)}: no damage"
            + (f"; {counted(moved, 'record')} had been damaged or lost" if moved else "")
        )


def _advice(found: Verified, places: tuple[str, ...]) -> str:
    """Say how to mend what is damaged; what a command writes cannot be."""
    from vshard.base.pipes import Pipe, parse_pipe

    if all(isinstance(finding.place, Pipe) for finding in found.damaged):
        return ""
    mendable = [place for place in places if parse_pipe(place, allowed=True) is None]
    return f"; mend with: vshard verify --repair {shlex.join(mendable)}"


def _table(found: Verified) -> list[str]:
    """Give a line a shard and a split's record folders, below each what is wrong there."""
    from vshard.records.names import printable

    rows: list[tuple[str, ...]] = [("", "records", "pictures", "size", "index")]
    below: dict[int, list[str]] = {}
    whole_folders: dict[str, list[Finding]] = {}
    for finding in found.findings:
        if finding.form == "folder" and not finding.problems:
            assert finding.place is not None
            whole_folders.setdefault(_parent(finding), []).append(finding)
            continue
        below[len(rows)] = _problem_lines(finding)
        rows.append(_row(printable(str(finding.place)), [finding], finding.index_state or "-"))
    for split, findings in whole_folders.items():
        rows.append(_row(f"{printable(split)}: {counted(len(findings), 'record folder')}", findings, "-"))
    lines = []
    for number, line in enumerate(aligned(rows, left=(0, -1))):
        lines += [line, *below.get(number, [])]
    return [*lines, *(f"note: {printable(remark)}" for remark in found.remarks)]


def _row(name: str, findings: Sequence[Finding], index: str) -> tuple[str, ...]:
    records, frames = (sum(getattr(finding, name) for finding in findings) for name in ("records", "frames"))
    size = size_text(sum(finding.size_bytes for finding in findings))
    return name, str(records), str(2 * frames), size, index


def _problem_lines(finding: Finding) -> list[str]:
    from vshard.records.names import printable

    lines = [f"  {printable(problem.text)}" for problem in finding.problems[:_PROBLEMS_SHOWN]]
    more = len(finding.problems) - _PROBLEMS_SHOWN
    return lines + ([f"  … and {more} more; --json tells all"] if more > 0 else [])


def _mended_line(done: Mended) -> str:
    from vshard.records.names import printable

    count = (
        f"{counted(len(done.records), 'record')} no longer in it"
        if done.records and done.did != "moved"
        else ""
    )
    moved = f"what was damaged is in {done.moved}" if done.moved is not None else ""
    whole = (
        ""
        if done.whole_in is None
        else f"{done.whole_in.name} holds it whole, make it again with: {_unpack(done)}"
    )
    # Piece by piece, for long text is cut and a command must not be.
    return f"{printable(str(done.place))}: " + "; ".join(
        printable(part) for part in (done.did, count, moved, whole) if part
    )


def _unpack(done: Mended) -> str:
    """Give the command that makes a record folder again out of the shard that holds it."""
    words = (str(done.whole_in), "-o", str(done.place.parent), "--only", done.place.name)
    return f"vshard unpack {shlex.join(words)}"


def _contents(found: Verified) -> str:
    """Say what there is: 3 shards, 120 records, 3840 pictures."""
    pictures = 2 * sum(finding.frames for finding in found.findings)
    shards = sum(finding.form == "shard" for finding in found.findings)
    parts = [counted(shards, "shard")] if shards else []
    return ", ".join([*parts, counted(found.records, "record"), counted(pictures, "picture")])


def _damage(found: Verified) -> str:
    """Say what is damaged: 2 of 120 records damaged, in 1 of 3 shards."""
    said = []
    for form, name in _FORMS.items():
        total = sum(finding.form == form for finding in found.findings)
        damaged = sum(finding.form == form for finding in found.damaged)
        said += [f"{damaged} of {counted(total, name)}"] if damaged else []
    where = " and ".join(said)
    if not found.damaged_records:
        whole = f"; all {counted(found.records, 'record')} are whole" if found.records else ""
        return f"damage in {where}{whole}"
    return f"{found.damaged_records} of {counted(found.records, 'record')} damaged, in {where}"


def _facts(found: Verified, mended: Iterable[Mended]) -> dict[str, Any]:
    return {
        "places": [
            {
                "place": str(finding.place),
                "form": finding.form,
                "records": finding.records,
                "frames": finding.frames,
                "size_bytes": finding.size_bytes,
                "index": finding.index_state,
                "problems": [problem._asdict() for problem in finding.problems],
            }
            for finding in found.findings
        ],
        "records": found.records,
        "damaged_records": found.damaged_records,
        "whole": not found.damaged,
        "remarks": list(found.remarks),
        "mended": [
            {
                "place": str(done.place),
                "did": done.did,
                "records": list(done.records),
                "moved": None if done.moved is None else str(done.moved),
                "whole_in": None if done.whole_in is None else str(done.whole_in),
            }
            for done in mended
        ],
    }


def _parent(finding: Finding) -> str:
    from vshard.base.pipes import Pipe

    assert not isinstance(finding.place, Pipe)
    return str(finding.place.parent)
