"""A split -> the same records in the forms that other loaders read: folders and plain shards, in a temporary folder.

All loaders are measured on the same few records, which the system has in memory afterwards: what a slow disk or a
network adds is not measured. Our loader reads them as the user has them, those of a store from the plain shards too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..base.errors import DatasetError
from ..base.report import Report, Silent
from ..base.stores import Place, facts
from ..records import names
from ..records.png_parts import parse_header
from ..shards.pack import pack
from ..shards.plan import PackOptions
from .reader import Reader
from .samples import CROP_PX, FRAMES
from .split import Split, open_split


@dataclass(frozen=True)
class Inputs:
    """What loaders are measured on: the same records three times, as the user has them, as folders and as shards.

    ``shards``: one for each worker. ``window_bytes``: the mean size of a sample's 12 frames and masks;
    ``record_bytes``: of a record's.
    """

    split: Split
    folders: tuple[Path, ...]
    shards: tuple[Path, ...]
    window_bytes: float
    record_bytes: float


def open_training(data: Place) -> Split:
    """Open a split's folder, or of a dataset its ``train/``.

    Raises:
        VshardError: as :func:`.split.open_split`.
    """
    train = data / "train"
    return open_split(data if facts(train) is None else train)


@contextmanager
def prepared(split: Split, records: int, workers: int, report: Report) -> Iterator[Inputs]:
    """Write at most ``records`` of a split's records as folders and shards, for the length of a block.

    Raises:
        DatasetError: no record can be trained on.
        VshardError: one cannot be read.
    """
    chosen = choose_records(split, records)
    reader = Reader(chosen)
    with tempfile.TemporaryDirectory(prefix="vshard-bench-") as name:
        root = Path(name)
        folders = []
        frames = total = 0
        report.start("preparing", len(chosen), "records")
        for record in range(len(chosen)):
            folder = root / "folders" / str(chosen.keys[record])
            folder.mkdir(parents=True)
            count = chosen.frame_count(record)
            window = reader.read(record, 0, count)
            for index in range(count):
                (folder / names.frame_file(index)).write_bytes(window.frames[index].data)
                (folder / names.mask_file(index)).write_bytes(window.masks[index].data)
            total += sum(len(file.data) for file in (*window.frames, *window.masks))
            frames += count
            folders.append(folder)
            report.advance(record + 1)
        # A loader of shards needs one for each worker, even where there are fewer records.
        for number in range(workers):
            part = root / "parts" / str(number)
            part.mkdir(parents=True)
            for folder in folders[number % len(folders) :: workers]:
                (part / folder.name).symlink_to(folder, target_is_directory=True)
            # Each in a folder of its own, for two may hold the same record.
            pack(PackOptions((str(part),), root / "shards" / str(number), "bench"), Silent())
        shards = tuple(sorted((root / "shards").rglob("*.tar")))
        report.finish()
        yield Inputs(
            chosen if isinstance(split.root, Path) else _local(folders, root / "local"),
            tuple(folders),
            shards,
            FRAMES * total / frames,
            total / len(folders),
        )


def _local(folders: Sequence[Path], target: Path) -> Split:
    pack(PackOptions(tuple(map(str, folders)), target, "local"), Silent())
    return open_split(target)


def choose_records(split: Split, count: int) -> Split:
    """Choose records that can be trained on, spread evenly over the split.

    Raises:
        DatasetError: there is none.
        VshardError: one cannot be read.
    """
    long_enough = np.flatnonzero(np.diff(split.first) // 2 >= FRAMES)
    spread = np.unique(np.linspace(0, len(long_enough) - 1, min(count, len(long_enough))).astype(np.int64))
    # Where one of these is too small, others are looked at.
    tried = np.concatenate([long_enough[spread], np.delete(long_enough, spread)])
    reader = Reader(split)
    large_enough = (record for record in tried.tolist() if _is_large_enough(reader, record))
    chosen = list(islice(large_enough, count))
    if not chosen:
        raise DatasetError(
            f"{split.root}: holds no record of at least {FRAMES} frames and {CROP_PX}x{CROP_PX} pixels, which "
            "training takes; make larger ones: vshard generate VIDEO --seq 16 --size 512"
        )
    return split.without(np.delete(split.keys, chosen))


def _is_large_enough(reader: Reader, record: int) -> bool:
    (file,) = reader.read(record, 0, 1).frames
    header = parse_header(file.data, file.name)
    return min(header.width, header.height) >= CROP_PX
