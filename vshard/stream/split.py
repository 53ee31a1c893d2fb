"""What a split holds: every record's files as byte ranges, in NumPy arrays.

In: a split folder with tar shards, record folders or both, here or in a store. Out: a frozen :class:`Split`. A record
that lies both in a shard and in a folder counts once (the shard's copy is read). No Python object is kept per record: a
million records of 16 frames take about 0.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..base.errors import DatasetError, RecordError
from ..base.stores import Place, Remote, facts, list_folder, open_reading, read_file
from ..records import names
from ..records.record import MAX_FILE_BYTES, list_record_folders, read_plain_file
from ..shards.contents import is_compressed
from ..shards.index import RecordEntry, load_index
from ..shards.sources import list_shards

IN_FOLDER = -1


@dataclass(frozen=True, repr=False)
class Split:
    """The records of one split, sorted by key.

    ``keys``: (N,) str. ``shard``: (N,) int32 index into ``shards``, or -1 for the folder ``root/key``.
    ``first``: (N + 1,) int64; the files of record i are rows ``first[i]:first[i + 1]`` of ``ranges``, colour
    frames first, then as many masks. ``ranges``: (M, 2) int64 offset and length in the shard (0, 0 in a folder).
    """

    root: Place
    shards: tuple[Place, ...]
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
    files = [names.frame_file(frame) if kind == "C" else names.mask_file(frame) for frame, kind in wanted]
    if shard == IN_FOLDER:
        places = [split.root / key / file for file in files]
        return [(str(place), _read_file(place)) for place in places]
    place = split.shards[shard]
    rows = [first + frame + (count if kind == "M" else 0) for frame, kind in wanted]
    named = [f"{place}:{names.member_name(key, file)}" for file in files]
    return list(zip(named, _read_ranges(place, split.ranges[rows]), strict=True))


def _read_file(place: Place) -> bytes:
    if isinstance(place, Remote):
        return read_file(place, MAX_FILE_BYTES)
    try:
        return read_plain_file(place)
    except OSError as error:
        raise RecordError(f"{place}: cannot be read ({error.strerror}); check the dataset") from error


def _read_ranges(place: Place, ranges: np.ndarray) -> list[bytes]:
    """Read (n, 2) offsets and lengths of a shard; in a store with one request for all that lies between them."""
    if isinstance(place, Remote):
        start, stop = int(ranges[:, 0].min()), int(ranges.sum(axis=1).max())
        data = _read_span(place, start, stop)
        return [data[offset - start : offset - start + length] for offset, length in ranges.tolist()]
    try:
        with place.open("rb", buffering=0) as opened:
            found = []
            for offset, length in ranges.tolist():
                opened.seek(offset)
                found.append(opened.read(length))
            return found
    except OSError as error:
        raise RecordError(f"{place}: cannot be read ({error.strerror}); check the dataset") from error


# A sample asks twice, for masks and for colour frames of the same record.
@lru_cache(maxsize=2)
def _read_span(place: Remote, start: int, stop: int) -> bytes:
    with open_reading(place) as file:
        file.seek(start)
        return file.read(stop - start)


def _check_folder(root: Place, advice: str) -> None:
    entry = facts(root)
    if entry is None or not entry.is_folder:
        raise DatasetError(f"{root}: no such folder; {advice}")


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
            f"(vshard generate VIDEO -o {split}), or move some record folders there from train/"
        )
    return f"make records first: vshard generate VIDEO -o {split} --prefix NAME"
