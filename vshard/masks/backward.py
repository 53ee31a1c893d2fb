"""What a view made by backward warping cannot show: the masks of frames as they are, by network or without.

Backward warping asks every pixel of a new view where it looks in the old one; where it has nothing to look
at, the picture is stretched. Depth goes in, a mask of holes comes out, in two ways of one result:

- :func:`mlbw_mask` is the original's: its network sees the depth from the left eye, then finds the holes of
  the way back (facts of the original, section 6). It needs the original's weights.
- :func:`gradient_mask` needs none. It projects twice by geometry and calls a hole what the second projection
  would have to stretch: where the gradient of the map from the right eye's columns to the left view's is small.
  It means to find the holes of the forward mask (:mod:`vshard.masks.warp`), and its intersection over union
  with that one is 0.95 on rendered and 0.99 on layered depth at 1080p (medians, divergences 1 to 9). On depth
  that is noise from pixel to pixel it is only 0.3 to 0.6.

Cost of a 1080p frame on one CPU core (`benchmarks/masks.py`): 0.4 s by the network at depth of 392×686, 0.05 s
by the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.edges import window_max
from .mappers import map_depth
from .mlbw import MaskNetwork
from .warp import close_mask, resized, rows_at_once

# A pixel of the network's mask is a hole from this probability up.
HOLE_PROBABILITY = 0.15
# The network reckons shifts in units of the largest it was made for.
NETWORK_REACH_PX = 32

# Where the way back stretches the view to more than this, there is a hole. At 2 that is a column with no column
# of the left view within one of it: just what forward warping leaves empty. Medians shared with the forward mask
# at 1.8, 2 and 2.2: 0.93, 0.97 and 0.91 (layered and rendered depth, divergences 2, 4 and 9).
STRETCH_LIMIT = 2.0


def mlbw_mask(
    network: MaskNetwork,
    depth: Tensor,
    size: tuple[int, int],
    *,
    divergence: float,
    convergence: float,
    mapper: str,
) -> Tensor:
    """Give the original's mask of what a view shifted to the left eye and back does not show.

    Frame by frame, so that a frame's mask does not depend on the others. The network rounds differently on
    another device or number of threads, which can move single pixels.

    Args:
        network: with the original's weights, on the device of ``depth``.
        depth: (T, 1, h, w) float32 in [0, 1], 1 = nearest, *before* the mapper; any size.
        size: (H, W) of the frames.
        divergence: in percent of the width: depth 1 and depth 0 come to lie ``divergence / 200 · W`` apart.
        convergence: in [0, 1], the depth that does not move.
        mapper: a key of `vshard.masks.mappers.MAPPERS`.

    Returns:
        (T, 1, H, W) float32: 0 known, 1 hole.

    Raises:
        OptionError: no mapper has that name.
    """
    shifts = {"divergence": divergence, "convergence": convergence}
    masks = []
    for frame in depth.split(1):
        seen = left_view(network, frame, mapper=mapper, **shifts)
        logits = hole_logits(network, map_depth(seen, mapper), **shifts)
        closed = -window_max(-window_max(logits, (1, 1)), (1, 1))
        resized = F.interpolate(closed, size=size, mode="bilinear", align_corners=True)
        masks.append((resized.sigmoid() > HOLE_PROBABILITY).float())
    return torch.cat(masks)


def left_view(
    network: MaskNetwork, depth: Tensor, *, divergence: float, convergence: float, mapper: str
) -> Tensor:
    """Give the depth, still before the mapper, as the left eye sees it.

    Arguments as for :func:`mlbw_mask`.

    Returns:
        (T, 1, h, w) float32 in [0, 1].
    """
    width = depth.shape[-1]
    delta, weights, _ = network(_features(map_depth(depth, mapper), divergence, convergence))
    y, x = (torch.linspace(-1, 1, length, device=depth.device) for length in depth.shape[-2:])
    columns = x + delta / (width // 2 - 1)
    layers = [
        F.grid_sample(
            depth,
            torch.stack([column, y[:, None].expand_as(column)], dim=-1),
            padding_mode="border",
            align_corners=True,
        )
        for column in columns.unbind(1)
    ]
    return (torch.cat(layers, dim=1) * weights).sum(dim=1, keepdim=True).clamp(0, 1)


def hole_logits(network: MaskNetwork, disparity: Tensor, *, divergence: float, convergence: float) -> Tensor:
    """Give the logits of the right eye's holes; the network knows the left eye, so it sees a mirror image.

    Args:
        network: as for :func:`mlbw_mask`.
        disparity: (T, 1, h, w) float32 in [0, 1], 1 = nearest, mapper applied.
        divergence: as for :func:`mlbw_mask`.
        convergence: as for :func:`mlbw_mask`.

    Returns:
        (T, 1, h, w) float32.
    """
    out = network(_features(disparity.flip(-1), divergence, convergence))
    logits: Tensor = out.hole_logits.flip(-1)
    return logits


def _features(disparity: Tensor, divergence: float, convergence: float) -> Tensor:
    """Put disparity beside the divergence and convergence features: (T, 3, h, w)."""
    reach = divergence * 0.5 * 0.01 * max(disparity.shape[-2:])
    planes = (reach / NETWORK_REACH_PX, -reach * convergence / NETWORK_REACH_PX)
    return torch.cat([disparity, *(torch.full_like(disparity, value) for value in planes)], dim=1)


def gradient_mask(depth: Tensor, size: tuple[int, int], *, divergence: float, convergence: float) -> Tensor:
    """Give the closed mask of what a view shifted to the left eye and back does not show, by geometry alone.

    The same whatever the number of threads.

    Args:
        depth: (T, 1, h, w) float32 in [0, 1], 1 = nearest, mapper already applied.
        size: (H, W) of the frames; depth of another size is resized first (bilinear, corners aligned).
        divergence: as for :func:`mlbw_mask`.
        convergence: as for :func:`mlbw_mask`.

    Returns:
        (T, 1, H, W) float32: 0 known, 1 hole.
    """
    height, width = size
    reach = divergence * 0.01 * width * 0.5
    step = rows_at_once(height, width, depth.device)
    mask = depth.new_empty((len(depth), 1, height, width))
    for index in range(len(depth)):
        frame = resized(depth[index : index + 1], size)[0, 0]
        for top in range(0, height, step):
            shift = frame[top : top + step] * reach - convergence * reach
            # The right eye's view of a scene is the left eye's of its mirror image.
            holes = _stretched(_left_shift(shift).flip(1)).flip(1)
            mask[index, 0, top : top + step] = holes
    return close_mask(mask)


def _left_shift(shift: Tensor) -> Tensor:
    """Give the shift that the left eye sees in each column: (N, W) float32, pixels to the right, to the same.

    A column takes, of what lands within one column to its left and to its right, the nearest of either side,
    weighted by how close it lands. Where nothing does, it takes what landed last before it, the far side.
    """
    view = _landings(shift)
    columns = torch.arange(shift.shape[1], device=shift.device)
    # Of those that land between two columns, the first is the nearest: it was shifted furthest.
    sides = view.first[:, :-1], view.first[:, 1:]
    left, right = ((1 - (view.landed.gather(1, side) - columns).abs()).clamp(min=0) for side in sides)
    low, high = (view.shift.gather(1, side) for side in sides)
    mean = low + (high - low) * (right / (left + right))
    return torch.where(left + right > 0, mean, view.shift.gather(1, sides[1] - 1))


def _stretched(shift: Tensor) -> Tensor:
    """Tell the columns that the left eye could only show stretched: (N, W) float32 pixels to (N, W) bool."""
    view = _landings(shift)
    columns = torch.arange(shift.shape[1], device=shift.device)
    following = view.first[:, 1:]
    before = columns - view.landed.gather(1, following - 1)
    after = view.landed.gather(1, following) - columns
    # Over before + after columns x of this eye the map to columns x' of the other's view gains just one.
    return torch.minimum(before, after) >= STRETCH_LIMIT / 2


class _Landings(NamedTuple):
    """Where the columns of rows land that were continued to either side, near ones hiding far ones."""

    shift: Tensor  # (N, W + 2 pad) float32, what is seen where the column lands
    landed: Tensor  # (N, W + 2 pad) float32, in order: a hidden column repeats the one that hides it
    first: Tensor  # (N, 1 + W) int64, the first to land at or right of each column from -1 to W - 1


def _landings(shift: Tensor) -> _Landings:
    """Move every column to the right by its shift: (N, W) float32, in pixels."""
    count, width = shift.shape
    pad = int(shift.abs().max()) + 3
    padded = torch.cat([shift[:, :1].expand(-1, pad), shift, shift[:, -1:].expand(-1, pad)], dim=1)
    columns = torch.arange(-pad, width + pad, device=shift.device)
    landed, source = (columns + padded).cummax(1)
    # How many land left of a column, counted cell by cell: a search takes four times as long.
    cell = (landed + 2).clamp(0, width + 1).long()
    landing = torch.zeros((count, width + 2), dtype=torch.int64, device=shift.device)
    before = landing.scatter_add_(1, cell, torch.ones_like(cell)).cumsum(1)
    return _Landings(padded.gather(1, source), landed, before[:, :-1])
