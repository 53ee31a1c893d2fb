"""Which pixels a shifted view cannot see: the forward non-warp mask.

Depth goes in, a mask of holes comes out; no colour is warped. The depth is warped to the other eye, that
warped depth is warped back, and what nothing lands on is the hole (facts of the original, section 5).
Every row is on its own, so the work runs on slices of rows that stay in the processor's cache.

The original sorts by depth and repairs in up to a hundred steps. Here one scatter and one running extreme
do the same: of two sources that land in one target cell, the nearer one has been shifted further, so for
the left eye, which shifts to the right, it is the one that starts further left. The winner of a cell is
the least source column there (for the right eye the greatest), and integers have the same winner in
whatever order a GPU writes them. Only separate multiplications, additions and divisions are used: no
fused step rounds differently from one machine to the next.

Cost: 51 ms a 1080p frame on one CPU core, and some 20 MB beside the mask itself.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import OptionError
from ..depth.edges import window_max

Eye = Literal["left", "right"]

LAYERED_HOLE = 0.5

# No landing has less weight than this in its layer, so that what lands exactly on a column counts in both.
MIN_WEIGHT = 1e-5
# Pixels worked on at once on a CPU, so that they stay in its cache. On several threads torch runs a step of under
# 32768 elements, padding included, on the calling one and splits larger steps over threads that wait for each other
# after every step: 40 instead of 62 ms a frame on two idle cores, but seconds on busy ones.
CHUNK_PIXELS = 24_000
# On one thread, 12 to 192 thousand took 86, 62, 54, 51, 55 ms a 1080p frame (doubling each time), a whole frame 177.
CHUNK_PIXELS_ONE_THREAD = 96_000
# Dilations, then as many erosions, of a 3×3 window; rows farther away than the reach do not matter to a row.
CLOSING_STEPS = 2
CLOSING_REACH_PX = 2 * CLOSING_STEPS


def nonwarp_mask(
    depth: Tensor,
    size: tuple[int, int],
    *,
    divergence: float,
    convergence: float,
    view: Eye,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Give the mask of what a view shifted away and back again does not show.

    Args:
        depth: (T, 1, h, w) float32 in [0, 1], 1 = nearest, mapper already applied.
        size: (H, W) of the frames; depth of another size is resized first (bilinear, corners aligned).
        divergence: in percent of W: depth 1 and depth 0 come to lie ``divergence / 200 · W`` pixels apart.
        convergence: in [0, 1], the depth that does not move.
        view: base view. "left" mirrors the rows and exchanges the eyes as well, which nearly cancels: the
            two masks differ by rounding and where a hole touches the frame's side.
        rows: [start, stop) of the frame's rows that are wanted, each of which is on its own; None = all H.

    Returns:
        (T, 1, rows, W) float32: 0 known, 1 hole, 0.5 hole hidden behind a nearer layer. Not yet closed.

    Raises:
        OptionError: there is no such view.
    """
    if view not in ("right", "left"):
        raise OptionError(f"view {view!r} does not exist; use right or left")
    start, stop = rows or (0, size[0])
    height, width = stop - start, size[1]
    away: Eye = "left" if view == "right" else "right"
    step = rows_at_once(height, width, depth.device)
    mask = depth.new_empty((len(depth), 1, height, width))
    for index in range(len(depth)):
        frame = resized(depth[index : index + 1], size)[0, 0, start:stop]
        for top in range(0, height, step):
            part = frame[top : top + step]
            if view == "left":
                part = part.flip(1)
            part = warp_depth(part, divergence=divergence, convergence=convergence, eye=away)
            holes = hole_mask(part, divergence=divergence, convergence=convergence, eye=view)
            mask[index, 0, top : top + step] = holes.flip(1) if view == "left" else holes
    return mask


def close_mask(mask: Tensor, n: int = CLOSING_STEPS) -> Tensor:
    """Fill gaps of up to 2n pixels between holes: n dilations, n erosions, plus the mask itself, at most 1.

    Args:
        mask: (T, 1, H, W) float32 in [0, 1]. A lone 0.5 becomes 1 (facts of the original, section 5).
        n: steps of a 3×3 window; the border counts neither as hole nor as known.

    Returns:
        (T, 1, H, W) float32 in [0, 1].
    """
    closed = torch.empty_like(mask)
    for index, frame in enumerate(mask):
        grown = window_max(frame, (n, n))
        closed[index] = (frame - window_max(-grown, (n, n))).clamp(max=1)
    return closed


def warp_depth(rows: Tensor, *, divergence: float, convergence: float, eye: Eye) -> Tensor:
    """Warp depth to one eye; holes take the depth of the farther side, where that is inside the row.

    Args:
        rows: (N, W) float32 in [0, 1], 1 = nearest.
        divergence: in percent of W, as in `nonwarp_mask`.
        convergence: in [0, 1], the depth that does not move.
        eye: "left" shifts near pixels to the right, "right" to the left.

    Returns:
        (N, W) float32 in [0, 1]; 0 where there is no known pixel to fill from.
    """
    landed = _land(rows, divergence, convergence, eye)
    known = landed.known * (1 - _out_of_order(landed.column, eye))
    low, high = (landed.padded.gather(1, near) for near in landed.nearest)
    return _fill(low + (high - low) * landed.share, known, eye, otherwise=0.0)


