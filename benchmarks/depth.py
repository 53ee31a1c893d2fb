"""How well does the built-in estimator rank the depth of rendered clips, and how fast are it and the renderer?

    python benchmarks/depth.py [--size 960x540] [--frames 32] [--seeds 2]

Every clip is cut into sequences of 16 frames. A frame's score is Spearman's rank correlation of estimated and true
inverse depth over every fourth pixel of both axes; "edges" is the same within 4 px of the true depth's edges, in
pixels of the estimate. Printed are the median and the lowest over a clip's frames.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import cv2
import numpy as np
import torch

from vshard.clips.render import MOTIONS, RenderOptions, render_frames
from vshard.depth.parallax import estimate_depth

SEQUENCE = 16


def rank(values: np.ndarray) -> np.ndarray:
    """Ranks of flat values, equal ones sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(rank(estimate), rank(truth))[0, 1])


def scores(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation over the frame and near depth's edges."""
    truth = cv2.resize(truth, estimate.shape[::-1], interpolation=cv2.INTER_NEAREST)
    near, far = cv2.dilate(truth, np.ones((3, 3))), cv2.erode(truth, np.ones((3, 3)))
    edges = cv2.dilate((near > 1.25 * far).astype(np.uint8), np.ones((9, 9))) > 0
    whole = spearman(estimate[::4, ::4].ravel(), truth[::4, ::4].ravel())
    return whole, spearman(estimate[edges], truth[edges])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="960x540")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, OpenCV {cv2.__version__}; "
        f"rendered clips {width}x{height}, {arguments.frames} frames, sequences of {SEQUENCE}"
    )
    print(
        "motion   seed  Spearman median  lowest  edges median  lowest  estimate ms/frame  paint ms  render ms/frame"
    )
    for motion in MOTIONS:
        for seed in range(arguments.seeds):
            options = RenderOptions(width, height, frames=arguments.frames, seed=seed, motion=motion)
            rendering = render_frames(options)
            started = time.perf_counter()
            rendered = [next(rendering)]
            painted = time.perf_counter()
            rendered += rendering
            render_ms = (time.perf_counter() - painted) / max(len(rendered) - 1, 1) * 1e3
            found, estimate_ms = [], []
            for start in range(0, len(rendered) - SEQUENCE + 1, SEQUENCE):
                part = rendered[start : start + SEQUENCE]
                pictures = np.stack([picture.transpose(2, 0, 1) for picture, _ in part])
                frames = torch.from_numpy(pictures).float() / 255
                began = time.perf_counter()
                depth = estimate_depth(frames)[:, 0].numpy()
                estimate_ms.append((time.perf_counter() - began) / SEQUENCE * 1e3)
                found += [scores(e, truth) for e, (_, truth) in zip(depth, part, strict=True)]
            whole, edges = zip(*found, strict=True)
            print(
                f"{motion:8} {seed:4} {statistics.median(whole):16.3f} {min(whole):7.3f} "
                f"{statistics.median(edges):13.3f} {min(edges):7.3f} {statistics.median(estimate_ms):18.0f} "
                f"{(painted - started) * 1e3:9.0f} {render_ms:16.0f}"
            )


if __name__ == "__main__":
    main()
