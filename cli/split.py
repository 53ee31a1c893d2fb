"""`vshard split`: train/ -> eval/."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import console, counted, plain, size_text
from .places import place

if TYPE_CHECKING:
    from vshard.base.stores import Place
    from vshard.shards.split import Outcome, Side


@click.command()
@click.option(
    "-i",
    "--data-dir",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Dataset folder with train/, and with eval/ if there is one.",
)
@click.option(
    "--eval",
    "records",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="How many records eval/ holds in the end.",
)
@click.option(
    "--by-video",
    is_flag=True,
    help="Move whole videos, as is best, until eval/ holds at least as many: it then has none that training sees.",
)
@click.option("--seed", type=int, default=71, show_default=True, help="Decides which records or videos move.")
@click.option("--dry-run", is_flag=True, help="Only tell what would move.")
def command(data_dir: Place, records: int, by_video: bool, seed: int, dry_run: bool) -> None:
    """Move records from train/ to eval/, whole.

    Folders and shards alike, here or in a store (s3://, gs://). Stopped, the same command finishes; run again, it moves
    nothing more. Do not train on the dataset meanwhile.

    \b
    Example:
      vshard split -i data/city --eval 200 --by-video
    """
    from vshard.shards.split import SplitOptions, split

    with console() as report:
        outcome = split(SplitOptions(data_dir, records, by_video, seed, dry_run), report)
    for line in _lines(outcome, data_dir, by_video=by_video, dry_run=dry_run):
        click.echo(plain(line))


def _lines(outcome: Outcome, data: Place, *, by_video: bool, dry_run: bool) -> list[str]:
    evaluation = outcome.evaluation.records
    if not outcome.keys:
        lines = [f"{data / 'eval'} holds {counted(evaluation, 'record')} already, nothing moves"]
    elif dry_run:
        lines = [f"would move {counted(len(outcome.keys), 'record')} from {data / 'train'}:"]
        lines += [f"  {name}: {counted(count, 'record')}" for name, count in outcome.videos]
        lines += [] if by_video else [f"  {key}" for key in outcome.keys]
        lines += ["then:"]
    else:
        lines = []
    lines.append(f"eval: {_side(outcome.evaluation)}, train: {_side(outcome.train)}")
    if outcome.shared_records:
        both = counted(outcome.shared_records, "record")
        lines.append(f"remark: {both} of train/ lie in eval/ too and count for eval/ only")
    if outcome.shared_videos and not by_video:
        both = counted(outcome.shared_videos, "video")
        lines.append(
            f"remark: {both} in both splits, so eval/ tells less about new videos; --by-video moves whole videos"
        )
    if outcome.keys and not dry_run:
        lines.append(f"look at it with: vshard ls {data} --sources")
    return lines


def _side(side: Side) -> str:
    return (
        f"{counted(side.records, 'record')} of {counted(side.videos, 'video')} ({size_text(side.size_bytes)})"
    )
