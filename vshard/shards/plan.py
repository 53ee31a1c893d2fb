"""Which records go into which shard: a pure function of their keys, their sizes and the options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..base.errors import OptionError
from ..base.seeds import generator
from ..base.stores import Place
from ..records import names
from .sources import SourceRecord
from .tar import END_MARK

SHARD_BYTES_MIN = 10**6
COMPRESSIONS = ("none", "zst")
_SUFFIXES = dict(zip(COMPRESSIONS, (names.SHARD_SUFFIX, names.COMPRESSED_SUFFIX), strict=True))


@dataclass(frozen=True)
class PackOptions:
    """What ``vshard pack`` is asked.

    ``sources``: folders, shards, or patterns of them. ``shard_bytes``: a shard's size at most, before compression and
    recoding; one larger record has a shard of its own. ``shard_records``: its records at most. ``shuffle``: the seed of
    a random order, None for that of the keys. ``recode``: write every PNG anew in our form. ``jobs``: shards written
    at a time. ``overwrite``: remove the shards of that name first.
    """

    sources: tuple[str, ...]
    output: Place
    name: str
    shard_bytes: int = 10**9
    shard_records: int | None = None
    shuffle: int | None = None
    compress: str = "none"
    recode: bool = False
    jobs: int = 1
    overwrite: bool = False

    @property
    def suffix(self) -> str:
        """What the shards' names end in."""
        return _SUFFIXES[self.compress]


def check_pack_options(options: PackOptions) -> None:
    """Check every option.

    Raises:
        OptionError: one is out of its range.
    """
    if not names.is_record_key(options.name):
        raise OptionError(
            f"--name {options.name!r}: only A-Z a-z 0-9 _ - are allowed, {names.KEY_LENGTH_MAX} characters at most; "
            "choose another name"
        )
    if options.shard_bytes < SHARD_BYTES_MIN:
        raise OptionError(f"--shard-size {options.shard_bytes}: allowed is {SHARD_BYTES_MIN} bytes or more")
    if options.shard_records is not None and options.shard_records < 1:
        raise OptionError(f"--shard-records {options.shard_records}: allowed is 1 or more")
    if options.compress not in COMPRESSIONS:
        raise OptionError(f"--compress {options.compress}: allowed are {', '.join(COMPRESSIONS)}")
    if options.jobs < 1:
        raise OptionError(f"--jobs {options.jobs}: allowed is 1 or more")


def plan_shards(records: Sequence[SourceRecord], options: PackOptions) -> list[tuple[SourceRecord, ...]]:
    """Share records out over shards, each filled as far as the limits allow."""
    return list(_fill(_ordered(records, options.shuffle), options))


def _ordered(records: Sequence[SourceRecord], shuffle: int | None) -> Sequence[SourceRecord]:
    if shuffle is None:
        return records
    return [records[i] for i in generator(shuffle, "pack").permutation(len(records))]


def _fill(records: Sequence[SourceRecord], options: PackOptions) -> Iterator[tuple[SourceRecord, ...]]:
    shard: list[SourceRecord] = []
    size = 0
    for record in records:
        full = size + record.shard_bytes + len(END_MARK) > options.shard_bytes
        if shard and (full or len(shard) == options.shard_records):
            yield tuple(shard)
            shard, size = [], 0
        shard.append(record)
        size += record.shard_bytes
    if shard:
        yield tuple(shard)
