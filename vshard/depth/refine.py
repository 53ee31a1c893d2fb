"""Depth laid along the picture: moved with the flow, filtered by its colours, made steady and sharp.

Pictures are (h, w, 3) float32 in [0, 1], depth and weights (h, w) float32, flow (h, w, 2) float32 in pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def follow(image: Floats, flow: Floats, outside: float | None = None) -> Floats:
    """What ``image`` (h, w[, c]) shows where ``flow`` leads; beyond its border ``outside``, or the border itself."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    moved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border, borderValue=(outside or 0,) * 4)
    return np.asarray(moved, np.float32)


def squared(a: Floats) -> Floats:
    """Sum of squares over the last axis, which is short: NumPy's own sum takes several times as long."""
    return np.einsum("hwc,hwc->hw", a, a)


def guided(picture: Floats, values: Floats, weight: Floats, radius: int, shrink: int, smooth: float) -> Any:
    """Filter ``values`` (h, w) by the colours of ``picture``, each pixel by its weight.

    The guided filter with a guide in colour (He, Sun and Tang, 2010, section 3.5) with weighted means, fitted on a
    picture ``shrink`` times smaller (He and Sun, Fast guided filter, 2015).
    """
    height, width = values.shape
    size = max(width // shrink, 1), max(height // shrink, 1)
    window = (2 * radius + 1, 2 * radius + 1)
    heavy, total = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (weight, values * weight))
    guide = cv2.split(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    norm = 1 / cv2.blur(heavy, window, borderType=cv2.BORDER_REFLECT)

    def mean(a: Any) -> Any:
        return cv2.blur(a, window, borderType=cv2.BORDER_REFLECT) * norm

    weighted = [g * heavy for g in guide]
    means, level = [mean(g) for g in weighted], mean(total)
    p, q, r = (mean(g * total) - m * level for g, m in zip(guide, means, strict=True))
    xx, xy, xz, yy, yz, zz = (
        mean(weighted[i] * guide[j]) - means[i] * means[j] + np.float32(smooth * (i == j))
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy  # cofactors of the symmetric 3×3 matrix
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    scale = 1 / (xx * a + xy * b + xz * c)
    slopes = [(i * p + j * q + k * r) * scale for i, j, k in ((a, b, c), (b, d, e), (c, e, f))]
    offset = level - sum(s * m for s, m in zip(slopes, means, strict=True))
    lines = cv2.resize(cv2.merge([mean(line * heavy) for line in (*slopes, offset)]), (width, height))
    return np.einsum("hwc,hwc->hw", lines[..., :3], picture) + lines[..., 3]


def steady(depths: list[Floats], pictures: list[Floats], drift: Floats) -> list[Floats]:
    """Average along the flow where the colours agree: forward, backward, and the mean of both."""

    def run(order: list[int], sign: float) -> list[Floats]:
        done = list(depths)
        for before, now in pairwise(order):
            moved = follow(np.dstack([pictures[before], done[before]]), np.float32(sign) * drift[now])
            share = 0.6 * np.exp(squared(moved[..., :3] - pictures[now]) / -0.01)
            done[now] = depths[now] + share * (moved[..., 3] - depths[now])
        return done

    order = list(range(len(depths)))
    return [(a + b) / np.float32(2) for a, b in zip(run(order, -1), run(order[::-1], 1), strict=True)]


def sharpen(depth: Floats, picture: Floats) -> Floats:
    """Make depth's slopes steps, and lay them where the picture's colours part.

    A pixel on a slope joins the near or the far side, whichever has the likelier colours in a window around (one
    normal distribution each, channels independent), with its own depth as a prior.
    """
    window = np.ones((9, 9), np.uint8)
    near, far = cv2.dilate(depth, window), cv2.erode(depth, window)
    span = near - far
    place = (depth - far) / (span + np.float32(1e-6))
    odds = 12 * (place - 0.5)
    squares = picture * picture
    for sign in (1, -1):
        side = ((sign * (place - 0.5) - 0.2) * 5).clip(0, 1) * (span > 0.03) + np.float32(1e-3)
        total = cv2.blur(side, (25, 25))[..., None]
        mean = cv2.blur(picture * side[..., None], (25, 25)) / total
        spread = cv2.blur(squares * side[..., None], (25, 25)) / total - mean * mean
        spread = spread.clip(0) + np.float32(2e-4)
        cost = (picture - mean) ** 2 / spread + np.log(spread)
        odds -= sign * 0.5 * (cost[..., 0] + cost[..., 1] + cost[..., 2])
    vote = cv2.blur(1 / (1 + np.exp(-odds.clip(-30, 30) / 2)), (3, 3))
    step = far + (3 * vote - 1).clip(0, 1) * span
    crisp: Floats = depth + ((span - 0.03) / 0.03).clip(0, 1) * (step - depth)
    return crisp
