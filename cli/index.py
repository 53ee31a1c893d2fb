"""`vshard index`: the indexes of shards, built by reading them."""

from __future__ import annotations

import click

from .console import console, counted, size_text
from .places import jobs_option


@click.command()
@click.argument("places", metavar="PLACE...", nargs=-1, required=True)
@jobs_option("Shards read")
@click.option("--force", is_flag=True, help="Build every index anew, also those that fit their shard.")
def command(places: tuple[str, ...], jobs: int, force: bool) -> None:
    """Build the indexes of shards anew.

    PLACE is a shard, a folder of shards, a dataset with train/ and eval/, or a pattern; here or in a store (s3://,
    gs://). Shards that others made in this layout are welcome. An index that fits its shard stays as it is.

    \b
    Example:
      vshard index shards/city/train
    """
    from vshard.base.errors import ShardError
    from vshard.shards.check import printable
    from vshard.shards.indexing import build_indexes
    from vshard.shards.verify import find_shards_in

    shards = find_shards_in(places)
    with console() as report:
        done = build_indexes(shards, jobs, report, force=force)
    for indexed in done:
        if indexed.index is None:
            click.echo(printable(f"{indexed.damage}; see what is wrong with: vshard verify {indexed.shard}"))
            continue
        records = counted(len(indexed.index.records), "record")
        what = "index built" if indexed.built else "index up to date"
        click.echo(
            f"{printable(str(indexed.shard))}: {records}, {size_text(indexed.index.size_bytes)}, {what}"
        )
    damaged = sum(indexed.index is None for indexed in done)
    if damaged:
        raise ShardError(f"{damaged} of {counted(len(done), 'shard')} not indexed; the others are")
    built = sum(indexed.built for indexed in done)
    click.echo(f"{counted(len(done), 'shard')}: {built} built, {len(done) - built} up to date")
