"""`vshard ls`: what records there are."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from .console import console, counted, plain, size_text
from .places import jobs_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vshard.shards.listing import Listed, Listing, Totals, Video

_NONE = "-"
# What stands in the columns of these headings is a number, and lines up on the right.
_NUMBERS = {"FRAMES", "PICTURE", "RECORDS", "SIZE", "MASK PX", "MASK"}


@click.command()
@click.argument("places", metavar="PLACE...", nargs=-1, required=True)
@click.option("--sources", is_flag=True, help="A line a video in place of a line a record.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--only", metavar="GLOB", help="Only the records of this name, e.g. 'city_*'.")
@jobs_option("Files read")
def command(places: tuple[str, ...], sources: bool, as_json: bool, only: str | None, jobs: int) -> None:
    """List records: their videos, sizes and mask areas.

    PLACE is a dataset, a split, a record folder, a shard or a pattern; here or in a store (s3://, gs://, http(s)://).
    A record that is in a folder and in a shard is one line, its size counted once; --json names the shards. The mask's
    area is that of the mean frame.

    \b
    Example:
      vshard ls data/city --sources
    """
    from vshard.base.errors import DatasetError
    from vshard.shards.listing import list_records

    with console() as report:
        listing = list_records(places, only, jobs, report)
    if as_json:
        click.echo(json.dumps(_facts(listing, sources), indent=1))
    else:
        table = _videos(listing.videos) if sources else _records(listing.records)
        click.echo("\n".join([*_aligned(table), *map(plain, listing.damage), _totals(listing.totals)]))
    if listing.damaged:
        raise DatasetError(
            f"{listing.damaged} of these cannot be read; see what is wrong with: vshard verify {shlex.join(places)}"
        )


def _records(records: Sequence[Listed]) -> list[list[str]]:
    """Give the table of records: a row of headings, then a row a record."""
    from vshard.records.names import printable

    several = len({record.place for record in records}) > 1
    rows = [["KEY", "FORM", "VIDEO", "FRAMES", "PICTURE", "SIZE", "MASK PX", "MASK"]]
    for record in records:
        form = _form(record.forms)
        facts = record.facts
        if isinstance(facts, Exception):
            rows.append([record.key, form, f"cannot be read: {plain(str(facts))}"])
        else:
            area = facts.mask_area_px / facts.frames
            rows.append(
                [
                    record.key,
                    form,
                    printable(facts.source) or _NONE,
                    str(facts.frames),
                    f"{facts.width}x{facts.height}",
                    size_text(record.size_bytes),
                    f"{area:.0f}",
                    _part(area / max(facts.height * facts.width, 1)),
                ]
            )
    if several:
        labels = ["PLACE", *(plain(str(record.place)) for record in records)]
        rows = [[label, *row] for label, row in zip(labels, rows, strict=True)]
    return rows


def _videos(videos: Sequence[Video]) -> list[list[str]]:
    from vshard.records.names import printable

    rows = [["VIDEO", "HASH", "SPLITS", "RECORDS", "SIZE", "MASK PX", "MASK", "VIEWS"]]
    for video in videos:
        totals = video.totals
        rows.append(
            [
                video.name,
                "+".join(video.file_hashes) or _NONE,
                plain("+".join(video.splits)),
                str(totals.records),
                size_text(totals.size_bytes),
                _NONE if totals.mask_area_px is None else f"{totals.mask_area_px:.0f}",
                _NONE if totals.mask_part is None else _part(totals.mask_part),
                ", ".join(f"{count} {printable(view)}" for view, count in video.views.items()) or _NONE,
            ]
        )
    return rows


def _totals(totals: Totals) -> str:
    line = f"{counted(totals.records, 'record')} of {counted(totals.videos, 'video')}, {size_text(totals.size_bytes)}"
    if totals.mask_area_px is None or totals.mask_part is None:
        return line
    return f"{line}, mean mask {totals.mask_area_px:.0f} px ({_part(totals.mask_part)})"


def _form(forms: Sequence[str]) -> str:
    """Tell where a record lies without the names of shards: folder, shard, folder+shard, 2 shards."""
    from vshard.shards.holdings import IN_FOLDER

    shards = sum(form != IN_FOLDER for form in forms)
    folder = [IN_FOLDER] if IN_FOLDER in forms else []
    return "+".join([*folder, *([counted(shards, "shard").removeprefix("1 ")] if shards else [])])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Line the columns up below the headings of the first row; what ends a shorter row may be of any length."""
    headings = rows[0]
    widths = [0] * len(headings)
    for row in rows:
        for column, text in enumerate(row if len(row) == len(headings) else row[:-1]):
            widths[column] = max(widths[column], len(text))
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if heading in _NUMBERS else text.ljust(width)
            for heading, width, text in zip(headings, widths, row, strict=False)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _part(part: float) -> str:
    return f"{100 * part:.1f} %"


def _facts(listing: Listing, sources: bool) -> dict[str, Any]:
    listed = (
        {"videos": [_video_facts(video) for video in listing.videos]}
        if sources
        else {"records": [_record_facts(record) for record in listing.records]}
    )
    return {**listed, "damage": list(listing.damage), "totals": _total_facts(listing.totals)}


def _record_facts(record: Listed) -> dict[str, Any]:
    from vshard.shards.videos import file_hash_of

    common = {
        "key": record.key,
        "place": str(record.place),
        "forms": list(record.forms),
        "size_bytes": record.size_bytes,
        "file_hash": file_hash_of(record.key) or None,
    }
    facts = record.facts
    if isinstance(facts, Exception):
        return {**common, "error": str(facts)}
    return {
        **common,
        "video": facts.source or None,
        "fingerprint": facts.fingerprint or None,
        "view": facts.view or None,
        "frames": facts.frames,
        "height": facts.height,
        "width": facts.width,
        "mask_area_px": facts.mask_area_px / facts.frames,
    }


def _video_facts(video: Video) -> dict[str, Any]:
    return {
        "video": video.name,
        "file_hashes": list(video.file_hashes),
        "splits": video.splits,
        "views": video.views,
        **_total_facts(video.totals),
    }


def _total_facts(totals: Totals) -> dict[str, Any]:
    return {
        "records": totals.records,
        "videos": totals.videos,
        "size_bytes": totals.size_bytes,
        "mask_area_px": totals.mask_area_px,
        "mask_part": totals.mask_part,
    }
