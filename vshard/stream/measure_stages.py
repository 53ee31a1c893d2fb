"""Where the time of our loader goes: its stages, each alone on the same samples; and the floor under all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from isal import isal_zlib
from torch.utils.data import IterableDataset, get_worker_info

from ..base.memory import keep_freed_memory
from ..records.png import decode_png
from ..records.png_crop import decode_crop, decode_mask
from ..records.png_parts import Parts, parse
from ..records.png_rows import inflate_bands, inflate_rows
from .reader import File, Reader, Window
from .samples import CROP_PX, FRAMES, Sample, training_sample
from .split import Split

# Twelve frames with masks of 512 pixels a side are 2 to 4 MB. So many do not fit into a processor's cache, as those of
# a training do not either.
_DRAWS = 48
_PASSES = 3
_SEED = 1


@dataclass(frozen=True)
class Draw:
    """What one training sample took: which frames of which record, their files, and where its crop was cut out."""

    position: int
    record: int
    wanted: range
    window: Window
    row: int
    column: int


class _Noting(Reader):
    """A reader that keeps what it read last, in memory of its own."""

    wanted = range(0)
    window = Window([], [])

    def frames(self, record: int, wanted: range) -> Iterator[File]:
        self.wanted = wanted
        self.window = Window(_copies(super().frames(record, wanted)), self.window.masks)
        return iter(self.window.frames)

    def masks(self, record: int, wanted: range) -> Iterator[File]:
        self.window = Window([], _copies(super().masks(record, wanted)))
        return iter(self.window.masks)


def _copies(files: Iterator[File]) -> list[File]:
    return [File(file.name, bytes(file.data)) for file in files]


def draw_samples(split: Split, count: int = _DRAWS) -> list[Draw]:
    """Draw training samples as training does, and find out what they took.

    Raises:
        RecordError: a record cannot be read.
    """
    reader = _Noting(split)
    draws = []
    for position in range(count):
        record = position % len(split)
        sample = _sample(reader, record, position)
        row, column = _place(sample, reader.window.frames[0])
        draws.append(Draw(position, record, reader.wanted, reader.window, row, column))
    return draws


def stage_times(split: Split) -> dict[str, float]:
    """Measure CPU ms a sample of: read, inflate (with checksums), unfilter, augment (with choosing and cutting).

    A stage that cannot be had alone is what a larger one takes more, so none is below 0 by more than noise, which
    is left out. ``sample`` is all of them, in this process.

    Raises:
        RecordError: a record cannot be read.
    """
    keep_freed_memory()  # as loader processes do
    draws = draw_samples(split)
    reader = Reader(split)
    work: dict[str, Callable[[Draw], object]] = {
        "read": lambda draw: _read(reader, draw),
        "inflate": lambda draw: inflate(draw, *parse_draw(draw)),
        "decode": _decode,
        "sample": lambda draw: _sample(reader, draw.record, draw.position),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(_PASSES):
        for name, stage in work.items():
            start = time.process_time()
            for draw in draws:
                stage(draw)
            taken[name].append((time.process_time() - start) / len(draws) * 1000)
    ms = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "read": ms["read"],
        "inflate": ms["inflate"],
        "unfilter": max(0.0, ms["decode"] - ms["inflate"]),
        "augment": max(0.0, ms["sample"] - ms["decode"] - ms["read"]),
        "sample": ms["sample"],
    }


def parse_draw(draw: Draw) -> tuple[list[Parts], list[Parts]]:
    """Parse the files of a draw's frames and of its masks."""
    frames, masks = ([parse(file.data, file.name) for file in files] for files in draw.window)
    return frames, masks


def inflate(draw: Draw, frames: list[Parts], masks: list[Parts]) -> None:
    """Inflate what a draw needs and nothing else: its crop's rows of the frames, and the whole masks."""
    for parts in frames:
        bottom = draw.row + CROP_PX
        if not parts.header.is_plain:
            isal_zlib.decompressobj().decompress(parts.body)
        elif inflate_bands(parts, draw.row, bottom) is None:
            inflate_rows(parts, bottom, "a frame")
    for parts in masks:
        if not parts.header.is_plain:
            isal_zlib.decompressobj().decompress(parts.body)
        else:
            inflate_rows(parts, parts.header.height, "a mask")


class Floor(IterableDataset[int]):
    """Inflates what ``count`` samples need and hands nothing over; each worker has parsed the files before."""

    def __init__(self, draws: list[Draw], count: int) -> None:
        """Take the draws by turns."""
        self._draws, self._count = draws, count

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        assert info is not None
        parsed = [parse_draw(draw) for draw in self._draws]
        for position in range(info.id, self._count, info.num_workers):
            number = position % len(self._draws)
            inflate(self._draws[number], *parsed[number])
            yield position


def _read(reader: Reader, draw: Draw) -> None:
    for _ in chain(reader.masks(draw.record, draw.wanted), reader.frames(draw.record, draw.wanted)):
        pass


def _sample(reader: Reader, record: int, position: int) -> Sample:
    return training_sample(reader, record, seed=_SEED, epoch=1, position=position)


def _decode(draw: Draw) -> None:
    for file in draw.window.masks:
        decode_mask(file.data, file.name)
    crop = np.empty((FRAMES, CROP_PX, CROP_PX, 3), np.uint8)
    for out, file in zip(crop, draw.window.frames, strict=True):
        decode_crop(file.data, file.name, draw.row, draw.column, out)


def _place(sample: Sample, first_frame: File) -> tuple[int, int]:
    """Find (row, column) of a sample's crop, whose first or last frame was cut out of ``first_frame``."""
    image = decode_png(first_frame.data, first_frame.name)
    image = image if image.ndim == 3 else image[..., None]
    rows, columns = (side - CROP_PX + 1 for side in image.shape[:2])
    for crop in (sample.rgb[0], sample.rgb[-1]):
        for row, column in np.argwhere((image[:rows, :columns] == crop[0, 0]).all(axis=-1)).tolist():
            if (image[row : row + CROP_PX, column : column + CROP_PX] == crop).all():
                return row, column
    raise AssertionError(f"{first_frame.name}: the crop of a sample is not found in it")
