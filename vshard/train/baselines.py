"""What a network has to beat: fills that need no training.

A record's holes are what a view shifted to the left eye and back does not show. They open to the right of what is
near, so the background lies to the *right* of a hole: in backward records and in forward ones, whose frames are
mirrored before their holes are found. A base view drawn as "left" mirrors the rows and exchanges the eyes, which leaves
the side as it is (:mod:`vshard.masks.warp`). So nothing need be known of a record, and the original's will do.

Cost of a 512×512 frame with a hole of 200×30 on a CPU core: 12 ms shifted, 10 ms Telea.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

TELEA_RADIUS_PX = 3

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


def unfilled(rgb: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Leave the holes black.

    Args:
        rgb: (T, H, W, 3) uint8.
        hole: (T, H, W) bool, True = to fill.

    Returns:
        (T, H, W, 3) uint8.
    """
    return np.where(hole[..., None], np.uint8(0), rgb)


def shifted(rgb: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill each pixel of a hole with the nearest known one to its right, in its row: the background's side.

    Where a hole reaches the frame's right side it takes the nearest known one to its left, and black in a row of
    nothing else. Arguments and result as of :func:`unfilled`.
    """
    width = rgb.shape[2]
    columns = np.arange(width)
    right = np.minimum.accumulate(np.where(hole, width, columns)[..., ::-1], axis=2)[..., ::-1]
    left = np.maximum.accumulate(np.where(hole, -1, columns), axis=2)
    source = np.where(right < width, right, left)[..., None]
    return np.where(source >= 0, np.take_along_axis(rgb, np.maximum(source, 0), axis=2), np.uint8(0))


def telea(rgb: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill frame by frame with OpenCV's marching inpainting (Telea, 2004), radius 3; see :func:`unfilled`."""
    frames = zip(unfilled(rgb, hole), hole.astype(np.uint8), strict=True)
    return np.stack([cv2.inpaint(frame, mask, TELEA_RADIUS_PX, cv2.INPAINT_TELEA) for frame, mask in frames])


BASELINES: dict[str, Fill] = {"unfilled": unfilled, "shifted": shifted, "telea": telea}
