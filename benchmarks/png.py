"""How fast are our PNGs written and read, and how large are they, against Pillow's default?

    python benchmarks/png.py VIDEO [--size 512]
    python benchmarks/png.py FOLDER

Of a video one sequence of frames is cut; all ways run by turns on the same frames. FOLDER holds record folders of
512x512 pixels or more: what a training sample reads (12 crops of 256x256 and 12 masks) is measured in CPU time
on 60 frames spread over them, each with its own crop, kept as we write them, as vshard did before restart
points and as Pillow does; the floor is inflating the bands a crop touches, and the masks, and nothing else.
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
from deflate import deflate_decompress, zlib_compress, zlib_decompress
from PIL import Image

from vshard.clips.plan import plan_sequences
from vshard.clips.probe import probe
from vshard.clips.read import read_clips
from vshard.records.png import decode_png, encode_png
from vshard.records.png_crop import decode_crop, decode_mask
from vshard.records.png_parts import parse, png_bytes

ROUNDS = 7
FRAMES = 60
SAMPLE = 12
CROP_PX = 256
Place = tuple[int, int]


def pillow_write(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def pillow_read(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def old_write(frame: np.ndarray) -> bytes:
    """Write every row Up, in one go."""
    rows = frame.reshape(len(frame), -1)
    filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    channels = 3 if frame.ndim == 3 else 1
    return png_bytes(frame.shape[1], len(frame), channels, zlib_compress(filtered.reshape(-1), 2))


def milliseconds(work: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return (clock() - started) / count * 1e3


def by_turns(
    ways: dict[str, Callable[[], object]], count: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            figures[name].append(milliseconds(work, count, clock))
    return figures


def compare_frames(video: Path, asked_size: int) -> None:
    info = probe(video)
    size = min(asked_size, info.height, info.width)
    clip = next(read_clips(info, plan_sequences(info, seq=16, skip_first=0, skip_interval=0, max_fps=30)))
    top, left = (info.height - size) // 2, (info.width - size) // 2
    frames = [np.ascontiguousarray(f[top : top + size, left : left + size]) for f in clip.rgb]
    ours, theirs = [encode_png(f) for f in frames], [pillow_write(f) for f in frames]
    assert all(
        (pillow_read(a) == f).all() and (decode_png(b, "") == f).all()
        for a, b, f in zip(ours, theirs, frames, strict=True)
    )
    ways: dict[str, Callable[[], object]] = {
        "write ours": lambda: [encode_png(f) for f in frames],
        "write Pillow": lambda: [pillow_write(f) for f in frames],
        "read ours": lambda: [decode_png(d, "") for d in ours],
        "read ours, upper 3/4": lambda: [decode_png(d, "", stop_row=size * 3 // 4) for d in ours],
        "read Pillow's with Pillow": lambda: [pillow_read(d) for d in theirs],
    }
    figures = by_turns(ways, len(frames), time.perf_counter)
    print(f"{video.name}, {size}x{size}, 16 frames")
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


def read_sample(frames: list[bytes], masks: list[bytes], places: list[Place], rgb: np.ndarray) -> None:
    for start in range(0, len(frames), SAMPLE):
        np.stack([decode_mask(d, "") for d in masks[start : start + SAMPLE]])
        for number in range(start, start + SAMPLE):
            decode_crop(frames[number], "", *places[number], rgb[number % SAMPLE])


def read_sample_with_pillow(
    frames: list[bytes], masks: list[bytes], places: list[Place], rgb: np.ndarray
) -> None:
    for start in range(0, len(frames), SAMPLE):
        np.stack([pillow_read(d) for d in masks[start : start + SAMPLE]])
        for number in range(start, start + SAMPLE):
            top, left = places[number]
            rgb[number % SAMPLE] = pillow_read(frames[number])[top : top + CROP_PX, left : left + CROP_PX]


def inflate_needed(needed: list[tuple[bytes, int]], masks: list[tuple[bytes, int]]) -> None:
    for stream, wanted in needed:
        deflate_decompress(stream, wanted)
    for stream, wanted in masks:
        zlib_decompress(stream, wanted)


def needed_bytes(data: bytes, place: Place) -> tuple[bytes, int]:
    """Give the raw stream of the bands a crop touches, and its bytes inflated."""
    parts = parse(data, "")
    assert parts.bands is not None
    rows, edges = parts.bands
    first, last = place[0] // rows, (place[0] + CROP_PX - 1) // rows
    count = min((last + 1) * rows, parts.header.height) - first * rows
    return bytes(parts.body[edges[first] : edges[last + 1]]) + b"\x03\x00", count * parts.header.stride


def compare_samples(folder: Path) -> None:
    files = sorted(folder.rglob("*_C.png"))
    files = files[:: max(1, len(files) // FRAMES)][:FRAMES]
    assert len(files) == FRAMES, f"{folder} holds too few frames"
    frames = [pillow_read(f.read_bytes()) for f in files]
    masks = [pillow_read(f.with_name(f.name.replace("_C", "_M")).read_bytes()) for f in files]
    rng = np.random.default_rng(0)
    places = [(int(rng.integers(f.shape[0] - 255)), int(rng.integers(f.shape[1] - 255))) for f in frames]
    rgb = np.empty((SAMPLE, CROP_PX, CROP_PX, 3), np.uint8)
    writers = {"ours": encode_png, "as before": old_write, "Pillow's": pillow_write}
    # Writing with Pillow takes 4 s a round: every fifth frame tells the same.
    written = {name: ([w(f) for f in frames], [w(m) for m in masks]) for name, w in writers.items()}
    writing = {name: lambda w=w: [w(f) for f in frames[::5]] for name, w in writers.items()}
    needed = [needed_bytes(d, p) for d, p in zip(written["ours"][0], places, strict=True)]
    whole = [
        (bytes(parse(d, "").body), m.size + len(m)) for d, m in zip(written["ours"][1], masks, strict=True)
    ]
    reading: dict[str, Callable[[], object]] = {
        name: lambda name=name: read_sample(*written[name], places, rgb) for name in writers
    }
    reading["Pillow's, read by Pillow"] = lambda: read_sample_with_pillow(*written["Pillow's"], places, rgb)
    reading["floor"] = lambda: inflate_needed(needed, whole)
    kilobytes = {
        name: [sum(map(len, kind)) / FRAMES / 1000 for kind in data] for name, data in written.items()
    }
    write_ms = by_turns(writing, len(frames[::5]), time.process_time)
    read_ms = by_turns(reading, FRAMES // SAMPLE, time.process_time)
    print("a frame and its mask, kB; writing a frame, CPU ms")
    for name, (frame, mask) in kilobytes.items():
        print(f"{name:28} {frame:7.1f} {mask:7.2f} {statistics.median(write_ms[name]):7.2f}")
    print("a sample of 12 crops and 12 masks, CPU ms (lowest to highest)")
    for name, values in read_ms.items():
        print(f"{name:28} {statistics.median(values):7.2f} ({min(values):.2f} to {max(values):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="VIDEO|FOLDER")
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}")
    if arguments.source.is_dir():
        compare_samples(arguments.source)
    else:
        compare_frames(arguments.source, arguments.size)


if __name__ == "__main__":
    main()
