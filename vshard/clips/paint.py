"""Painters of what stands in a rendered scene: textures with a cut-out shape, drawn from a generator.

All colours are float32 in [0, 1]; a painted card is RGBA (rows, columns, 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]


def to_bytes(values: Floats) -> Image:
    """Round [0, 1] to uint8 0..255."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def noise_field(rng: np.random.Generator, rows: int, columns: int, cell: int, rough: float = 0.65) -> Floats:
    """Fractal value noise (rows, columns) float32 in [0, 1], without a seam if ``cell`` divides both."""
    total = np.zeros((rows, columns), np.float32)
    weight = 1.0
    while cell >= 2:
        grid = rng.random((math.ceil(rows / cell), math.ceil(columns / cell)), dtype=np.float32)
        grid = np.pad(grid, 2, mode="wrap")
        fine = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * fine[2 * cell : 2 * cell + rows, 2 * cell : 2 * cell + columns]
        weight *= rough
        cell //= 2
    low, high = np.percentile(total[::3, ::3], (0.5, 99.5))
    return np.asarray((total - low) / (high - low + 1e-6), np.float32).clip(0, 1)


def tint(shade: Any, dark: Any, light: Any) -> Floats:
    """Colours (rows, columns, 3) float32: ``dark`` (3,) where shade (rows, columns) is 0, ``light`` (3,) at 1."""
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    return np.asarray(low + shade[..., None] * (high - low), np.float32)


def unit_grid(rows: int, columns: int) -> tuple[Floats, Floats]:
    """Row and column of each texel, both (rows, columns) float32 from 0 to 1."""
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j].astype(np.float32)
    return y, x


def paint_blob(
    rng: np.random.Generator, rows: int, columns: int, dark: Sequence[float], light: Sequence[float]
) -> Floats:
    """A ragged heap of discs: RGBA (rows, columns, 4) float32 in [0, 1], as from all painters of cards."""
    noise = noise_field(rng, rows, columns, 2 ** max(3, round(math.log2(columns / 6))))
    y, x = unit_grid(rows, columns)
    wide = columns / rows
    inside = np.full((rows, columns), -1, np.float32)
    for _ in range(12):
        angle, away, radius = rng.random(3) * (2 * math.pi, 0.9, 0.12) + (0, 0, 0.16)
        middle_x = wide / 2 + math.cos(angle) * away * (wide / 2 - radius)
        middle_y = 0.5 + math.sin(angle) * away * (0.5 - radius)
        inside = np.maximum(inside, radius - np.hypot(x * wide - middle_x, y - middle_y))
    alpha = ((inside + 0.16 * (noise - 0.6)) * rows / 1.5 + 0.5).clip(0, 1)
    shade = (0.3 * noise + 0.7 * noise_field(rng, rows, columns, 16, 0.8)) * (1 - 0.4 * y - 0.2 * x)
    return np.dstack([tint(shade, dark, light), alpha]).astype(np.float32)


