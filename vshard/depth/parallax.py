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
    rho, trust, odd, still, known = np.zeros((5, count, height, width), np.float32)
    drift = np.zeros((count, height, width, 2), np.float32)
    pairs = np.zeros((count, 1, 1), np.float32)
    rays = _rays(height, width)
    step = _choose_step(gray)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    scale = 1.0
    last: tuple[Floats, Floats, Floats] | None = None
    for i, j in zip(range(count - step), range(step, count), strict=True):
        flows = dis.calc(gray[i], gray[j], None), dis.calc(gray[j], gray[i], None)
        agree = _agreement(*flows), _agreement(*flows[::-1])
        camera, gate = _camera(flows[0], texture[i] * agree[0], rays)
        for k, side, sign in ((i, 0, 1), (j, 1, -1)):
            flow, certain = flows[side], texture[k] * agree[side]
            seen, fits, strange = _triangulate(flow, sign * camera, rays, gate)
            sure = certain * fits * np.float32(gate)
            if k == i:
                scale *= _growth(last, (seen, sure)) if last else 1.0
                last = seen, sure, flow / np.float32(step)
            rho[k] += seen * sure / np.float32(scale)
            trust[k] += sure
            inside = texture[k] * _follow(np.ones_like(seen), flow, 0.0)
            known[k] += inside
            odd[k] += inside * np.maximum(strange, 1 - agree[side])
            still[k] += certain * np.float32(1 - gate)
            drift[k] += flow * np.float32(sign / step)
            pairs[k] += 1
    pairs = pairs.clip(1)
    odd = np.stack([cv2.blur(a, ODD) / (cv2.blur(b, ODD) + np.float32(EVID)) for a, b in zip(odd, known, strict=True)])
    return _Sights(rho / (trust + 1e-6), trust, odd, still / pairs, drift / pairs[..., None])


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
    at = flow + np.dstack(
        np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    )
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
    grid = np.ix_(
        *((np.linspace(0.02, 0.98, n) * size).astype(int) for n, size in ((22, height), (38, width)))
    )
    x, y, weight = (
        a[grid].ravel().astype(np.float64) for a in (rays[0], rays[1], certain + np.float32(1e-3))
    )
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
    camera = np.concatenate([heading, turn[cost.argmin()]])

    robust = weight
    for _ in range(10):  # the same points, did the camera only turn
        matrix = np.einsum("nki,n,nkj->ij", turns, robust, turns) + 1e-9 * np.eye(3)
        only = np.linalg.solve(matrix, np.einsum("nki,n,nk->i", turns, robust, moves))
        rest = np.hypot(*(moves - turns @ only).T)
        robust = weight / (1 + (rest / sigma) ** 2) ** 2
    along = points[0] * heading[2] - heading[:2]
    miss = np.cross(moves - turns @ camera[3:], along) / (np.hypot(*along.T) + 1e-9)
    good = (weight > 0.2) & (np.abs(miss) < sigma)
    parallax = float(np.percentile(rest[good], 80) * rays[2]) if good.mean() > 0.05 else 0.0
    gate = min(max((parallax / FLOW_NOISE_PX - 2) / 2, 0.0), 1.0)
    return (camera if gate > 0 else np.concatenate([[1, 0, 0], only])), gate


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


def _triangulate(
    flow: Floats, camera: Doubles, rays: tuple[Floats, Floats, np.float32], gate: float
) -> tuple[Floats, Floats, Floats]:
    """Inverse depth, how well flow and camera agree in [0, 1], and 1 where they surely do not; all (h, w)."""
    ahead_x, ahead_y, ahead_z, turn_x, turn_y, turn_z = camera.astype(np.float32)
    x, y, focal = rays
    flow_x = flow[..., 0] / focal - (x * y * turn_x - (1 + x * x) * turn_y + y * turn_z)
    flow_y = flow[..., 1] / focal - ((1 + y * y) * turn_x - x * y * turn_y - x * turn_z)
    along_x, along_y = x * ahead_z - ahead_x, y * ahead_z - ahead_y
    length2 = along_x**2 + along_y**2 + np.float32(1e-8)
    along = flow_x * along_x + flow_y * along_y
    across = flow_x * along_y - flow_y * along_x
    miss2 = (across**2 + np.minimum(along, 0) ** 2) / length2 * focal**2
    noise2 = (FLOW_NOISE_PX + FLOW_NOISE_SHARE * np.hypot(flow[..., 0], flow[..., 1])) ** 2
    fits = length2 / (length2 + np.float32(0.01)) * np.exp(-miss2 / (2 * noise2))  # little near the heading
    strange = miss2 + np.float32(1 - gate) * along**2 / length2 * focal**2 > 9 * noise2
    return np.maximum(along / (length2 + np.float32(1e-3)), 0), fits, strange.astype(np.float32)


