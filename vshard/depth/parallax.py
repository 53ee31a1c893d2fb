"""The built-in depth estimator: inverse depth from how the picture moves, without any weights.

Frames of one shot come in, raw inverse depth goes out. Dense optical flow between frames that lie far enough
apart is split into what the camera's turn explains and what its way through the scene explains (Longuet-Higgins
and Prazdny, The interpretation of a moving retinal image, 1980); the second part is inverse depth. Where nothing
moves, or where flow and camera disagree, three rules stand in: lower in the picture is nearer, what moves by
itself stands upright on the ground, and like colours side by side belong together (guided filter, He, Sun and
Tang 2010). Last, depth is averaged along the flow and its edges are pulled onto the picture's.

All of it is deterministic and sets no global state. Cost on two cores: see ``benchmarks/depth.py``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vshard.base.errors import OptionError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

WORKING_SHORT_SIDE = 384
SMALLEST_SIDE = 64  # smaller pictures are enlarged: the flow's pyramid needs some room
FOCAL_BY_WIDTH = 0.9  # 58 degrees from side to side, where the true angle is unknown
FLOW_NOISE_PX = 0.3
FLOW_NOISE_SHARE = 0.03  # of the flow's length; holds the errors of the small-motion model, too
PARALLAX_PX = 5.0  # wanted between the paired frames, in the upper quarter of the picture
SEARCH_DIRECTIONS = 120  # over the half sphere, about 13 degrees apart
NEAREST = 2.0  # no nearer than this times the ground at the lower edge
UPRIGHT = 0.6  # what moves by itself stands upright if this tall, in heights of the camera
FILTERS = ((64, 8, 1e-2), (24, 4, 4e-3), (8, 2, 1e-3))  # radius in px, shrinking, smoothness


class _Sights(NamedTuple):
    """What the flow tells of each frame; all (T, h, w) float32 but drift."""

    rho: Floats  # inverse depth, one unknown scale for the sequence
    trust: Floats  # in its depth, 0 = none, about 1 = one good pair of frames
    odd: Floats  # [0, 1], 1 = moves by itself
    still: Floats  # [0, 1], 1 = surely unmoved under a camera that does not move
    drift: Floats  # (T, h, w, 2) px from this frame to the next


def estimate_depth(frames: torch.Tensor) -> torch.Tensor:
    """Estimate inverse depth for the frames of one shot.

    ``frames``: (T, 3, H, W) float32 in [0, 1], RGB, T from 1 up, in the order of time. Returns (T, 1, h, w)
    float32 on the CPU, finite, from 0 up, larger = nearer, without a unit, one scale for all frames; the
    shorter of h and w is ``WORKING_SHORT_SIDE`` or that of the frames if less, the aspect that of the frames.
    A camera that stands still, or a single frame, gives mostly the ground rule. ``OptionError`` for another shape.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise OptionError(f"frames have the shape {tuple(frames.shape)}: the estimator needs (T, 3, H, W)")
    pictures = [_shrink(frame) for frame in frames.detach().cpu().numpy()]
    sights = _scaled(_look(pictures))
    ground, horizon = _ground(sights)
    depths = []
    for k, picture in enumerate(pictures):
        rho, trust, still = _stand(sights, k, ground, horizon)
        depths.append(_fill(picture, rho, trust, still, np.broadcast_to(ground[:, None], rho.shape)))
    depths = _steady(depths, pictures, sights.drift)
    crisp = [_sharpen(depth, picture) for depth, picture in zip(depths, pictures, strict=True)]
    return torch.from_numpy(np.stack(crisp)[:, None])


def _shrink(frame: Floats) -> Floats:
    """(3, H, W) to the working size (h, w, 3)."""
    height, width = frame.shape[1:]
    short = min(height, width)
    factor = max(min(short, WORKING_SHORT_SIDE), SMALLEST_SIDE) / short
    size = round(width * factor), round(height * factor)
    return np.dstack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in frame])


# ---- what the flow tells


