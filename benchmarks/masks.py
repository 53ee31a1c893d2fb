"""How long does the occlusion mask of a 1080p frame take?

    python benchmarks/masks.py [--frames 8]

Depth is a smooth field with sharp-edged blobs, made at 1080p; the median over frames is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from vshard.masks.warp import close_mask, nonwarp_mask

SIZE = (1080, 1920)


def layered_depth(frames: int) -> torch.Tensor:
    """(frames, 1, 1080, 1920) float32 in [0, 1]: steps of different nearness before a slope."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(frames, 1, 12, 20, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear", align_corners=False)
    slope = torch.linspace(0, 0.4, SIZE[0])[:, None].expand(SIZE)
    return ((blobs * 4).round() / 4 * 0.6 + slope).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=8)
    frames = parser.parse_args().frames
    depth = layered_depth(frames)
    figures: dict[str, list[float]] = {"mask": [], "closing": []}
    for frame in [depth[:1], *depth.split(1)]:  # the first one warms up
        started = time.perf_counter()
        mask = nonwarp_mask(frame, SIZE, divergence=4.0, convergence=0.5, view="right")
        masked = time.perf_counter()
        close_mask(mask)
        figures["mask"].append((masked - started) * 1e3)
        figures["closing"].append((time.perf_counter() - masked) * 1e3)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads; {frames} frames of {SIZE[1]}x{SIZE[0]}")
    for name, values in figures.items():
        counted = values[1:]
        middle = statistics.median(counted)
        print(f"{name:8} {middle:7.1f} ms a frame (from {min(counted):.1f} to {max(counted):.1f})")


if __name__ == "__main__":
    main()