def _growth(last: tuple[Floats, Floats, Floats], now: tuple[Floats, Floats]) -> float:
    """By what factor the scale of inverse depth changed from one frame to the next."""
    (before, sure, drift), after, sure_after = last, _follow(now[0], last[2]), _follow(now[1], last[2])
    good = (sure * sure_after > 0.1) & (before > 1e-6) & (after > 1e-6)
    if good.sum() < 100:
        return 1.0
    return float(np.exp(np.median(np.log(after[good] / before[good])).clip(-1, 1)))


# ---- where the flow tells nothing


def _scaled(sights: _Sights) -> _Sights:
    """Scale inverse depth so that near things have about 1; distrust what is nearer than can be.

    Where the lower edge shows ground, its inverse depth is 1, and what seems more than ``NEAREST`` times as near
    moves by itself along the camera's way. Otherwise 1 is the 98th percentile.
    """
    rho, trust, odd, height = sights.rho, sights.trust, sights.odd, sights.rho.shape[1]

    def middle(rows: slice) -> float:
        values = rho[:, rows, ::4][trust[:, rows, ::4] > 0.2]
        return float(np.median(values)) if len(values) > 50 else 0.0

    top = middle(slice(height * 9 // 10, None))
    if top > 2 * middle(slice(height // 3, height // 2)):
        far_too_near = rho > NEAREST * top
        odd = np.maximum(odd, far_too_near * (trust > 0.2))
        trust = np.where(far_too_near, 0, trust)
    else:
        sure = rho[:, ::4, ::4][trust[:, ::4, ::4] > 0.2]
        top = max(float(np.percentile(sure, 98)), 1e-9) if len(sure) > 50 else 1.0
    odd = cv2.blur(odd.reshape(len(odd), -1), (1, 5), borderType=cv2.BORDER_REPLICATE).reshape(odd.shape)
    return sights._replace(rho=np.minimum(rho / np.float32(top), NEAREST), trust=trust, odd=odd)


def _ground(sights: _Sights) -> tuple[Floats, float]:
    """Fit inverse depth by rows: constant down to a horizon, from there linear to the lower edge.

    Returns (h,) float32 and the horizon's row. Without trusted depth it is 0.1 down to 0.4 of the height, then
    rises to 0.9, as for a level camera.
    """
    height = sights.rho.shape[1]
    y = np.linspace(0, 1, height)
    weight = sights.trust.mean((0, 2), dtype=np.float64) + 1e-9
    rows = (sights.trust * sights.rho).mean((0, 2), dtype=np.float64) / weight
    best = math.inf, 0.0, 0.0, 0.0
    for horizon in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        rise = np.maximum(y - horizon, 0) / (1 - horizon)
        basis = np.stack([np.ones(height), rise], 1)
        matrix = (basis * weight[:, None]).T @ basis + 2 * np.eye(2)
        far, slope = np.linalg.solve(matrix, (basis * weight[:, None]).T @ rows + 2 * np.array([0.1, 0.8]))
        slope = max(slope, 0.1)
        miss = (weight * (rows - far - slope * rise) ** 2).sum()
        miss += 2 * ((far - 0.1) ** 2 + (slope - 0.8) ** 2) + 0.1 * (horizon - 0.4) ** 2
        best = min(best, (miss, max(far, 0.0), slope, horizon))
    _, far, slope, horizon = best
    return (far + slope * np.maximum(y - horizon, 0) / (1 - horizon)).astype(np.float32), horizon * height


ODD=(21,21)
OPEN=9
REST=0.05
MT=0.7
EVID=0.2
COMPACT=0.7
RING=1


def _stand(sights: _Sights, k: int, ground: Floats, horizon: float) -> tuple[Floats, Floats, Floats]:
    rho, trust, still = sights.rho[k].copy(), sights.trust[k].copy(), sights.still[k].copy()
    mask = (sights.odd[k] > 0.5).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPEN, OPEN)))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask)
    for label in range(1, count):
        left, top, width, height, area = boxes[label]
        box = slice(top, top + height), slice(left, left + width)
        inside = labels[box] == label
        compact = area > COMPACT * width * height
        if not 0.002 < area / mask.size < 0.4 or not (compact or top < horizon):
            continue
        bottoms = height - 1 - inside[::-1].argmax(0)
        foot = int(np.median(np.repeat(bottoms, inside.sum(0)))) + top
        near = ground[foot]
        if RING:
            ring = ~inside & (trust[box] > 0.2)
            if ring.sum() > 50:
                near = max(near, 1.05 * np.percentile(rho[box][ring], 80))
        rho[box][inside], trust[box][inside], still[box][inside] = near, MT, 0
    return rho, trust, still


