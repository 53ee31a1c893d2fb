"""What a split holds: every record's files as byte ranges, in NumPy arrays.

In: a split folder with tar shards, record folders or both. Out: a frozen :class:`Split`. A record that lies both
in a shard and in a folder counts once (the shard's copy is read). No Python object is kept per record: a million
records of 16 frames take about 0.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.errors import DatasetError, RecordError
from ..base.stores import list_folder
from ..records import names
from ..records.record import list_record_folders, read_plain_file
from ..shards.index import RecordEntry, load_index

IN_FOLDER = -1


@dataclass(frozen=True, repr=False)
class Split:
    """The records of one split, sorted by key.

    ``keys``: (N,) str. ``shard``: (N,) int32 index into ``shards``, or -1 for the folder ``root/key``.
    ``first``: (N + 1,) int64; the files of record i are rows ``first[i]:first[i + 1]`` of ``ranges``, colour
    frames first, then as many masks. ``ranges``: (M, 2) int64 offset and length in the shard (0, 0 in a folder).
    """

    root: Path
    shards: tuple[Path, ...]
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

    def without(self, keys: np.ndarray) -> Split:
        """Give the split less the records whose key is in ``keys``."""
        keep = np.flatnonzero(~np.isin(self.keys, keys))
        counts = np.diff(self.first)[keep]
        rows = [np.arange(self.first[i], self.first[i + 1]) for i in keep]
        return Split(
            self.root,
            self.shards,
            self.keys[keep],
            self.shard[keep],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.ranges[np.concatenate(rows)] if rows else self.ranges[:0],
        )


def open_split(root: Path) -> Split:
    """Find every record in ``root``.

    Raises:
        DatasetError: there is no such folder, or not one record in it.
        ShardError: a shard is damaged.
        RecordError: a record folder's name is not allowed.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; {_how_to_make(root)}")
    shards = tuple(sorted(path for path in root.iterdir() if path.name.endswith(names.SHARD_SUFFIX)))
    found: dict[str, tuple[int, np.ndarray]] = {}
    for number, shard in enumerate(shards):
        for entry in load_index(shard).records:
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
        raise DatasetError(f"{root}: holds no record and no shard; {_how_to_make(root)}")
    keys = sorted(found)
    counts = [len(found[key][1]) for key in keys]
    return Split(
        root=root,
        shards=shards,
        keys=np.array(keys),
        shard=np.array([found[key][0] for key in keys], np.int32),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ranges=np.concatenate([found[key][1] for key in keys]),
    )


def open_dataset(root: Path) -> tuple[Split, Split, int]:
    """Open ``root/train`` and ``root/eval``; records of both count for ``eval`` only.

    Returns:
        train, eval, and how many records of ``train`` were left out because ``eval`` has them.

    Raises:
        DatasetError: a split is missing or empty, or nothing is left to train on.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; give the folder that holds train/ and eval/")
    evaluation = open_split(root / "eval")
    everything = open_split(root / "train")
    train = everything.without(evaluation.keys)
    if not len(train):
        raise DatasetError(f"{root / 'train'}: every record is in eval/ too; make others to train on")
    return train, evaluation, len(everything) - len(train)


def read_files(split: Split, record: int, wanted: list[tuple[int, str]]) -> list[tuple[str, bytes]]:
    """Read files of a record.

    Args:
        split: where the record is.
        record: its index.
        wanted: (frame, "C") for a colour frame, (frame, "M") for a mask.

    Returns:
        (what to call the file in an error, its bytes), in the order of ``wanted``.

    Raises:
        RecordError: a file cannot be read or is larger than 256 MiB.
    """
    key = str(split.keys[record])
    first, count = int(split.first[record]), split.frame_count(record)
    shard = int(split.shard[record])
    found = []
    try:
        if shard == IN_FOLDER:
            for frame, kind in wanted:
                path = split.root / key / (names.frame_file(frame) if kind == "C" else names.mask_file(frame))
                found.append((str(path), read_plain_file(path)))
            return found
        path = split.shards[shard]
        with path.open("rb", buffering=0) as opened:
            for frame, kind in wanted:
                offset, length = split.ranges[first + frame + (count if kind == "M" else 0)].tolist()
                opened.seek(offset)
                found.append((f"{path}:{key}.{frame:04d}_{kind}.png", opened.read(length)))
    except OSError as error:
        raise RecordError(
            f"{split.root}/{key}: cannot be read ({error.strerror}); check the dataset"
        ) from error
    return found


def _ranges(entry: RecordEntry) -> np.ndarray:
    """Give the (2n, 2) offsets and lengths of a record's frames, then masks."""
    places = {member.file: (member.offset, member.length) for member in entry.members}
    count = entry.frame_count
    files = [names.frame_file(i) for i in range(count)] + [names.mask_file(i) for i in range(count)]
    return np.array([places[file] for file in files], np.int64).reshape(-1, 2)


def _how_to_make(split: Path) -> str:
    if split.name == "eval":
        return (
            "training needs train/ and eval/: make it from a video that is not in train/ "
            f"(vshard generate VIDEO -o {split}), or move some record folders there from train/"
        )
    return f"make records first: vshard generate VIDEO -o {split} --prefix NAME"
