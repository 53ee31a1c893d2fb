"""Which videos a model was trained on: kept in its file, so that nobody scores it on them unaware.

In a model file ``train_kwargs["sources"]`` is a list of lines, one a video: the key of its first record, and the
fingerprint of its file where the metadata tells it. iw3 loads such a file as any other. Models without the list (iw3's
own) do not tell what they were trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.jobs import Meter, run_jobs
from ..base.report import Report, Silent
from ..base.stores import Place, list_folder
from ..records.record import is_record_file
from ..shards.holdings import Holdings, read_each
from ..shards.index import load_index
from ..shards.listing import tell_origin
from ..shards.videos import Origin, file_hash_of, stem_of, video_ids
from ..stream.split import IN_FOLDER, Split
from .export import open_model

SOURCES = "sources"
# A line that stands for the unknown: the first weights were of a model that does not tell.
UNKNOWN = "?"
_JOBS = 8


@dataclass(frozen=True)
class TrainedOn:
    """The videos a model was trained on, by a record of each; ``complete``: there were no others."""

    origins: tuple[Origin, ...]
    complete: bool

    def lines(self) -> list[str]:
        """Give it as plain text for a model file."""
        told = [_line(origin) for origin in self.origins]
        return sorted(told if self.complete else [*told, UNKNOWN])


def sources_of(split: Split, jobs: int, report: Report) -> list[str]:
    """Give the videos of a split's records, a line a video, sorted: ``train_kwargs["sources"]`` of a model file.

    Reads the metadata of one record a video; see :func:`origins_of`.

    Raises:
        ShardError: a shard's index cannot be read.
        StoreError: a store cannot be reached.
    """
    first: dict[str, Origin] = {}
    for origin in origins_of(split, range(len(split)), jobs, report):
        first.setdefault(_group(origin.key), origin)
    return sorted(map(_line, first.values()))


def sources_of_run(
    split: Split, report: Report, last: dict[str, Any] | None, weights: Path | None
) -> list[str]:
    """Give the videos that a run's weights have seen and will see, as :func:`sources_of` does.

    Args:
        split: what the run trains on.
        report: told how far it is.
        last: the checkpoint that it goes on from.
        weights: without one, the model file that it starts from.

    Raises:
        CheckpointError: ``weights`` cannot be read.
        ShardError, StoreError: as :func:`sources_of`.
    """
    own = sources_of(split, _JOBS, report)
    if last is not None:
        return joined(own, trained_on(last.get("train_kwargs")))
    return own if weights is None else joined(own, trained_on(open_model(weights).train_kwargs))


def trained_on(train_kwargs: Any) -> TrainedOn:
    """Read what a model file's ``train_kwargs`` tell; where they tell nothing, nothing is known."""
    lines = train_kwargs.get(SOURCES) if isinstance(train_kwargs, dict) else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return TrainedOn((), complete=False)
    told = (line.partition(" ") for line in lines if line != UNKNOWN)
    return TrainedOn(tuple(Origin(key, fingerprint) for key, _, fingerprint in told), UNKNOWN not in lines)


def joined(sources: Iterable[str], earlier: TrainedOn) -> list[str]:
    """Give the lines of a model that was trained on ``sources`` after it had been trained on ``earlier``."""
    return sorted({*sources, *earlier.lines()})


def trained_videos(trained: TrainedOn, origins: Sequence[Origin], videos: dict[str, str]) -> set[str]:
    """Give those of ``videos`` (key -> video, of ``origins``) that a model was trained on, by the rules of a split."""
    ids = video_ids([*trained.origins, *origins])
    seen = {ids[origin.key] for origin in trained.origins}
    return {videos[origin.key] for origin in origins if ids[origin.key] in seen}


def origins_of(split: Split, records: Iterable[int], jobs: int, report: Report) -> list[Origin]:
    """Tell where records come from.

    Records whose keys agree up to their FILE_HASH count as of one video, as ``generate`` makes them, and the metadata
    of the first is read for all: a small read a video, whatever the number of records. Where that is damaged the key
    tells.

    Args:
        split: the split.
        records: numbers of its records.
        jobs: how many shards are read at a time.
        report: told how far it is.

    Returns:
        An origin a record, in the order of ``records``.

    Raises:
        ShardError: a shard's index cannot be read.
        StoreError: a store cannot be reached.
    """
    chosen = np.asarray(list(records), np.int64)
    keys: list[str] = split.keys[chosen].tolist()
    first: dict[str, int] = {}
    for key, record in zip(keys, chosen.tolist(), strict=True):
        first.setdefault(_group(key), record)
    of_shard: dict[int, list[str]] = {}
    for record in first.values():
        of_shard.setdefault(int(split.shard[record]), []).append(str(split.keys[record]))

    def work(inside: tuple[int, list[str]], meter: Meter) -> dict[str, Origin]:
        shard, wanted = inside
        found = read_each(_holdings(split, shard, wanted), wanted, tell_origin, 1, Silent())
        meter.add(len(wanted))
        return {_group(key): one if isinstance(one, Origin) else Origin(key) for key, one in found.items()}

    report.start(f"looking up the videos of {split.root}", len(first), "videos")
    parts = run_jobs(work, of_shard.items(), jobs, report)
    report.finish()
    told = {group: origin for part in parts for group, origin in part.items()}
    return [told[_group(key)]._replace(key=key) for key in keys]


def _holdings(split: Split, shard: int, keys: Sequence[str]) -> Holdings:
    """Give what holds ``keys``: a shard, or their folders alone."""
    if shard != IN_FOLDER:
        place = split.shards[shard]
        return Holdings(split.root, {}, {place.name: load_index(place)}, {})
    return Holdings(split.root, {key: _files(split.root / key) for key in keys}, {}, {})


def _files(folder: Place) -> dict[str, int]:
    return {entry.name: entry.size_bytes for entry in list_folder(folder) if is_record_file(entry.name)}


def _group(key: str) -> str:
    """Give what the keys of one video's records share: all up to the FILE_HASH, else all but the last number."""
    hashed = file_hash_of(key)
    return key[: key.rindex(f"{hashed}_") + len(hashed)] if hashed else stem_of(key)


def _line(origin: Origin) -> str:
    return f"{origin.key} {origin.fingerprint}".strip()
