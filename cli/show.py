"""`vshard show`: a split -> a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .places import local_path, place

if TYPE_CHECKING:
    from vshard.base.stores import Place


@click.command()
@click.argument("split", type=place)
@click.option(
    "-o",
    "--output",
    type=local_path,
    default="records.png",
    show_default=True,
    help="Picture to write.",
)
@click.option(
    "--records",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="How many records, spread over the split.",
)
def command(split: Place, output: Path, records: int) -> None:
    """Draw a sheet of a split's records with their holes coloured.

    \b
    Example:
      vshard show data/city/train -o records.png
    """
    from vshard.stream.sheet import write_sheet

    shown = write_sheet(split, output, records)
    click.echo(f"{output}: {shown} records of {split}")