def paint_rock(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A gray, ragged heap."""
    return paint_blob(rng, rows, columns, (0.2, 0.2, 0.24), (0.95, 0.88, 0.8))


def paint_bush(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A green to yellow heap."""
    hue = rng.random()
    dark, light = (0.05 + 0.1 * hue, 0.2 - 0.06 * hue, 0.08), (0.55 + 0.5 * hue, 0.92 - 0.25 * hue, 0.3)
    return paint_blob(rng, rows, columns, dark, light)


def paint_tree(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A trunk below, a ragged crown above."""
    tree = np.zeros((rows, columns, 4), np.float32)
    trunk = tree[rows // 2 :, round(columns * 0.46) : round(columns * 0.54)]
    bark = noise_field(rng, trunk.shape[0], 2 * trunk.shape[1], 16)[:, ::2]
    trunk[:] = np.dstack([tint(bark, (0.16, 0.11, 0.08), (0.5, 0.38, 0.28)), np.ones_like(bark)])
    crown = paint_bush(rng, round(rows * 0.75), columns)
    alpha, below = crown[..., 3:], tree[: len(crown)]
    below[..., :3] += alpha * (crown[..., :3] - below[..., :3])
    below[..., 3:] = np.maximum(alpha, below[..., 3:])
    return tree


def paint_house(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A wall with windows under a roof."""
    wall = np.array(
        [(0.86, 0.62, 0.45), (0.9, 0.83, 0.66), (0.62, 0.7, 0.78), (0.8, 0.5, 0.42)][rng.integers(4)]
    )
    noise = noise_field(rng, rows, columns, 32, 0.8)
    y, x = unit_grid(rows, columns)
    colour = tint(noise, wall * 0.65, wall) * (1 - 0.15 * (y % 0.03 < 0.004))[..., None]  # courses of stone
    storey, bay = (y - 0.3) / 0.233 % 1, x * rng.integers(3, 6) % 1
    window = (y > 0.3) & (storey > 0.25) & (storey < 0.8) & (bay > 0.3) & (bay < 0.7)
    colour[window] = tint(noise_field(rng, rows, columns, 64), (0.12, 0.18, 0.28), (0.6, 0.75, 0.9))[window]
    tiles = (0.7 + 0.3 * (y % 0.02 > 0.006))[..., None] * tint(noise, (0.36, 0.16, 0.12), (0.75, 0.36, 0.26))
    colour = np.where(y[..., None] < 0.26, tiles, colour)
    gable = ((y - 0.26 * np.abs(2 * x - 1)) * rows / 1.5).clip(0, 1)
    return np.dstack([colour, gable]).astype(np.float32)


def paint_crate(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A box of red planks."""
    grain = cv2.resize(noise_field(rng, rows, max(8, columns // 6), 16), (columns, rows))
    y, x = unit_grid(rows, columns)
    beam = (np.maximum(np.abs(y - 0.5), np.abs(x - 0.5)) > 0.41) | (np.abs(y - x) < 0.07)
    plank = 0.55 + 0.3 * (y * 7 % 1 > 0.08)
    shade = (0.4 + 0.6 * grain) * np.where(beam, 1.1, plank) * (1 - 0.25 * y)
    light = [(1.0, 0.8, 0.5), (0.55, 0.78, 0.9), (0.95, 0.5, 0.38)][rng.integers(3)]
    return np.dstack([tint(shade, (0.15, 0.1, 0.06), light), np.ones_like(shade)]).astype(np.float32)


def paint_balloon(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A striped, round balloon."""
    y, x = (2 * axis - 1 for axis in unit_grid(rows, columns))
    around = np.arcsin((x / np.sqrt((1.05 - y * y).clip(0.01))).clip(-1, 1))
    shade = noise_field(rng, rows, columns, 16) * (0.8 - 0.2 * y - 0.2 * x)
    bright = np.where(
        np.sin(6 * around)[..., None] > 0, rng.random(3) * 0.5 + (0.5, 0.2, 0.1), (1, 0.96, 0.85)
    )
    alpha = ((1 - np.hypot(x, y)) * rows / 3).clip(0, 1)
    return np.dstack([bright * (0.45 + 0.55 * shade[..., None]), alpha]).astype(np.float32)


def paint_hill(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A far hill with a ragged ridge."""
    noise = noise_field(rng, rows, columns, 2 ** max(3, round(math.log2(columns / 8))))
    y, x = unit_grid(rows, columns)
    alpha = ((y - 0.25 - 0.7 * (2 * x - 1) ** 2 - 0.25 * (noise - 0.5)) * rows / 2).clip(0, 1)
    shade = 0.3 * noise + 0.7 * noise_field(rng, rows, columns, 8, 0.9)
    return np.dstack([tint(shade, (0.1, 0.22, 0.12), (0.55, 0.66, 0.35)), alpha]).astype(np.float32)
