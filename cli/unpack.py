"""`vshard unpack`: shards -> record folders."""

from __future__ import annotations

from pathlib import Path

import click

from .console import console


@click.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the record folders."
)
def command(shards: tuple[Path, ...], output: Path) -> None:
    """Write the records of tar shards as folders.

    \b
    Example:
      vshard unpack shards/city/train/train-000000.tar -o data/again/train
    """
    from vshard.shards.pack import unpack

    with console() as report:
        count = unpack(list(shards), output, report)
    click.echo(f"{output}: {count} records")
