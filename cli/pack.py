"""`vshard pack`: records -> shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import console, counted, size_text
from .places import jobs_option, place
from .sizes import byte_size

if TYPE_CHECKING:
    from vshard.base.stores import Place


@click.command()
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=place, metavar="PATH|URL", help="Folder for the shards.")
@click.option(
    "--name", help="Begins the shards' names.  [default: the source folder's name; of several, the output's]"
)
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="A shard's size at most, before --compress and --recode.",
)
@click.option("--shard-records", type=click.IntRange(1), help="A shard's records at most.")
@click.option(
    "--shuffle",
    type=int,
    metavar="SEED",
    help="Mix the records of all sources, as training likes them.  [default: sorted by name]",
)
@click.option(
    "--compress",
    type=click.Choice(["none", "zst"]),
    default="none",
    show_default=True,
    help="zst: .tar.zst, for archives; training reads plain shards.",
)
@click.option(
    "--recode", is_flag=True, help="Write others' PNGs anew in the form that is read fastest; same pixels."
)
@jobs_option("Shards made")
@click.option("--overwrite", is_flag=True, help="Remove the shards of this name first.")
def command(
    sources: tuple[str, ...],
    output: Place,
    name: str | None,
    shard_size: int,
    shard_records: int | None,
    shuffle: int | None,
    compress: str,
    recode: bool,
    jobs: int,
    overwrite: bool,
) -> None:
    """Pack records into tar shards, each with its index.

    SRC is a folder of record folders (or of shards), a record folder, a shard, or a pattern; here or in a store
    (s3://, gs://, http(s)://). The same records give the same shards. Stopped, the same command finishes.

    \b
    Example:
      vshard pack data/city/train data/beach/train -o shards/train --shuffle 1
    """
    from vshard.base.errors import OptionError
    from vshard.base.stores import parse_place
    from vshard.records.names import is_record_key
    from vshard.shards.pack import pack
    from vshard.shards.plan import PackOptions

    if name is None:
        named = parse_place(sources[0]) if len(sources) == 1 else output
        named = named.resolve() if isinstance(named, Path) else named
        named = output if isinstance(named, Path) and not named.is_dir() else named
        name = named.name
        if not is_record_key(name):
            raise OptionError(
                f"{named}: the shards would take this folder's name, of which only A-Z a-z 0-9 _ - are allowed; give "
                "another with --name"
            )
    options = PackOptions(
        sources=sources,
        output=output,
        name=name,
        shard_bytes=shard_size,
        shard_records=shard_records,
        shuffle=shuffle,
        compress=compress,
        recode=recode,
        jobs=jobs,
        overwrite=overwrite,
    )
    with console() as report:
        packed = pack(options, report)
    records, shards = counted(packed.records, "record"), counted(len(packed.shards), "shard")
    ending = "" if packed.made else "; all of it was there already"
    click.echo(f"{output}: {records} in {shards}, {size_text(packed.size_bytes)}{ending}")
