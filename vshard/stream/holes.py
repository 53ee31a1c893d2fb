"""The holes of a window's frames as bits of a few pictures: eight frames grow and are counted at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_BITS = 8


def to_planes(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Give the holes of masks, T of (H, W) uint8, one in memory at a time: (ceil(T / 8), H, W) uint8.

    Eight frames go into a picture, the last of them into bit 0.
    """
    planes: list[np.ndarray] = []
    for frame, mask in enumerate(masks):
        hole = np.greater(mask, 0).view(np.uint8)
        if frame % _BITS == 0:
            planes.append(hole)
            continue
        # Twice as fast as shifting, which NumPy does byte by byte.
        planes[-1] += planes[-1]
        planes[-1] |= hole
    return np.stack(planes)


def to_planes_and_sum(masks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Do the same for at most 257 masks, and give their sum: (H, W) uint16."""
    sums: list[np.ndarray] = []

    def added() -> Iterator[np.ndarray]:
        for mask in masks:
            if not sums:
                sums.append(np.zeros(mask.shape, np.uint16))
            np.add(sums[0], mask, out=sums[0])
            yield mask

    return to_planes(added()), sums[0]


def to_frames(planes: np.ndarray, out: np.ndarray) -> None:
    """Write the holes of (ceil(T / 8), H, W) planes into ``out``, (T, H, W) bool."""
    for frame, hole in enumerate(out):
        number, place = divmod(frame, _BITS)
        last = min(_BITS, len(out) - number * _BITS) - 1
        np.not_equal(planes[number] & np.uint8(1 << last - place), 0, out=hole)


def grow(planes: np.ndarray, steps: int, *, leftwards: bool = False) -> np.ndarray:
    """Grow holes to the right, or to the left, by ``steps`` pixels; (n, H, W) uint8 planes in and out."""
    # After k rounds the hole has grown by 2^k - 1 pixels; the last round goes the rest of the way.
    reach = 0
    while reach < steps:
        step = min(reach + 1, steps - reach)
        grown = np.empty_like(planes)
        near, far = planes[..., :-step], planes[..., step:]
        if leftwards:
            np.bitwise_or(near, far, out=grown[..., :-step])
            grown[..., -step:] = planes[..., -step:]
        else:
            np.bitwise_or(near, far, out=grown[..., step:])
            grown[..., :step] = planes[..., :step]
        planes, reach = grown, reach + step
    return planes


def count_frames(planes: np.ndarray) -> np.ndarray:
    """Count the frames whose hole each pixel is in: (H, W) uint8."""
    return np.add.reduce(np.bitwise_count(planes), axis=0, dtype=np.uint8)
