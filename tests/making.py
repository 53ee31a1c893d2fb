"""Makes records without a video: for tests of what comes after generation."""

from __future__ import annotations

import numpy as np

from vshard.records.png import encode_png
from vshard.records.record import SCHEMA, Record, metadata_bytes


def make_record(key: str, *, frames: int = 12, size: int = 32, seed: int = 0) -> Record:
    """A record of smooth frames with a bar for a hole, different for each seed."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (size // 8, size // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    colours, masks = [], []
    for t in range(frames):
        colours.append(encode_png(np.roll(base, t, axis=1) + rng.integers(0, 8, base.shape, dtype=np.uint8)))
        mask = np.zeros((size, size), np.uint8)
        left = (seed * 5 + t) % (size - 6)
        mask[size // 4 :, left : left + 6] = 255
        mask[size // 4, left] = 128
        masks.append(encode_png(mask))
    metadata = {
        "schema": SCHEMA,
        "key": key,
        "frames": frames,
        "height": size,
        "width": size,
        "note": "Überblick",
    }
    return Record(key, metadata_bytes(metadata), tuple(colours), tuple(masks))
