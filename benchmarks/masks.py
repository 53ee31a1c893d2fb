"""How much faster is the forward mask of a 1080p frame than done the obvious way, and what do the others take?

    OMP_NUM_THREADS=1 python benchmarks/masks.py [--frames 5] [--divergence 4]

Depth is a smooth field with sharp-edged blobs, made at 1080p. The obvious way is the tests' oracle,
`tests/masks/slow_masks.py` (sort, write in order, repair step by step); both take the same frames in turn.
The network of the backward mask works on the depth resized to 392×686; its weights are random, which its time does
not depend on. Printed are medians over frames.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vshard.masks.backward import gradient_mask, mlbw_mask
from vshard.masks.mlbw import MaskNetwork
from vshard.masks.warp import close_mask, nonwarp_mask

SIZE = (1080, 1920)
NETWORK_SIZE = (392, 686)
CONVERGENCE = 0.5
ORACLE = Path(__file__).parent.parent / "tests" / "masks" / "slow_masks.py"


def layered_depth(frames: int) -> torch.Tensor:
    """(frames, 1, 1080, 1920) float32 in [0, 1]: steps of different nearness before a slope."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(frames, 1, 12, 20, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear", align_corners=False)
    slope = torch.linspace(0, 0.4, SIZE[0])[:, None].expand(SIZE)
    return ((blobs * 4).round() / 4 * 0.6 + slope).clamp(0, 1)


def oracle() -> Callable[..., torch.Tensor]:
    """The tests' slow way, loaded from its file."""
    spec = importlib.util.spec_from_file_location("slow_masks", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.slow_nonwarp_mask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--divergence", type=float, default=4.0)
    arguments = parser.parse_args()
    shifts: dict[str, Any] = {"divergence": arguments.divergence, "convergence": CONVERGENCE}
    slow_nonwarp_mask, network = oracle(), MaskNetwork().eval().requires_grad_(False)
    times: dict[str, list[float]] = {}
    equal: list[float] = []
    shared: list[float] = []

    def timed(name: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        started = time.perf_counter()
        result = work()
        times.setdefault(name, []).append((time.perf_counter() - started) * 1e3)
        return result

    depth = layered_depth(arguments.frames)
    for frame in [depth[:1], *depth.split(1)]:  # the first one warms up
        small = torch.nn.functional.interpolate(frame, NETWORK_SIZE, mode="nearest")
        fast = timed("forward", lambda frame=frame: nonwarp_mask(frame, SIZE, view="right", **shifts))
        slow = timed(
            "obvious way", lambda frame=frame: slow_nonwarp_mask(frame, SIZE, view="right", **shifts)
        )
        closed = timed("closing", lambda fast=fast: close_mask(fast)) > 0
        gradient = timed("gradient", lambda frame=frame: gradient_mask(frame, SIZE, **shifts)) > 0
        timed("mlbw", lambda small=small: mlbw_mask(network, small, SIZE, mapper="div_6", **shifts))
        equal.append(float((fast == slow).double().mean()))
        shared.append(float((closed & gradient).sum() / (closed | gradient).sum()))

    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}; {arguments.frames} "
        f"frames of {SIZE[1]}x{SIZE[0]}, divergence {arguments.divergence:g}, convergence {CONVERGENCE:g}"
    )
    for name, values in times.items():
        counted = values[1:]
        middle = statistics.median(counted)
        print(f"{name:12} {middle:7.1f} ms a frame (from {min(counted):.1f} to {max(counted):.1f})")
    ratios = [slow / fast for slow, fast in zip(times["obvious way"][1:], times["forward"][1:], strict=True)]
    print(
        f"forward is {statistics.median(ratios):.1f} times as fast as the obvious way "
        f"(from {min(ratios):.1f} to {max(ratios):.1f}); {min(equal) * 100:.4f} % of pixels equal, in the worst frame"
    )
    print(f"gradient and closed forward mask: intersection over union {statistics.median(shared):.3f}")


if __name__ == "__main__":
    main()
