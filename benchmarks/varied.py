"""Records -> varied copies beside them, so that a few clips make a more varied dataset.

    python benchmarks/varied.py TRAIN_FOLDER [--draws 2]

Of each record and in each draw two copies: one of its size, and one at half of it, sharper than the record, whose
frames were often enlarged. All get other colours (exchanged, inverted, a gamma from 0.5 to 2) and half of them are
turned upside down: left and right stay, since holes open to the right. Copies that are there are kept, so that it may
be stopped. A copy at half the size with hardly a hole left is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from vshard.base.seeds import generator
from vshard.records.png import decode_png, encode_png
from vshard.records.record import Record, list_record_folders, metadata_bytes, read_folder, write_record
from vshard.stream.samples import CROP_PX

# Ends the name of a copy, before the number of its draw, by how many times smaller it is.
COPIES = {1: "_varied", 2: "_half"}
IS_COPY = re.compile(rf"({'|'.join(COPIES.values())})\d+$")
# Share of a small pixel's area that has to be a hole for it to be one.
HOLE_SHARE = 0.4
# Pixels of holes a frame, on average, that make a record worth keeping.
LEAST_HOLE_PX = 300

Look = Callable[[np.ndarray], np.ndarray]


def vary(split: Path, draws: int, jobs: int = 2) -> None:
    """Write the copies of every record of ``split`` that is no copy itself."""
    records = [folder for folder in list_record_folders(split) if not IS_COPY.search(folder.name)]
    with ProcessPoolExecutor(jobs) as pool:
        for _ in pool.map(_vary_record, records, [draws] * len(records)):
            pass


def _vary_record(folder: Path, draws: int) -> None:
    record = None
    for draw, (times, ending) in product(range(1, draws + 1), COPIES.items()):
        key = f"{folder.name}{ending}{draw}"
        if (folder.parent / key).exists():
            continue
        record = record or read_folder(folder)
        copy = _copy(record, key, times)
        if copy is not None:
            write_record(folder.parent, copy)


def _copy(record: Record, key: str, times: int) -> Record | None:
    look = _draw_look(generator(71, "varied copy", key))
    frames = [look(_shrunk(decode_png(data, key), times)) for data in record.frames]
    holes = [_shrunk(np.float32(decode_png(data, key) > 0), times) >= HOLE_SHARE for data in record.masks]
    height, width = holes[0].shape
    if min(height, width) < CROP_PX or sum(hole.sum() for hole in holes) < LEAST_HOLE_PX * len(holes):
        return None
    metadata = json.loads(record.metadata) | {"key": key, "height": height, "width": width}
    return Record(
        key,
        metadata_bytes(metadata),
        tuple(encode_png(frame) for frame in frames),
        tuple(encode_png(look(np.uint8(255) * hole)) for hole in holes),
    )


def _shrunk(picture: np.ndarray, times: int) -> np.ndarray:
    if times == 1:
        return picture
    height, width = picture.shape[:2]
    return cv2.resize(picture, (width // times, height // times), interpolation=cv2.INTER_AREA)


def _draw_look(rng: np.random.Generator) -> Look:
    """Draw what is done to all frames of a copy; masks are only turned."""
    order = rng.permutation(3)
    inverted, turned = rng.random() < 0.25, rng.random() < 0.5
    gamma = math.exp(rng.uniform(-0.7, 0.7)) if rng.random() < 0.5 else 1.0
    levels = np.arange(256) / 255
    table = np.round(255 * (1 - levels if inverted else levels) ** gamma).astype(np.uint8)

    def look(picture: np.ndarray) -> np.ndarray:
        if picture.ndim == 3:
            picture = table[picture[..., order]]
        return np.ascontiguousarray(picture[::-1] if turned else picture)

    return look


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("split", type=Path)
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    vary(options.split, options.draws)
