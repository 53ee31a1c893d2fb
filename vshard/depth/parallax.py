"""The built-in depth estimator: inverse depth from how the picture moves, without any weights.

The frames of one shot come in, raw inverse depth goes out. Dense optical flow between frames far enough apart is
split into what the camera's turn explains and what its way through the scene explains (Longuet-Higgins and
Prazdny, The interpretation of a moving retinal image, 1980); the second part is inverse depth. Where nothing
moves, or flow and camera disagree, three rules stand in: lower in the picture is nearer, what moves by itself
stands on the ground in front of what it hides, and like colours side by side belong together (guided filter, He,
Sun and Tang, 2010). Last, depth is averaged along the flow and its edges are laid onto those of the picture.

No chance, no global state, the same bytes with any number of threads. Cost on two cores: about 0.1 s a frame, and
for 16 frames of 1080p under 0.3 GB beside them; scores on clips of known depth: ``benchmarks/depth.py``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..base.errors import OptionError
from .refine import follow, guided, sharpen, squared, steady

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rays = tuple[Floats, Floats, np.float32]  # x and y (h, w) where z = 1, and the focal length in px

WORKING_SHORT_SIDE = 384
SMALLEST_SIDE = 64  # smaller pictures are enlarged: the flow's pyramid needs the room
FOCAL_BY_WIDTH = 0.9  # 58 degrees from side to side; the true angle is not known
PARALLAX_PX = 5.0  # wanted between the paired frames, in the quarter of the picture that moves most
FLOW_NOISE_PX = 0.3
FLOW_NOISE_SHARE = 0.03  # of the flow's length, which is for the errors of the small-motion model, too
SEARCH_DIRECTIONS = 120  # over the half sphere, about 13 degrees apart
NEAREST = 2.0  # times as near as the ground at the lower edge; what seems nearer moves by itself
FILTERS = ((64, 8, 4e-2), (24, 4, 1.6e-2), (8, 2, 2e-3))  # radius in px, shrunk how much, smoothness


class _Sights(NamedTuple):
    """What the flow tells of each frame: (T, h, w) float32, drift (T, h, w, 2)."""

    rho: Floats  # inverse depth, one scale for the sequence
    trust: Floats  # in rho; 0 = none, 1 = as by one good pair of frames
    odd: Floats  # [0, 1], 1 = moves by itself
    still: Floats  # [0, 1], 1 = surely unmoved, under a camera that stands
    drift: Floats  # px from this frame to the next


def estimate_depth(frames: torch.Tensor) -> torch.Tensor:
    """Estimate inverse depth for the frames of one shot.

    ``frames``: (T, 3, H, W) uint8 RGB, or float32 in [0, 1], T from 1 up, in the order of time. Returns (T, 1, h, w)
    float32 on the CPU, finite, in [0, ``NEAREST``], larger = nearer, without a unit, one scale for all frames; the
    shorter of h and w is ``WORKING_SHORT_SIDE``, or that of the frames if less, and the aspect is theirs. A camera
    that stands still and a single frame give mostly the ground rule.

    Raises:
        OptionError: frames of another shape.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise OptionError(f"frames have the shape {tuple(frames.shape)}: the estimator needs (T, 3, H, W)")
    pictures = [_shrink(frame) for frame in frames.detach().cpu().permute(0, 2, 3, 1).numpy()]
    sights = _scale(_look(pictures))
    ground, horizon = _ground(sights)
    depths = []
    for index, picture in enumerate(pictures):
        rho, trust, still = _stand(sights, index, ground, horizon)
        depths.append(_fill(picture, rho, trust, still, ground))
    depths = steady(depths, pictures, sights.drift)
    crisp = [sharpen(depth, picture) for depth, picture in zip(depths, pictures, strict=True)]
    return torch.from_numpy(np.stack(crisp)[:, None])


