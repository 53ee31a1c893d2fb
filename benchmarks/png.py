"""How fast are our PNGs written and read, and how large are they, against Pillow's default?

    python benchmarks/png.py VIDEO [--size 512]

One sequence of frames is cut from VIDEO; both ways run by turns on the same frames.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vshard.clips.plan import plan_sequences
from vshard.clips.probe import probe
from vshard.clips.read import read_clips
from vshard.records.png import decode_png, encode_png

ROUNDS = 7


def pillow_write(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def pillow_read(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def milliseconds(work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    info = probe(arguments.video)
    size = min(arguments.size, info.height, info.width)
    clip = next(read_clips(info, plan_sequences(info, seq=16, skip_first=0, skip_interval=0, max_fps=30)))
    top, left = (info.height - size) // 2, (info.width - size) // 2
    frames = [np.ascontiguousarray(f[top : top + size, left : left + size]) for f in clip.rgb]
    ours, theirs = [encode_png(f) for f in frames], [pillow_write(f) for f in frames]
    assert all(
        (pillow_read(a) == f).all() and (decode_png(b, "") == f).all()
        for a, b, f in zip(ours, theirs, frames, strict=True)
    )
    figures: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, work in (
            ("write ours", lambda: [encode_png(f) for f in frames]),
            ("write Pillow", lambda: [pillow_write(f) for f in frames]),
            ("read ours", lambda: [decode_png(d, "") for d in ours]),
            ("read ours, upper 3/4", lambda: [decode_png(d, "", stop_row=size * 3 // 4) for d in ours]),
            ("read Pillow's with Pillow", lambda: [pillow_read(d) for d in theirs]),
        ):
            figures.setdefault(name, []).append(milliseconds(work, len(frames)))
    print(
        f"{platform.machine()}, Python {platform.python_version()}; {arguments.video.name}, {size}x{size}, 16 frames"
    )
    for name, values in figures.items():
        print(f"{name:28} {statistics.median(values):7.2f} ms a frame")
    kilobytes = [sum(map(len, data)) / len(data) / 1000 for data in (ours, theirs)]
    print(
        f"size: ours {kilobytes[0]:.0f} kB, Pillow {kilobytes[1]:.0f} kB, ratio {kilobytes[0] / kilobytes[1]:.3f}"
    )
    for what in ("write", "read"):
        other = "write Pillow" if what == "write" else "read Pillow's with Pillow"
        ratios = [b / a for a, b in zip(figures[f"{what} ours"], figures[other], strict=True)]
        print(
            f"{what}: {statistics.median(ratios):.1f} times faster ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
