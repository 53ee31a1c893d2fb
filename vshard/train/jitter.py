"""Small moves of the network's frames and the true ones, both alike, before they are compared.

A loss that reads a fixed grid (windows of a DCT, strides of a network) would otherwise see every pixel in the same cell
of it. One of three with equal chance: a shift of up to 8 pixels, a rotation of up to 15 degrees, or nothing; the edge
is mirrored outwards (facts of the original, section 9).

Cost on a CPU core, 12 frames of 224×224: 0.1 s for a rotation, next to nothing for a shift.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_MAX_PX = 8
ROTATION_MAX_DEGREES = 15.0


def jitter(output: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Move two clips of one shape, (T, C, H, W) float, in one way that ``rng`` draws; H and W above 8."""
    kind = rng.integers(3)
    if kind == 0:
        right, down = (int(way) for way in rng.integers(-SHIFT_MAX_PX, SHIFT_MAX_PX + 1, 2))
        return shift(output, right, down), shift(target, right, down)
    if kind == 1:
        degrees = rng.uniform(-ROTATION_MAX_DEGREES, ROTATION_MAX_DEGREES)
        return rotate(output, degrees), rotate(target, degrees)
    return output, target


def shift(x: Tensor, right: int, down: int) -> Tensor:
    """Move the picture by whole pixels, mirroring what comes in: (T, C, H, W) to the same shape."""
    height, width = x.shape[-2:]
    padding = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    moved = F.pad(x, padding, mode="reflect")
    top, left = max(-down, 0), max(-right, 0)
    return moved[..., top : top + height, left : left + width]


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate counter-clockwise about the centre, mirroring what comes in: (T, C, H, W) to the same shape."""
    across, down = _margins(x)
    grid = _grid(x, degrees)[:, down : down + x.shape[-2], across : across + x.shape[-1]]
    return _look(F.pad(x, (across, across, down, down), mode="reflect"), grid)


def rotate_whole(x: Tensor, degrees: float) -> Tensor:
    """Rotate counter-clockwise on a larger canvas of zeros: (T, C, H, W) to about (T, C, 1.41 H, 1.41 W)."""
    across, down = _margins(x)
    return _look(F.pad(x, (across, across, down, down)), _grid(x, degrees))


def _margins(x: Tensor) -> tuple[int, int]:
    """Give what is added left and right, above and below, so that a square's corners find room."""
    height, width = (math.ceil(size * (math.sqrt(2) - 1) / 2) for size in x.shape[-2:])
    return width, height


def _grid(x: Tensor, degrees: float) -> Tensor:
    """Give where each pixel of the larger canvas comes from, (1, h, w, 2) in [-1, 1] and beyond.

    As in the original the outermost pixels' centres lie at ±1, where :func:`_look` takes their edges to be: the picture
    shrinks by one pixel on its way.
    """
    across, down = _margins(x)
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    size = [1, 1, x.shape[-2] + 2 * down, x.shape[-1] + 2 * across]
    # Not made on the device, which would have to be waited for.
    on_device = torch.tensor([turn], dtype=x.dtype).to(x.device, non_blocking=True)
    return F.affine_grid(on_device, size, align_corners=True)


def _look(x: Tensor, grid: Tensor) -> Tensor:
    everywhere = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x, everywhere, mode="bilinear", padding_mode="zeros", align_corners=False)