def _shrink(frame: NDArray[Any]) -> Floats:
    """(H, W, 3) to the working size (h, w, 3) float32 in [0, 1]."""
    height, width = frame.shape[:2]
    short = min(height, width)
    factor = max(min(short, WORKING_SHORT_SIDE), SMALLEST_SIDE) / short
    size = round(width * factor), round(height * factor)
    scale = np.float32(255 if frame.dtype == np.uint8 else 1)
    small = cv2.resize(np.ascontiguousarray(frame, np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small / scale, np.float32)


def _look(pictures: list[Floats]) -> _Sights:
    """Pair each frame with those ``step`` before and after it, and read depth from the flow between them."""
    gray = [cv2.cvtColor((picture * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for picture in pictures]
    texture = [_texture(g) for g in gray]
    count, (height, width) = len(gray), gray[0].shape
    rho, trust, odd, still, known = np.zeros((5, count, height, width), np.float32)
    drift, pairs = np.zeros((count, height, width, 2), np.float32), np.zeros((count, 1, 1), np.float32)
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    y = np.arange(height, dtype=np.float32) - (height - 1) / 2
    focal = np.float32(FOCAL_BY_WIDTH * width)
    rays: Rays = (*np.meshgrid(x / focal, y / focal), focal)
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    step = _choose_step(gray)
    growth, last = 1.0, None
    for i, j in zip(range(count - step), range(step, count), strict=True):
        there, back = dis.calc(gray[i], gray[j], None), dis.calc(gray[j], gray[i], None)
        agrees, agrees_back = _agreement(there, back), _agreement(back, there)
        camera, gate = _camera(there, texture[i] * agrees, rays)
        for k, sign, flow, agree in ((i, 1, there, agrees), (j, -1, back, agrees_back)):
            seen, fits, strange = _triangulate(flow, sign * camera, rays, gate)
            certain = texture[k] * agree
            sure = certain * fits * np.float32(gate)
            if sign > 0:
                growth *= _growth(*last, seen, sure) if last else 1.0
                last = seen, sure, flow / np.float32(step)
            rho[k] += seen * sure / np.float32(growth)
            trust[k] += sure
            inside = texture[k] * follow(np.ones_like(seen), flow, 0.0)
            known[k] += inside
            odd[k] += inside * np.maximum(strange, 1 - agree)
            still[k] += certain * np.float32(1 - gate)
            drift[k] += flow * np.float32(sign / step)
            pairs[k] += 1
    for k in range(count):  # of the texture around, the share that is odd; the 0.2 stands for none
        odd[k] = cv2.blur(odd[k], (21, 21)) / (cv2.blur(known[k], (21, 21)) + np.float32(0.2))
    pairs = np.maximum(pairs, np.float32(1))
    return _Sights(rho / (trust + np.float32(1e-6)), trust, odd, still / pairs, drift / pairs[..., None])


def _choose_step(gray: list[Any]) -> int:
    """How many frames apart to look, so that near and far move differently by some pixels."""
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    spreads = []
    for i in range(0, len(gray) - 1, 4):
        flow = dis.calc(gray[i], gray[i + 1], None)[::8, ::8].reshape(-1, 2)
        spreads.append(np.percentile(np.hypot(*(flow - np.median(flow, 0)).T), 75))
    wanted = round(PARALLAX_PX / max(float(np.median(spreads or [0])), 1e-3))
    return min(max(wanted, 1), max(len(gray) // 2, 1))


def _texture(gray: Any) -> Floats:
    """(h, w) in [0, 1]: how much there is for the flow to hold on to."""
    across, down = (cv2.Sobel(gray, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    energy: Floats = cv2.blur(across * across + down * down, (9, 9))
    return energy / (energy + 4)


def _agreement(there: Floats, back: Floats) -> Floats:
    """(h, w) in [0, 1]: 1 where the way there and back ends at its start; 0 where it leaves the picture."""
    miss = there + follow(back, there, 1e3)
    return np.exp(-squared(miss) / (0.5 + 0.002 * squared(there)))


def _camera(flow: Floats, certain: Floats, rays: Rays) -> tuple[Doubles, float]:
    """Find the camera's motion: (heading, turn) (6,), and how far parallax stands out of the noise, 0 to 1.

    Many headings are tried. Across the line along which a heading moves a point, only the turn can move it, and
    that is linear in the turn (Zhang and Tomasi, Fast, robust, and consistent camera motion estimation, 1999).
    The best heading is refined five times. When the gate is 0 the turn is that of a camera that only turns.
    """
    height, width = certain.shape
    rows, columns = (
        (np.linspace(0.02, 0.98, n) * size).astype(int) for n, size in ((22, height), (38, width))
    )
    grid = np.ix_(rows, columns)
    x, y, weight = (a[grid].ravel().astype(np.float64) for a in (rays[0], rays[1], certain + 1e-3))
    moves = flow[grid].reshape(-1, 2).T.astype(np.float64) / rays[2]
    sigma = FLOW_NOISE_PX / float(rays[2]) + 0.02 * float(np.median(np.hypot(*moves)))
    at, turns = np.stack([x, y]), np.stack([[x * y, -(1 + x * x), y], [1 + y * y, -x * y, -x]])

    number = np.arange(SEARCH_DIRECTIONS) + 0.5  # Fibonacci's half sphere
    z, angle = 1 - number / SEARCH_DIRECTIONS, number * math.pi * (3 - math.sqrt(5))
    headings = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], -1)
    heading, _ = _best_heading(headings, at[:, ::2], weight[::2], moves[:, ::2], turns[..., ::2], sigma)
    angle = np.arange(8)[:, None] * math.pi / 4
    for radius in 0.16 * 0.45 ** np.arange(5):
        aside = np.cross(heading, np.eye(3)[np.abs(heading).argmin()])
        circle = np.cos(angle) * aside + np.sin(angle) * np.cross(heading, aside)
        headings = np.concatenate([heading[None], heading + radius * circle, heading + radius / 2 * circle])
        heading, turn = _best_heading(headings, at, weight, moves, turns, sigma)

    robust, only = weight, turn
    for _ in range(10):  # did the camera only turn, what would remain?
        matrix = np.einsum("kin,n,kjn->ij", turns, robust, turns) + 1e-9 * np.eye(3)
        only = np.linalg.solve(matrix, np.einsum("kin,n,kn->i", turns, robust, moves))
        rest = np.hypot(*(moves - np.einsum("kin,i->kn", turns, only)))
        robust = weight / (1 + (rest / sigma) ** 2) ** 2
    along, moved = at * heading[2] - heading[:2, None], moves - np.einsum("kin,i->kn", turns, turn)
    across = (moved[0] * along[1] - moved[1] * along[0]) / (np.hypot(*along) + 1e-9)
    good = (weight > 0.2) & (np.abs(across) < sigma)
    parallax = np.percentile(rest[good], 80) * rays[2] if good.mean() > 0.05 else 0.0
    gate = min(max((parallax / FLOW_NOISE_PX - 2) / 2, 0.0), 1.0)
    return np.concatenate([heading, turn if gate > 0 else only]), float(gate)


def _best_heading(
    headings: Doubles, at: Doubles, weight: Doubles, moves: Doubles, turns: Doubles, sigma: float
) -> tuple[Doubles, Doubles]:
    """Of ``headings`` (D, 3) that which explains the moves best, of length 1, and the turn (3,) with it.

    ``at`` and ``moves``: (2, N), ``weight``: (N,), ``turns``: (2, 3, N), the flow by unit turns. Sums are einsum's, for
    those of BLAS may depend on the number of threads.
    """
    headings = headings / np.linalg.norm(headings, axis=1, keepdims=True)
    along_x, along_y = (at[k] * headings[:, 2:] - headings[:, k : k + 1] for k in (0, 1))
    length = np.hypot(along_x, along_y) + 1e-9
    along_x, along_y = along_x / length, along_y / length
    rows = along_x[:, None] * turns[1] - along_y[:, None] * turns[0]
    seen = along_x * moves[1] - along_y * moves[0]
    robust = np.broadcast_to(weight, seen.shape)
    for _ in range(4):  # least squares, reweighted as Geman and McClure do
        heavy = rows * robust[:, None]
        matrix = np.einsum("din,djn->dij", heavy, rows) + 1e-9 * np.eye(3)
        turn = np.linalg.solve(matrix, np.einsum("din,dn->di", heavy, seen)[..., None])[..., 0]
        miss = seen - np.einsum("din,di->dn", rows, turn)
        robust = weight / (1 + (miss / sigma) ** 2) ** 2
    turned = np.einsum("kin,di->kdn", turns, turn)
    forward = along_x * (moves[0] - turned[0]) + along_y * (moves[1] - turned[1])
    sign = np.where((robust * forward / (np.abs(forward) + sigma)).sum(1) >= 0, 1.0, -1.0)[:, None]
    wrong = miss**2 + np.minimum(forward * sign, 0) ** 2  # behind the camera: wrong by all of its move
    best = (weight * wrong / (wrong + sigma**2)).sum(1).argmin()
    return headings[best] * sign[best], turn[best]


def _triangulate(flow: Floats, camera: Doubles, rays: Rays, gate: float) -> tuple[Floats, Floats, Floats]:
    """Inverse depth, how well flow and camera agree in [0, 1], and 1 where they surely do not; all (h, w)."""
    ahead_x, ahead_y, ahead_z, turn_x, turn_y, turn_z = camera.astype(np.float32)
    x, y, focal = rays
    flow_x = flow[..., 0] / focal - (x * y * turn_x - (1 + x * x) * turn_y + y * turn_z)
    flow_y = flow[..., 1] / focal - ((1 + y * y) * turn_x - x * y * turn_y - x * turn_z)
    along_x, along_y = x * ahead_z - ahead_x, y * ahead_z - ahead_y
    length2 = along_x**2 + along_y**2 + np.float32(1e-8)
    along, across = flow_x * along_x + flow_y * along_y, flow_x * along_y - flow_y * along_x
    miss2 = (across**2 + np.minimum(along, 0) ** 2) / length2 * focal**2
    noise2 = (FLOW_NOISE_PX + FLOW_NOISE_SHARE * np.sqrt(squared(flow))) ** 2
    fits = length2 / (length2 + np.float32(0.01)) * np.exp(-miss2 / (2 * noise2))  # little near the heading
    strange = miss2 + np.float32(1 - gate) * along**2 / length2 * focal**2 > 9 * noise2
    return np.maximum(along / (length2 + np.float32(1e-3)), 0), fits, strange.astype(np.float32)


def _growth(before: Floats, sure: Floats, drift: Floats, after: Floats, sure_after: Floats) -> float:
    """By what factor inverse depth's scale changed between the frames that ``drift`` joins."""
    after, sure_after = follow(after, drift), follow(sure_after, drift)
    good = (sure * sure_after > 0.1) & (before > 1e-6) & (after > 1e-6)
    ratios = after[good] / before[good] if good.sum() > 100 else np.ones(1)
    return float(np.median(ratios).clip(0.4, 2.5))


def _scale(sights: _Sights) -> _Sights:
    """Scale inverse depth so that near things have about 1, and distrust what is nearer than can be.

    Where the lower edge shows ground, the ground there has 1, and what seems more than ``NEAREST`` times as near
    moves by itself, along the camera's way. Elsewhere the 98th percentile has 1.
    """
    rho, trust, odd, height = sights.rho, sights.trust, sights.odd, sights.rho.shape[1]

    def percentile(share: float, start: int, stop: int) -> float:
        values = rho[:, start:stop:2, ::4][trust[:, start:stop:2, ::4] > 0.2]
        return float(np.percentile(values, share)) if len(values) > 50 else 0.0

    top = percentile(50, height * 9 // 10, height)
    if top > 2 * percentile(50, height // 3, height // 2):
        too_near = rho > NEAREST * top
        odd, trust = np.maximum(odd, too_near * (trust > 0.2)), trust * ~too_near
    else:
        top = percentile(98, 0, height) or 1.0
    steady = cv2.blur(odd.reshape(len(odd), -1), (1, 5), borderType=cv2.BORDER_REPLICATE)
    odd = np.asarray(steady, np.float32).reshape(odd.shape)
    return sights._replace(rho=np.minimum(rho / np.float32(top), NEAREST), trust=trust, odd=odd)


def _ground(sights: _Sights) -> tuple[Floats, float]:
    """Fit inverse depth by rows: constant down to a horizon, from there linear to the lower edge.

    Returns (h, 1) float32 and the horizon's row. Without trusted depth: 0.1, and from 0.4 of the height on up to 0.9.
    """
    height = sights.rho.shape[1]
    y = np.linspace(0, 1, height)
    weight = sights.trust.mean((0, 2), dtype=np.float64) + 1e-9
    rows = (sights.trust * sights.rho).mean((0, 2), dtype=np.float64) / weight
    fits = []
    for horizon in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        basis = np.stack([np.ones(height), np.maximum(y - horizon, 0) / (1 - horizon)])
        matrix = np.einsum("in,n,jn->ij", basis, weight, basis) + 2 * np.eye(2)
        sums = np.einsum("in,n,n->i", basis, weight, rows) + np.array([0.2, 1.6])
        far, rise = np.linalg.solve(matrix, sums)
        line = max(far, 0) * basis[0] + max(rise, 0.1) * basis[1]
        guess = 2 * ((far - 0.1) ** 2 + (rise - 0.8) ** 2) + 0.1 * (horizon - 0.4) ** 2
        fits.append(((weight * (rows - line) ** 2).sum() + guess, horizon, line))
    _, horizon, line = min(fits, key=lambda fit: fit[:2])
    return line.astype(np.float32)[:, None], horizon * height


def _stand(sights: _Sights, index: int, ground: Floats, horizon: float) -> tuple[Floats, Floats, Floats]:
    """Depth, trust and stillness of a frame in which what moves by itself stands on the ground, as one thing.

    It is also nearer than what is seen around it. Ragged things below the horizon are let be: they may as well be
    reflections and shadows on the ground.
    """
    rho, trust, still = (a[index].copy() for a in (sights.rho, sights.trust, sights.still))
    mask = (sights.odd[index] > 0.5).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask)
    for label, (left, top, width, height, area) in enumerate(boxes[1:], 1):
        ragged = area < 0.7 * width * height
        if not 0.002 < area / mask.size < 0.4 or (ragged and top > horizon):
            continue
        box = slice(top, top + height), slice(left, left + width)
        inside = labels[box] == label
        bottoms = top + height - 1 - inside[::-1].argmax(0)
        near = ground[int(np.median(np.repeat(bottoms, inside.sum(0)))), 0]
        around = rho[box][~inside & (trust[box] > 0.2)]
        if len(around) > 50:
            near = max(near, 1.05 * np.percentile(around, 80))
        rho[box][inside], trust[box][inside], still[box][inside] = near, 0.7, 0
    return rho, trust, still


def _fill(picture: Floats, rho: Floats, trust: Floats, still: Floats, ground: Floats) -> Floats:
    """Spread trusted depth over like colours, from wide to narrow; what remains is ground."""
    depth, weight = np.broadcast_to(ground, rho.shape), trust
    rest = np.float32(0.05) + np.float32(0.2) * still
    for radius, shrink, smooth in FILTERS:
        mixed = (weight * rho + rest * depth) / (weight + rest)
        depth = guided(picture, mixed, weight + rest, radius // shrink, shrink, smooth)
        weight = trust / (1 + ((rho - depth) / np.float32(0.1)) ** 2)
    return ((weight * rho + np.float32(0.1) * depth) / (weight + np.float32(0.1))).clip(0, NEAREST)