def hole_mask(rows: Tensor, *, divergence: float, convergence: float, eye: Eye) -> Tensor:
    """Give the holes of one eye's view, warped by ``rows``; arguments as for `warp_depth`.

    Returns:
        (N, W) float32: 0 known, 1 nothing lands there, 0.5 something lands, but from behind a nearer
        layer: its source column is out of order with a column that landed before it.
    """
    landed = _land(rows, divergence, convergence, eye)
    column = _fill(landed.column, landed.known, eye, otherwise=-1.0)
    layered = _out_of_order(column, eye)
    return (1 - landed.known) * (1 - layered) + layered * LAYERED_HOLE


class _Landing(NamedTuple):
    """What lands on each column of one eye's view; all (N, W) float32 but ``padded`` and ``nearest``.

    What may be true or not is 1 or 0 in float32: comparing and choosing take torch five times as long on a CPU as
    multiplying does.
    """

    padded: Tensor  # (N, W + 2 pad) float32, the depth the sources have
    nearest: tuple[Tensor, Tensor]  # int64, winning column of ``padded`` in the floor and the ceil layer
    share: Tensor  # in [0, 1], weight of the ceil layer; 0 where nothing lands
    known: Tensor  # 0 or 1, whether anything lands
    column: Tensor  # mean source column; the last to win where nothing lands


def _land(rows: Tensor, divergence: float, convergence: float, eye: Eye) -> _Landing:
    """Shift every source, and keep for each target cell the nearest source of two layers."""
    count, width = rows.shape
    reach = divergence * 0.01 * width * 0.5
    # Twice the reach, as the original pads: its columns, and so its rounding, are ours.
    pad = int(width * divergence / 100 + 2)
    # Nine times as fast as F.pad on a CPU.
    padded = torch.cat([rows[:, :1].expand(-1, pad), rows, rows[:, -1:].expand(-1, pad)], dim=1)
    last = padded.shape[1] - 1
    columns = torch.arange(last + 1, dtype=torch.int32, device=rows.device)
    shift = padded * reach - reach * convergence
    target = (columns.float() + shift if eye == "left" else columns.float() - shift).clamp_(0, last)
    # By way of integers: floor() and ceil() would split even small steps over threads (see CHUNK_PIXELS).
    floor = target.int().float()
    high = target - floor
    ceil = floor + high.sign()
    high.clamp_(MIN_WEIGHT, 1 - MIN_WEIGHT)
    low = 1 - high
    # The outermost columns never reach the frame: one of them, with no weight, stands for "no source".
    for weight in (low, high):
        weight[:, 0] = 0
        weight[:, -1] = 0
    nothing, nearer = (last, "amin") if eye == "left" else (0, "amax")
    sources = columns.expand(count, -1)
    winners, nearest, weights = [], [], []
    for cell, weight in ((floor, low), (ceil, high)):
        winner = torch.full_like(sources, nothing).scatter_reduce_(1, cell.int().long(), sources, nearer)
        winners.append(winner[:, pad : pad + width].float())
        nearest.append(winner[:, pad : pad + width].long())
        weights.append(weight.gather(1, nearest[-1]))
    total = weights[0] + weights[1]
    column = (winners[0] * weights[0] + winners[1] * weights[1]) / total
    return _Landing(
        padded,
        (nearest[0], nearest[1]),
        (weights[1] / total).nan_to_num_(nan=0.0),
        total.sign(),
        column.nan_to_num_(nan=float(nothing)),
    )


def _out_of_order(column: Tensor, eye: Eye) -> Tensor:
    """Tell, as 1 or 0, where source columns step back: where they are not a running extreme along the row."""
    if eye == "left":
        return (column - column.flip(1).cummin(1).values.flip(1)).sign()
    return (column.cummax(1).values - column).sign()


def _fill(values: Tensor, known: Tensor, eye: Eye, otherwise: float) -> Tensor:
    """Let unknown values copy the nearest known one: to their left for the left eye, else to their right."""
    if eye == "right":
        return _fill(values.flip(1), known.flip(1), "left", otherwise).flip(1)
    columns = torch.arange(1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    source = (columns * known).cummax(1).values - 1  # -1 where nothing is known so far
    none = (-source).clamp(min=0)
    return values.gather(1, source.clamp(min=0).int().long()) * (1 - none) + none * otherwise


def rows_at_once(height: int, width: int, device: torch.device) -> int:
    """Give how many rows of a frame to work on at once; each is on its own, so results do not depend on it."""
    if device.type != "cpu":
        return height
    pixels = CHUNK_PIXELS_ONE_THREAD if torch.get_num_threads() == 1 else CHUNK_PIXELS
    return max(1, pixels // width)


def resized(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Give depth (T, 1, h, w) at ``size`` (H, W): bilinear, corners aligned, antialiased; as it is if it fits."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth, size=size, mode="bilinear", align_corners=True, antialias=True)
