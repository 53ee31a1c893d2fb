"""What a split holds: every record's files as byte ranges, in NumPy arrays.

In: a split folder with tar shards, record folders or both, here or in a store. Out: a frozen :class:`Split`. A record
that lies both in a shard and in a folder counts once (the shard's copy is read). No Python object is kept per record: a
million records of 16 frames take about 0.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..base.errors import DatasetError
from ..base.stores import Place, facts, list_folder
from ..records import names
from ..records.record import list_record_folders
from ..shards.contents import is_compressed
from ..shards.index import RecordEntry, load_index
from ..shards.sources import list_shards

IN_FOLDER = -1


class ShardFacts(NamedTuple):
    """What tells a shard's bytes from others: how many there are, and their SHA-256 in 64 hex digits."""

    size_bytes: int
    digest: str


@dataclass(frozen=True, repr=False)
class Split:
    """The records of one split, sorted by key.

    ``facts``: size and SHA-256 of each of ``shards``. ``keys``: (N,) str. ``shard``: (N,) int32 index into ``shards``,
    or -1 for the folder ``root/key``. ``first``: (N + 1,) int64; the files of record i are rows
    ``first[i]:first[i + 1]`` of ``ranges``, colour frames first, then as many masks. ``ranges``: (M, 2) int64 offset
    and length in the shard (0, 0 in a folder).
    """

    root: Place
    shards: tuple[Place, ...]
    facts: tuple[ShardFacts, ...]
    keys: np.ndarray
    shard: np.ndarray
    first: np.ndarray
    ranges: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Split({self.root}: {len(self)} records, {len(self.shards)} shards)"

    def frame_count(self, record: int) -> int:
        """Give how many colour frames ``record`` has."""
        return int(self.first[record + 1] - self.first[record]) // 2

    @property
    def by_shard(self) -> np.ndarray:
        """The records in the order of the shards and of their place there, those of folders last: (N,) int64."""
        shard = np.where(self.shard == IN_FOLDER, len(self.shards), self.shard)
        offset = np.zeros(len(self), np.int64)
        inside = np.flatnonzero(self.shard != IN_FOLDER)
        offset[inside] = self.ranges[self.first[inside], 0]
        return np.lexsort((offset, shard))

    @property
    def shard_counts(self) -> np.ndarray:
        """How many records each shard has, then how many lie in folders: (S + 1,) int64."""
        return np.bincount(
            np.where(self.shard == IN_FOLDER, len(self.shards), self.shard), minlength=len(self.shards) + 1
        )

    def without(self, keys: np.ndarray) -> Split:
        """Give the split less the records whose key is in ``keys``."""
        keep = np.flatnonzero(~np.isin(self.keys, keys))
        counts = np.diff(self.first)[keep]
        rows = [np.arange(self.first[i], self.first[i + 1]) for i in keep]
        return Split(
            self.root,
            self.shards,
            self.facts,
            self.keys[keep],
            self.shard[keep],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.ranges[np.concatenate(rows)] if rows else self.ranges[:0],
        )


def open_split(root: Place) -> Split:
    """Find every record in ``root``.

    Raises:
        DatasetError: there is no such folder, or not one record in it.
        ShardError: a shard is damaged.
        RecordError: a record folder's name is not allowed.
        StoreError: its store cannot be reached.
    """
    _check_folder(root, _how_to_make(root))
    shards = tuple(shard for shard in list_shards(root) if not is_compressed(shard.name))
    found: dict[str, tuple[int, np.ndarray]] = {}
    of_shards = []
    for number, shard in enumerate(shards):
        index = load_index(shard)
        of_shards.append(ShardFacts(index.size_bytes, index.digest))
        for entry in index.records:
            if entry.key in found:
                first = shards[found[entry.key][0]]
                raise DatasetError(
                    f"{shard}: record {entry.key} is in {first.name} too; keep one of the two shards"
                )
            found[entry.key] = (number, _ranges(entry))
    for folder in list_record_folders(root):
        if folder.name not in found:
            count = sum(names.is_frame_or_mask(entry.name) for entry in list_folder(folder))
            found[folder.name] = (IN_FOLDER, np.zeros((count, 2), np.int64))
    if not found:
        packed = next((shard for shard in list_shards(root) if is_compressed(shard.name)), None)
        if packed is not None:
            raise DatasetError(
                f"{packed}: is compressed, training reads plain shards; make them: vshard pack {root} -o FOLDER"
            )
        raise DatasetError(f"{root}: holds no record and no shard; {_how_to_make(root)}")
    keys = sorted(found)
    counts = [len(found[key][1]) for key in keys]
    return Split(
        root=root,
        shards=shards,
        facts=tuple(of_shards),
        keys=np.array(keys),
        shard=np.array([found[key][0] for key in keys], np.int32),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ranges=np.concatenate([found[key][1] for key in keys]),
    )


def open_dataset(root: Place) -> tuple[Split, Split, int]:
    """Open ``root/train`` and ``root/eval``; records of both count for ``eval`` only.

    Returns:
        train, eval, and how many records of ``train`` were left out because ``eval`` has them.

    Raises:
        DatasetError: a split is missing or empty, or nothing is left to train on.
    """
    _check_folder(root, "give the folder that holds train/ and eval/")
    if facts(root / "train") is None and facts(root / "eval") is None and _holds_records(root):
        raise DatasetError(
            f"{root}: is a split; give the folder that holds train/ and eval/, {root.parent} perhaps"
        )
    evaluation = open_split(root / "eval")
    everything = open_split(root / "train")
    train = everything.without(evaluation.keys)
    if not len(train):
        raise DatasetError(f"{root / 'train'}: every record is in eval/ too; make others to train on")
    return train, evaluation, len(everything) - len(train)


def _holds_records(root: Place) -> bool:
    return bool(list_shards(root)) or bool(list_record_folders(root))


def _check_folder(root: Place, advice: str) -> None:
    entry = facts(root)
    if entry is None or not entry.is_folder:
        found = "no such folder" if entry is None else "is a file, not a folder"
        raise DatasetError(f"{root}: {found}; {advice}")


def _ranges(entry: RecordEntry) -> np.ndarray:
    """Give the (2n, 2) offsets and lengths of a record's frames, then masks."""
    places = {member.file: (member.offset, member.length) for member in entry.members}
    count = entry.frame_count
    files = [names.frame_file(i) for i in range(count)] + [names.mask_file(i) for i in range(count)]
    return np.array([places[file] for file in files], np.int64).reshape(-1, 2)


def _how_to_make(split: Place) -> str:
    if split.name == "eval":
        return (
            "training needs train/ and eval/: make it from a video that is not in train/ "
            f"(vshard generate VIDEO -o {split}), or move records there: vshard split -i {split.parent} --eval 200"
        )
    return f"make records first: vshard generate VIDEO -o {split} --prefix NAME"
