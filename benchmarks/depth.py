"""How well does the built-in estimator rank the depth of rendered clips, and how fast are it and the renderer?

    python benchmarks/depth.py [--size 960x540] [--frames 32] [--seeds 2]
    python benchmarks/depth.py --picture depth.png VIDEO [VIDEO ...]

Every clip is cut into sequences of 16 frames. A frame's score is Spearman's rank correlation of estimated and true
inverse depth over every fourth pixel of both axes; "edges" is the same within 4 px of the true depth's edges, in
pixels of the estimate. Printed are the median and the lowest over a clip's frames.

"holes" compares the forward mask made of the estimated depth with that of the true depth (divergence 4, convergence
0.5, closed): the intersection over the union of both, and the mean of the shares of either that lie within 8 px of
the other (a hole beside the right edge, a little off, still trains the right thing).

With videos, what is drawn instead is a picture for the eye: of four sequences of each, the middle frame, its depth
(bright = near), and the frame with the holes of its forward mask coloured.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from vshard.base.report import Silent
from vshard.clips.plan import plan_sequences
from vshard.clips.probe import probe
from vshard.clips.read import read_clips
from vshard.clips.render import MOTIONS, RenderOptions, render_frames
from vshard.clips.scan import scan_video
from vshard.depth.edges import normalize
from vshard.depth.parallax import estimate_depth
from vshard.masks.warp import close_mask, nonwarp_mask

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


def holes(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the closed forward mask of raw inverse depth (h, w)."""
    near = normalize(torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None, None])
    return (
        close_mask(nonwarp_mask(near, size, divergence=4.0, convergence=0.5, view="right"))[0, 0].numpy() > 0
    )


def overlap(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Intersection over union of the holes of either depth, and how much of either is near the other."""
    ours, true = holes(estimate, truth.shape), holes(truth, truth.shape)
    window = np.ones((17, 17), np.uint8)
    near_ours, near_true = (cv2.dilate(mask.astype(np.uint8), window) > 0 for mask in (ours, true))
    near = ((near_ours & true).sum() / max(true.sum(), 1) + (near_true & ours).sum() / max(ours.sum(), 1)) / 2
    return (ours & true).sum() / max((ours | true).sum(), 1), float(near)


def draw(videos: list[Path], output: Path) -> None:
    rows = []
    for video in videos:
        info = probe(video)
        scan = scan_video(info, Silent())
        planned = plan_sequences(info, scan, seq=SEQUENCE, skip_first=0, skip_interval=0, max_fps=30)
        sound = [sequence for sequence in planned if sequence.fault is None]
        chosen = (
            [sound[i] for i in sorted({round(i) for i in np.linspace(0, len(sound) - 1, 4)})] if sound else []
        )
        for clip in read_clips(info, chosen):
            depth = normalize(estimate_depth(torch.from_numpy(clip.rgb).permute(0, 3, 1, 2)))
            middle = SEQUENCE // 2
            frame, near = clip.rgb[middle], depth[middle, 0].numpy()
            hole = holes(near, frame.shape[:2])
            tinted = np.where(hole[..., None], np.uint8([255, 0, 200]), frame)
            coloured = cv2.applyColorMap((near * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
            tiles = [
                cv2.resize(tile, (480, 270), interpolation=cv2.INTER_AREA)
                for tile in (frame, coloured, tinted)
            ]
            rows.append(np.hstack(tiles))
    cv2.imwrite(str(output), np.vstack(rows)[..., ::-1])
    print(f"{output}: {len(rows)} sequences of {len(videos)} videos")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="960x540")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("videos", nargs="*", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.videos) != (arguments.picture is not None):
        parser.error("give --picture and videos together")
    if arguments.picture is not None:
        draw(arguments.videos, arguments.picture)
        return
    width, height = map(int, arguments.size.split("x"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, OpenCV {cv2.__version__}; "
        f"rendered clips {width}x{height}, {arguments.frames} frames, sequences of {SEQUENCE}"
    )
    print(
        "motion   seed  Spearman median  lowest  edges median  lowest  holes: union  near  estimate ms/frame  "
        "paint ms  render ms/frame"
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
            found, masks, estimate_ms = [], [], []
            for start in range(0, len(rendered) - SEQUENCE + 1, SEQUENCE):
                part = rendered[start : start + SEQUENCE]
                pictures = np.stack([picture.transpose(2, 0, 1) for picture, _ in part])
                frames = torch.from_numpy(pictures).float() / 255
                began = time.perf_counter()
                depth = estimate_depth(frames)[:, 0].numpy()
                estimate_ms.append((time.perf_counter() - began) / SEQUENCE * 1e3)
                found += [scores(e, truth) for e, (_, truth) in zip(depth, part, strict=True)]
                masks += [overlap(e, truth) for e, (_, truth) in list(zip(depth, part, strict=True))[::4]]
            whole, edges = zip(*found, strict=True)
            union, near = (statistics.median(values) for values in zip(*masks, strict=True))
            print(
                f"{motion:8} {seed:4} {statistics.median(whole):16.3f} {min(whole):7.3f} "
                f"{statistics.median(edges):13.3f} {min(edges):7.3f} {union:13.3f} {near:5.2f} "
                f"{statistics.median(estimate_ms):18.0f} "
                f"{(painted - started) * 1e3:9.0f} {render_ms:16.0f}"
            )


if __name__ == "__main__":
    main()
