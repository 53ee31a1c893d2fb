"""Turn, resize and crop frames and masks.

`rotate_and_crop` and `resize_short_side` prepare the frames of a sequence before depth is inferred;
`best_crop` picks the square that is written, since training learns nothing where there is no hole.
Rotation samples only the pixels that are kept: 763² of 1920×1080.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import OptionError

ResizeMode = Literal["bicubic", "bilinear"]

# A crop is written only when its mask area is above this many pixels a frame.
MIN_MASK_AREA_PX = 300


class Crop(NamedTuple):
    """A square of all frames: its upper left corner, and the mask's sum over it, all frames together."""

    row: int
    column: int
    mask_area_px: float


def rotate_and_crop(frames: Tensor, angle_degrees: float) -> Tensor:
    """Rotate about the centre and keep the centred square that shows no border at any angle.

    Bilinear; the square's side is ``floor(min(H, W) / sqrt 2)`` (facts of the original, sections 3 and 12).

    Args:
        frames: (T, C, H, W) float32.
        angle_degrees: counter-clockwise.

    Returns:
        (T, C, side, side) float32, in the range of ``frames``.
    """
    height, width = frames.shape[-2:]
    side = int(min(height, width) / math.sqrt(2))
    # Halves go to the even pixel, as in the original.
    top, left = round((height - side) / 2), round((width - side) / 2)
    steps = torch.arange(side, dtype=torch.float32, device=frames.device) + 0.5
    y, x = (steps + (top - height / 2))[:, None], (steps + (left - width / 2))[None, :]
    cos, sin = math.cos(math.radians(angle_degrees)), math.sin(math.radians(angle_degrees))
    grid = torch.stack([(cos * x - sin * y) / (width / 2), (sin * x + cos * y) / (height / 2)], dim=-1)
    return F.grid_sample(frames, grid.expand(len(frames), -1, -1, -1), mode="bilinear", align_corners=False)


def resize_short_side(frames: Tensor, short_side: int, mode: ResizeMode) -> Tensor:
    """Resize so that the short side is ``short_side``, antialiased, the long side cut to whole pixels.

    Sizes as the original's (facts of the original, section 12), which rounds down in floating point:
    a square of 571 becomes 719×720. Frames already of that size come back untouched.

    Args:
        frames: (T, C, H, W) float32 in [0, 1].
        short_side: in pixels.
        mode: "bicubic", which may overshoot [0, 1] a little and is not clipped, or "bilinear".

    Returns:
        (T, C, H', W') float32.
    """
    height, width = frames.shape[-2:]
    if min(height, width) == short_side:
        return frames
    scale = short_side / min(height, width)
    size = (short_side, int(width * scale)) if height < width else (int(height * scale), short_side)
    return F.interpolate(frames, size=size, mode=mode, align_corners=False, antialias=True)


def draw_places(
    frame: tuple[int, int], size: int, generator: np.random.Generator, candidates: int = 4
) -> list[tuple[int, int]]:
    """Draw where crops may lie (facts of the original, section 3).

    Args:
        frame: (H, W) in pixels.
        size: side of the square crop in pixels.
        generator: gives the places, every one equally likely.
        candidates: places drawn.

    Returns:
        (row, column) of upper left corners, in the order drawn.

    Raises:
        OptionError: the crop is larger than the frames.
    """
    height, width = frame
    if size > min(height, width):
        raise OptionError(
            f"a crop of {size}x{size} does not fit into frames of {width}x{height}; use a smaller --size"
        )
    rows = generator.integers(0, height - size, size=candidates, endpoint=True)
    columns = generator.integers(0, width - size, size=candidates, endpoint=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def best_crop(mask: Tensor, places: list[tuple[int, int]], size: int) -> Crop:
    """Give the crop with the most hole; on equal areas the first wins (facts of the original, section 3).

    Args:
        mask: (T, 1, H, W) float32 in [0, 1], above 0 = hole. One place serves all frames.
        places: (row, column) of upper left corners, as from :func:`draw_places`.
        size: side of the square crop in pixels.

    Returns:
        The crop; it is worth writing when its area is above `MIN_MASK_AREA_PX` times T.
    """
    crops = []
    for row, column in places:
        inside = mask[..., row : row + size, column : column + size]
        # In float64 the sum is exact, so that ties do not depend on the number of threads.
        crops.append(Crop(row, column, float(inside.sum(dtype=torch.float64))))
    return max(crops, key=lambda crop: crop.mask_area_px)