def _look(pictures: list[Floats]) -> _Sights:
    """Pair each frame with those ``step`` before and after it, and read depth from the flow between them."""
    gray = [cv2.cvtColor((p * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for p in pictures]
    texture = [_texture(g) for g in gray]
    count, (height, width) = len(gray), gray[0].shape
    rho, trust, odd, still = np.zeros((4, count, height, width), np.float32)
    drift = np.zeros((count, height, width, 2), np.float32)
    pairs = np.zeros((count, 1, 1), np.float32)
    rays = _rays(height, width)
    step = _choose_step(gray)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    scale, last = 1.0, None
    for i, j in zip(range(count - step), range(step, count), strict=True):
        flows = dis.calc(gray[i], gray[j], None), dis.calc(gray[j], gray[i], None)
        agree = _agreement(*flows), _agreement(*flows[::-1])
        camera, gate = _camera(flows[0], texture[i] * agree[0], rays)
        for k, side, sign in ((i, 0, 1), (j, 1, -1)):
            flow, certain = flows[side], texture[k] * agree[side]
            seen, fits, strange = _triangulate(flow, sign * camera, rays, gate)
            sure = certain * fits * np.float32(gate)
            if k == i:
                if last is not None:
                    scale *= _growth(*last, seen, sure, drift[i - 1])
                last = seen, sure
            rho[k] += seen * sure / np.float32(scale)
            trust[k] += sure
            inside = _follow(np.ones_like(seen), flow, 0.0)
            odd[k] += texture[k] * inside * np.maximum(strange, 1 - agree[side])
            still[k] += certain * np.float32(1 - gate)
            drift[k] += flow * np.float32(sign / step)
            pairs[k] += 1
    pairs = pairs.clip(1)
    return _Sights(rho / (trust + 1e-6), trust, odd / pairs, still / pairs, drift / pairs[..., None])


def _choose_step(gray: list[Any]) -> int:
    """How many frames apart to look, so that near and far move differently by some pixels."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    spread = [0.0]
    for i in range(0, len(gray) - 1, 4):
        flow = dis.calc(gray[i], gray[i + 1], None)[::8, ::8].reshape(-1, 2)
        spread.append(float(np.percentile(np.hypot(*(flow - np.median(flow, 0)).T), 75)))
    wanted = round(PARALLAX_PX / max(float(np.median(spread[1:] or spread)), 1e-3))
    return min(max(wanted, 1), max(len(gray) // 2, 1))


def _texture(gray: Any) -> Floats:
    """(h, w) in (0, 1]: how much there is for the flow to hold on to."""
    across = cv2.Sobel(gray, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(gray, cv2.CV_32F, 0, 1, scale=1 / 8)
    energy = cv2.blur(across * across + down * down, (9, 9))
    return np.asarray(energy / (energy + 4), np.float32)


def _follow(image: Floats, flow: Floats, outside: float | None = None) -> Floats:
    """What ``image`` shows where ``flow`` leads, by default its border continued outside."""
    height, width = flow.shape[:2]
    at = flow + np.dstack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)))
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    moved = cv2.remap(image, at, None, cv2.INTER_LINEAR, borderMode=border, borderValue=(outside or 0,) * 4)
    return np.asarray(moved, np.float32)


def _agreement(there: Floats, back: Floats) -> Floats:
    """(h, w) in [0, 1]: 1 where the way there and back ends at its start; 0 where it leaves the picture."""
    miss = there + _follow(back, there, 1e3)
    return np.exp(-(miss**2).sum(-1) / (0.5 + 0.002 * (there**2).sum(-1)))


def _rays(height: int, width: int) -> tuple[Floats, Floats, np.float32]:
    focal = np.float32(FOCAL_BY_WIDTH * width)
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / focal
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / focal
    return *np.meshgrid(x, y), focal


def _camera(flow: Floats, certain: Floats, rays: tuple[Floats, Floats, np.float32]) -> tuple[Doubles, float]:
    """Find the camera's motion: (heading, turn) (6,), and how far parallax stands out of the noise, 0 to 1.

    Each heading of the half sphere is tried: across the direction in which it moves a point, only the turn can
    move it, which is linear in the turn (Zhang and Tomasi, Fast, robust, and consistent camera motion
    estimation, 1999). The best heading is then refined five times. With gate 0 the heading is (1, 0, 0).
    """
    height, width = certain.shape
    grid = np.ix_(*((np.linspace(0.02, 0.98, n) * size).astype(int) for n, size in ((22, height), (38, width))))
    x, y, weight = (a[grid].ravel().astype(np.float64) for a in (rays[0], rays[1], certain + np.float32(1e-3)))
    moves = flow[grid].reshape(-1, 2).astype(np.float64) / rays[2]
    sigma = FLOW_NOISE_PX / rays[2] + 0.02 * np.median(np.hypot(*moves.T))
    # rows of Longuet-Higgins and Prazdny's matrix: flow of the point (x, y, 1) by unit turns
    turns = np.stack([x * y, -(1 + x * x), y, 1 + y * y, -x * y, -x], -1).reshape(-1, 2, 3)
    points = np.stack([x, y], -1), weight, moves, turns

    number = np.arange(SEARCH_DIRECTIONS) + 0.5
    z, angle = 1 - number / SEARCH_DIRECTIONS, number * math.pi * (3 - math.sqrt(5))
    ring = np.sqrt(1 - z * z)
    sphere = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], -1)
    cost, signed, turn = _try_headings(sphere, *(a[::2] for a in points), sigma)
    heading, radius = signed[cost.argmin()], 0.16
    for _ in range(5):
        first = np.cross(heading, np.eye(3)[np.abs(heading).argmin()])
        second = np.cross(heading, first)
        round_it = np.arange(8)[:, None] * math.pi / 4
        circle = np.cos(round_it) * first + np.sin(round_it) * second
        nearby = np.concatenate([heading[None], heading + radius * circle, heading + radius / 2 * circle])
        cost, signed, turn = _try_headings(nearby, *points, sigma)
        heading, radius = signed[cost.argmin()], radius * 0.45
    return _with_gate(np.concatenate([heading, turn[cost.argmin()]]), points, sigma, float(rays[2]))


def _try_headings(
    headings: Doubles, at: Doubles, weight: Doubles, moves: Doubles, turns: Doubles, sigma: float
) -> tuple[Doubles, Doubles, Doubles]:
    """Cost (D,), headings (D, 3) of length 1 with the sign that puts most points in front, turns (D, 3)."""
    headings = headings / np.linalg.norm(headings, axis=1, keepdims=True)
    along = at * headings[:, None, 2:] - headings[:, None, :2]
    along /= np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9
    across = np.stack([-along[..., 1], along[..., 0]], -1)
    rows = np.einsum("dnk,nkj->dnj", across, turns)
    seen = np.einsum("dnk,nk->dn", across, moves)
    robust = np.broadcast_to(weight, seen.shape)
    for _ in range(4):  # reweighted least squares, Geman and McClure's weights
        heavy = rows * robust[..., None]
        matrix = np.einsum("dni,dnj->dij", heavy, rows) + 1e-9 * np.eye(3)
        turn = np.linalg.solve(matrix, np.einsum("dni,dn->di", heavy, seen)[..., None])[..., 0]
        rest = seen - np.einsum("dni,di->dn", rows, turn)
        robust = weight / (1 + (rest / sigma) ** 2) ** 2
    forward = np.einsum("dnk,dnk->dn", along, moves - np.einsum("nkj,dj->dnk", turns, turn))
    sign = np.where((robust * forward / (np.abs(forward) + sigma)).sum(1) >= 0, 1.0, -1.0)[:, None]
    miss = rest**2 + np.minimum(forward * sign, 0) ** 2  # behind the camera: as wrong as it is far
    return (weight * miss / (miss + sigma**2)).sum(1), headings * sign, turn
