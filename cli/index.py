"""`vshard index`: the indexes of shards, built by reading them."""

from __future__ import annotations

import shlex

import click

from .console import console, counted, size_text
from .places import jobs_option


@click.command()
@click.argument("places", metavar="PLACE...", nargs=-1, required=True)
@jobs_option("Shards read")
@click.option(
    "--force", is_flag=True, help="Read every shard and build its index anew, also where its size fits."
)
def command(places: tuple[str, ...], jobs: int, force: bool) -> None:
    """Build the indexes of shards anew.

    PLACE is a shard, a folder of shards, a dataset with train/ and eval/, or a pattern; here or in a store (s3://,
    gs://). Shards that others made in this layout are welcome. An index that has its shard's size stays, and the
    shard is not read (`vshard verify` compares contents). A shard that is read and has changed at the same size is
    refused.

    \b
    Example:
      vshard index shards/city/train
    """
    from vshard.base.errors import ShardError
    from vshard.records.names import printable
    from vshard.shards.indexing import build_indexes
    from vshard.shards.verify import find_shards_in

    shards = find_shards_in(places)
    with console() as report:
        done = build_indexes(shards, jobs, report, force=force)
    for indexed in done:
        if indexed.index is None:
            advice = f"see what is wrong with: vshard verify {shlex.quote(str(indexed.shard))}"
            click.echo(f"{printable(str(indexed.damage))}; {printable(advice)}")
            continue
        records = counted(len(indexed.index.records), "record")
        what = "index built" if indexed.built else "index up to date by size"
        click.echo(
            f"{printable(str(indexed.shard))}: {records}, {size_text(indexed.index.size_bytes)}, {what}"
        )
    damaged = sum(indexed.index is None for indexed in done)
    if damaged:
        others = "; the others are" if damaged < len(done) else ""
        raise ShardError(f"{damaged} of {counted(len(done), 'shard')} not indexed{others}")
    built = sum(indexed.built for indexed in done)
    kept = len(done) - built
    told = f"{kept} up to date by size (`vshard verify` compares contents)" if kept else "0 up to date"
    click.echo(f"{counted(len(done), 'shard')}: {built} built, {told}")
