"""`vshard pack`: record folders -> shards."""

from __future__ import annotations

from pathlib import Path

import click

from .console import console, size_text
from .sizes import byte_size


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the shards.")
@click.option("--name", help="Begins the shards' names; without it the source folder's name.")
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="A shard's size at most.",
)
def command(source: Path, output: Path, name: str | None, shard_size: int) -> None:
    """Pack record folders into tar shards.

    The same folders always give the same shards, each with its index beside it.

    \b
    Example:
      vshard pack data/city/train -o shards/city/train
    """
    from vshard.shards.pack import pack

    with console() as report:
        packed = pack(
            source, output, name=name or source.resolve().name, shard_bytes=shard_size, report=report
        )
    click.echo(
        f"{output}: {packed.records} records in {len(packed.shards)} shards, {size_text(packed.size_bytes)}"
    )
