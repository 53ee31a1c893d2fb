"""Inputs and weights of the golden numbers, by formula (the golden README, section A). NumPy only."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


def hash01(n: int, seed: int) -> NDArray[np.float64]:
    """Give ``n`` float64 in [0, 1): a 32-bit integer hash of the index."""
    z = np.arange(n, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    z ^= z >> np.uint32(16)
    z *= np.uint32(0x7FEB352D)
    z ^= z >> np.uint32(15)
    z *= np.uint32(0x846CA68B)
    z ^= z >> np.uint32(16)
    return z / 2.0**32


def uniform(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Give ``hash01`` in a shape, C order."""
    return hash01(int(np.prod(shape)), seed).reshape(shape)


def _video_bytes(T: int, C: int, H: int, W: int, seed: int) -> NDArray[np.float64]:
    t, c, y, x = np.ogrid[0:T, 0:C, 0:H, 0:W]
    v = (
        0.5
        + 0.25 * np.sin(0.06 * (1 + 0.2 * c) * (x + 2 * t) + 0.37 * seed)
        + 0.20 * np.cos(0.045 * (1 + 0.3 * c) * (y - t) + 0.91 * seed)
        + 0.08 * (uniform((T, C, H, W), seed) - 0.5)
    )
    return np.floor(np.clip(v, 0, 1) * 255 + 0.5)


def video(T: int, C: int, H: int, W: int, seed: int) -> NDArray[np.float32]:
    """Give a moving pattern: (T, C, H, W) float32 in [0, 1], multiples of 1/255."""
    return (_video_bytes(T, C, H, W, seed) / 255).astype(np.float32)


def vmask(T: int, H: int, W: int, seed: int) -> NDArray[np.float32]:
    """Give moving holes: (T, 1, H, W) float32, 1 = hole."""
    t, y, x = np.ogrid[0:T, 0:H, 0:W]
    x0 = (W // 5 + 3 * t + 7 * seed) % (W - W // 6)
    bar = (x0 <= x) & (x < x0 + W // 14 + 2) & (y >= H // 8)
    y1 = (H // 2 + 2 * t + 5 * seed) % (H - H // 4)
    x1 = (2 * W // 3 - 2 * t + 11 * seed) % (W - W // 4)
    rectangle = (y1 <= y) & (y < y1 + H // 5) & (x1 <= x) & (x < x1 + W // 7)
    speckle = uniform((T, H, W), seed + 1000) > 0.999
    return (bar | rectangle | speckle).astype(np.float32)[:, None]


def pred(T: int, C: int, H: int, W: int, seed: int) -> NDArray[np.float32]:
    """Give ``video`` with noise of up to 60/255; may leave [0, 1]."""
    noise = np.floor(uniform((T, C, H, W), seed + 1) * 121) - 60
    return ((_video_bytes(T, C, H, W, seed) + noise) / 255).astype(np.float32)


def std_weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Give the sine fill of the parameter ``name``."""
    phase = zlib.crc32(name.encode()) % 100000 * 0.001
    v = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * 0.7390851 + phase)
    return _scaled(v, name, shape, gain=1.0, norm_spread=0.1, bias_spread=0.02)


def hash_weights(name: str, shape: tuple[int, ...], gain: float) -> NDArray[np.float32]:
    """Give the random-looking fill of the parameter ``name``."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    v = (hash01(int(np.prod(shape)), seed) - 0.5) * 2 * np.sqrt(3)
    return _scaled(v, name, shape, gain=gain, norm_spread=0.2, bias_spread=0.2)


def _scaled(
    v: NDArray[np.float64],
    name: str,
    shape: tuple[int, ...],
    *,
    gain: float,
    norm_spread: float,
    bias_spread: float,
) -> NDArray[np.float32]:
    if len(shape) >= 2:
        v = v * gain / np.sqrt(np.prod(shape[1:]))
    elif name.rpartition(".")[2] == "weight":
        v = 1 + norm_spread * v
    else:
        v = bias_spread * v
    return v.astype(np.float32).reshape(shape)
