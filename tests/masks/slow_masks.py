"""The forward non-warp mask the obvious way: whole frames, sort, write in order, repair step by step.

What section 5 of the facts of the original tells, in that order and by PyTorch alone: all pixels sorted by depth
and copied over each other, far to near, into two planes; the column index warped along as one more channel; up to
a hundred steps of filling and of repairing, as many as there is something to do for. The tests hold
`vshard.masks.warp` to it, `benchmarks/masks.py` takes its time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNDEFINED = -1.0
LAYERED = -2.0
STEPS = 100


def slow_nonwarp_mask(
    depth: Tensor, size: tuple[int, int], *, divergence: float, convergence: float, view: str
) -> Tensor:
    """Do what `vshard.masks.warp.nonwarp_mask` does; arguments and result as there."""
    if tuple(depth.shape[-2:]) != size:
        depth = F.interpolate(depth, size=size, mode="bilinear", align_corners=True, antialias=True)
    away = "left" if view == "right" else "right"
    if view == "left":
        depth = depth.flip(-1)
    warped, _ = slow_warp(depth, depth, divergence, convergence, away)
    _, state = slow_warp(torch.zeros_like(depth), warped.clamp(min=0), divergence, convergence, view)
    mask = torch.where(state == UNDEFINED, 1.0, torch.where(state == LAYERED, 0.5, 0.0))
    return mask.flip(-1) if view == "left" else mask


def slow_warp(
    image: Tensor, depth: Tensor, divergence: float, convergence: float, eye: str
) -> tuple[Tensor, Tensor]:
    """Warp an image of one channel to one eye.

    Args:
        image: (T, 1, H, W) float32, at least 0.
        depth: (T, 1, H, W) float32 in [0, 1], 1 = nearest.
        divergence: in percent of W, for both eyes together.
        convergence: in [0, 1].
        eye: "left" or "right".

    Returns:
        The image with its holes filled, and for each pixel 0, `UNDEFINED` or `LAYERED`; both like ``image``.
    """
    width = depth.shape[3]
    reach = divergence * 0.01 * width * 0.5
    pad = int(width * divergence / 100 + 2)
    image, depth = (F.pad(plane, (pad, pad, 0, 0), mode="replicate") for plane in (image, depth))
    columns = torch.arange(depth.shape[3], dtype=torch.float32).expand_as(depth)
    shift = depth * reach - reach * convergence
    target = (columns + shift if eye == "left" else columns - shift).clamp(0, depth.shape[3] - 1)
    share = (target - target.floor()).clamp(1e-5, 1 - 1e-5)

    order = depth.flatten().argsort()  # far to near: the last to be written stays
    row_starts = torch.arange(depth.numel() // depth.shape[3]).view(*depth.shape[:3], 1) * depth.shape[3]
    planes = []
    for cell, weight in ((target.floor(), 1 - share), (target.ceil(), share)):
        place = (row_starts + cell.long()).flatten()[order]
        sources = torch.stack([plane.flatten() for plane in (weight, image, columns)])[:, order]
        planes.append(_written(place, sources).view(3, *depth.shape))
    (w0, image0, index0), (w1, image1, index1) = planes
    total = w0 + w1
    image = torch.where(total > 0, image0 + (image1 - image0) * (w1 / total), UNDEFINED)[..., pad:-pad]
    index = torch.where(total > 0, (index0 * w0 + index1 * w1) / total, UNDEFINED)[..., pad:-pad]

    state = torch.where(index == UNDEFINED, UNDEFINED, 0.0)
    index = _filled(index, eye)
    for _ in range(STEPS):
        neighbour = _beside(index, "left" if eye == "right" else "right")
        behind = neighbour > index if eye == "right" else neighbour < index
        if not behind.any():
            break
        index = torch.where(behind, neighbour, index)
        state = torch.where(behind, LAYERED, state)
        image = torch.where(behind, UNDEFINED, image)
    return _filled(image, eye), state


def _written(place: Tensor, sources: Tensor) -> Tensor:
    """Copy sources (C, N) to their places one after the other; what gets none is 0."""
    targets, before = torch.zeros_like(sources), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # else threads write side by side, and the last is anyone's
    try:
        return targets.index_copy_(1, place, sources)
    finally:
        torch.use_deterministic_algorithms(before)


def _filled(values: Tensor, eye: str) -> Tensor:
    """Let undefined pixels copy their neighbour: left eye the left one, right eye the right one."""
    for _ in range(STEPS):
        undefined = values == UNDEFINED
        if not undefined.any():
            break
        values = torch.where(undefined, _beside(values, eye), values)
    return values


def _beside(values: Tensor, side: str) -> Tensor:
    """Give each pixel's neighbour on one side; at the border the pixel itself."""
    if side == "left":
        return torch.cat([values[..., :1], values[..., :-1]], dim=-1)
    return torch.cat([values[..., 1:], values[..., -1:]], dim=-1)
