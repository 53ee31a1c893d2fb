"""`vshard unpack`: shards -> record folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import console, counted, plain
from .places import allow_pipe_option, jobs_option, place, shard_arguments

if TYPE_CHECKING:
    from vshard.base.pipes import Pipe
    from vshard.base.stores import Place


@click.command()
@click.argument("shards", metavar="SHARD...", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=place, metavar="PATH|URL", help="Folder for the record folders."
)
@click.option("--only", metavar="GLOB", help="Only the records of this name, e.g. 'city_*'.")
@jobs_option("Shards unpacked")
@allow_pipe_option
def command(shards: tuple[str, ...], output: Place, only: str | None, jobs: int, allow_pipe: bool) -> None:
    """Write the records of tar shards as folders.

    SHARD is a shard, a folder of shards or a pattern; here or in a store (s3://, gs://, http(s)://). Stopped, the same
    command finishes.

    \b
    Example:
      vshard unpack shards/city/train/train-000000.tar -o data/again/train
    """
    from vshard.shards.unpack import UnpackOptions, unpack

    options = UnpackOptions(_shards(shards, allow_pipe=allow_pipe), output, only, jobs)
    with console() as report:
        count = unpack(options, report)
    click.echo(plain(f"{output}: {counted(count, 'record')}"))


def _shards(texts: tuple[str, ...], *, allow_pipe: bool) -> tuple[Place | Pipe, ...]:
    from vshard.base.errors import ShardError
    from vshard.base.pipes import parse_pipe
    from vshard.base.stores import expand
    from vshard.shards.holdings import refuse_dataset

    try:
        return shard_arguments(texts, allow_pipe=allow_pipe)
    except ShardError:
        files = [text for text in texts if parse_pipe(text, allowed=allow_pipe) is None]
        for place in (place for text in files for place in expand(text)):
            refuse_dataset(place)
        raise