def _fill(picture: Floats, rho: Floats, trust: Floats, still: Floats, ground: Floats) -> Floats:
    """Spread trusted depth over like colours, from wide to narrow; what remains is ground."""
    depth = ground
    rest = REST + 0.2 * still
    weight = trust
    for radius, shrink, smooth in FILTERS:
        mixed = (weight * rho + rest * depth) / (weight + rest)
        depth = _guided(picture, mixed, weight + rest, radius // shrink, shrink, smooth)
        weight = trust / (1 + ((rho - depth) / np.float32(0.1)) ** 2)
    return ((weight * rho + np.float32(0.1) * depth) / (weight + np.float32(0.1))).clip(0, NEAREST)


def _guided(
    picture: Floats, values: Floats, weight: Floats, radius: int, shrink: int, smooth: float
) -> Floats:
    """Filter ``values`` (h, w) by the colours of ``picture``, each pixel with its weight.

    The guided filter with a colour guide (He, Sun and Tang, 2010, eq. 14-16), fitted on a picture made smaller
    (He and Sun, Fast guided filter, 2015), by weighted instead of plain means.
    """
    height, width = values.shape
    size = max(width // shrink, 1), max(height // shrink, 1)
    heavy = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
    target = cv2.resize(values * weight, size, interpolation=cv2.INTER_AREA) / heavy
    guide = cv2.split(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    window = (2 * radius + 1, 2 * radius + 1)
    total = cv2.blur(heavy, window, borderType=cv2.BORDER_REFLECT)

    def mean(a: Floats) -> Floats:
        return np.asarray(cv2.blur(a * heavy, window, borderType=cv2.BORDER_REFLECT) / total, np.float32)

    means, level = [mean(c) for c in guide], mean(target)
    p, q, r = (mean(c * target) - m * level for c, m in zip(guide, means, strict=True))
    xx, xy, xz, yy, yz, zz = (
        mean(guide[i] * guide[j]) - means[i] * means[j] + np.float32(smooth * (i == j))
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )
    # the symmetric 3×3 system by cofactors
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    scale = 1 / (xx * a + xy * b + xz * c)
    slopes = [
        (a * p + b * q + c * r) * scale,
        (b * p + d * q + e * r) * scale,
        (c * p + e * q + f * r) * scale,
    ]
    offset = level - sum(s * m for s, m in zip(slopes, means, strict=True))
    lines = cv2.resize(cv2.merge([mean(v) for v in (*slopes, offset)]), (width, height))
    return np.asarray((lines[..., :3] * picture).sum(-1) + lines[..., 3], np.float32)


def _steady(depths: list[Floats], pictures: list[Floats], drift: Floats) -> list[Floats]:
    """Average along the flow, once forward and once backward, where the colours agree."""

    def run(order: list[int], sign: int) -> dict[int, Floats]:
        done = {order[0]: depths[order[0]]}
        for before, now in zip(order, order[1:], strict=False):
            moved = _follow(np.dstack([pictures[before], done[before]]), np.float32(sign) * drift[now])
            share = 0.6 * np.exp(-((moved[..., :3] - pictures[now]) ** 2).sum(-1) / 0.01)
            done[now] = depths[now] + share * (moved[..., 3] - depths[now])
        return done

    order = list(range(len(depths)))
    forward, backward = run(order, -1), run(order[::-1], 1)
    return [(forward[k] + backward[k]) / 2 for k in order]


def _sharpen(depth: Floats, picture: Floats) -> Floats:
    """Make depth's slopes steps, and lay them where the picture's colours part.

    On a slope each pixel joins the near or the far side, whichever has the likelier colours around (a normal
    distribution each, fitted in a window), with its own depth as a prior.
    """
    window = np.ones((9, 9), np.uint8)
    near, far = cv2.dilate(depth, window), cv2.erode(depth, window)
    span = near - far
    place = (depth - far) / (span + np.float32(1e-6))
    odds = 12 * (place - 0.5)
    for sign in (1, -1):
        side = ((sign * (place - 0.5) - 0.2) * 5).clip(0, 1) * (span > 0.03) + np.float32(1e-3)
        total = cv2.blur(side, (25, 25))[..., None]
        mean = cv2.blur(picture * side[..., None], (25, 25)) / total
        spread = (cv2.blur(picture**2 * side[..., None], (25, 25)) / total - mean**2).clip(0) + np.float32(
            2e-4
        )
        odds -= sign * 0.5 * ((picture - mean) ** 2 / spread + np.log(spread)).sum(-1)
    vote = cv2.blur(1 / (1 + np.exp(-odds.clip(-30, 30) / 2)), (3, 3))
    step = far + (3 * vote - 1).clip(0, 1) * span
    return np.asarray(depth + ((span - 0.03) / 0.03).clip(0, 1) * (step - depth), np.float32)
