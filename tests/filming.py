"""Videos that several tests make."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_frames(count: int, height: int, width: int) -> np.ndarray:
    """(count, H, W, 3) uint8: a textured square moves before a textured background."""
    rng = np.random.default_rng(7)
    far = rng.integers(40, 120, (height // 8, (width + 400) // 8, 3), dtype=np.uint8)
    far = far.repeat(8, axis=0).repeat(8, axis=1)
    near = rng.integers(120, 250, (height // 16, height // 16, 3), dtype=np.uint8)
    near = near.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frames[t] = far[:height, t : t + width]
        left = width // 4 + 4 * t % (width // 3)
        frames[t, height // 4 : height // 4 + len(near), left : left + len(near)] = near
    return frames


def write_video(
    path: Path, frames: np.ndarray, *, rate: int = 30, pts: list[int] | None = None, **tags: object
) -> Path:
    """Write frames losslessly in YCbCr (libx264, 4:4:4, qp 0); ``pts`` in units of 1/rate s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv444p"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, rate)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
