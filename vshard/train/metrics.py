"""How near a fill comes to the truth: in the hole, in a ring around it, on the whole frame, and from frame to frame.

In: a clip that was filled, the clip as it was, and its holes. Out: one number a metric, NaN where the clip has no pixel
to count. Over many clips: the mean over source videos and a bootstrap interval. PSNR and SSIM are torchmetrics' own.

Cost on a CPU core, a clip of 12 frames of 480×480: 3 s, nearly all of it SSIM; LPIPS 25 s more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.seeds import generator
from .perceptual import MULTIPLE_PX, Perceptual, pad_to_multiple

RING_PX = 8
# Equal pictures have no noise, so an infinite PSNR; above what 8 bits can tell apart it counts as this much.
PSNR_MAX = 100.0
BOOTSTRAP_DRAWS = 2000
CONFIDENCE = 0.95
_LEVELS = 255


class Metric(NamedTuple):
    """What a number means: its name for people, its unit, the digits worth printing, whether more is better."""

    title: str
    unit: str
    digits: int
    more_is_better: bool


METRICS: dict[str, Metric] = {
    "psnr_hole": Metric("PSNR in the hole", "dB", 2, True),
    "psnr_ring": Metric(f"PSNR within {RING_PX} px around it", "dB", 2, True),
    "psnr_frame": Metric("PSNR of the whole frame", "dB", 2, True),
    "ssim_hole": Metric("SSIM in the hole", "", 4, True),
    "ssim_ring": Metric(f"SSIM within {RING_PX} px around it", "", 4, True),
    "ssim_frame": Metric("SSIM of the whole frame", "", 4, True),
    "lpips_hole": Metric("LPIPS in the hole", "", 4, False),
    "lpips_ring": Metric(f"LPIPS within {RING_PX} px around it", "", 4, False),
    "lpips_frame": Metric("LPIPS of the whole frame", "", 4, False),
    "temporal_hole": Metric("temporal error in the hole", "of 255", 2, False),
    "psnr_hole_first": Metric("PSNR in the hole, first frame", "dB", 2, True),
    "psnr_hole_middle": Metric("PSNR in the hole, the two middle frames", "dB", 2, True),
    "psnr_hole_last": Metric("PSNR in the hole, last frame", "dB", 2, True),
}


class PerceptualMap(Protocol):
    """LPIPS, place by place; ``source`` tells its weights from others."""

    @property
    def source(self) -> str: ...

    def distance_map(self, output: Tensor, target: Tensor) -> Tensor:
        """Give how different (T, 3, H, W) float32 clips in [0, 1] look: (T, 1, H, W) float32, 0 = the same."""


class LpipsMap:
    """LPIPS, place by place, by the network of the perceptual loss.

    The distances at each of its depths, enlarged to the frame (bilinear) and added up: the mean over a frame is the
    frame's LPIPS, but for what the enlarging changes at the borders.
    """

    def __init__(self, network: Perceptual) -> None:
        self._network = network
        self.source = network.source

    @torch.no_grad()
    def distance_map(self, output: Tensor, target: Tensor) -> Tensor:
        """See :class:`PerceptualMap`; a frame at a time, 0.5 GB for one of 480×480."""
        frames = zip(output.split(1), target.split(1), strict=True)
        return torch.cat([self._map(one, true) for one, true in frames])

    def _map(self, output: Tensor, target: Tensor) -> Tensor:
        network, size = self._network, target.shape[-2:]
        found, wanted = (network._features(pad_to_multiple(x, MULTIPLE_PX)) for x in (output, target))
        # As mirrored: of an odd rest, the larger half is right or below.
        down, across = ((-length % MULTIPLE_PX) for length in size)
        padded = (size[0] + down, size[1] + across)
        total = torch.zeros(1, 1, *padded, device=output.device)
        for head, a, b in zip(network.heads, found, wanted, strict=True):
            total += F.interpolate(head((a - b).square()), padded, mode="bilinear")
        return total[..., down // 2 : down // 2 + size[0], across // 2 : across // 2 + size[1]]


class Estimate(NamedTuple):
    """A mean over videos and its 95 % interval; no interval (None) of a single video."""

    mean: float
    low: float | None
    high: float | None
    videos: int


def score(
    output: Tensor, target: Tensor, hole: Tensor, perceptual: PerceptualMap | None = None
) -> dict[str, float]:
    """Compare a filled clip with the truth.

    Pixels are those of all frames together, each of three channels; the hole is where ``hole`` is True, the ring what
    lies within 8 pixels of it (in a square) and is no hole.

    - ``psnr_*``: 10 · log10(1 / mean squared error) of the region's pixels, at most 100 dB; ``psnr_hole_first``,
      ``_last``: of the first and last frame alone; ``_middle``: of the one or two in the middle.
    - ``ssim_*``: Wang et al. (2004), Gaussian of 11 taps and sigma 1.5, each channel by itself: the map of the whole
      frame, averaged over the region; a place's value depends on what lies within 5 pixels of it.
    - ``lpips_*``: the map of ``perceptual``, averaged over the region; left out without one.
    - ``temporal_hole``: mean of |(o[t+1] - o[t]) - (y[t+1] - y[t])| over pixels that are a hole in frame t or t + 1,
      in levels of 255: how much more, or less, the fill flickers and moves than the truth.

    Args:
        output: (T, 3, H, W) float32 in [0, 1], T at least 2, H and W at least 11.
        target: the same of the truth.
        hole: (T, 1, H, W) bool.
        perceptual: LPIPS, on the device of the clips.

    Returns:
        A number for each key of ``METRICS`` that could be computed; NaN where a region is empty.
    """
    # Loading it takes a second.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        output, target, data_range=1.0, reduction="none", return_full_image=True
    )
    maps = {"ssim": similarity}
    if perceptual is not None:
        maps["lpips"] = perceptual.distance_map(output, target)
    found: dict[str, float] = {}
    for region, inside in regions(hole).items():
        found[f"psnr_{region}"] = psnr(output, target, inside)
        found |= {f"{name}_{region}": _mean(values, inside) for name, values in maps.items()}
    found["temporal_hole"] = _LEVELS * _mean(
        (output.diff(dim=0) - target.diff(dim=0)).abs(), hole[1:] | hole[:-1]
    )
    frames = len(output)
    middle = slice((frames - 1) // 2, frames // 2 + 1)
    for name, part in (("first", slice(0, 1)), ("middle", middle), ("last", slice(frames - 1, frames))):
        found[f"psnr_hole_{name}"] = psnr(output[part], target[part], hole[part])
    return {name: found[name] for name in METRICS if name in found}


def regions(hole: Tensor) -> dict[str, Tensor]:
    """Give the pixels of each region: ``hole``, ``ring``, ``frame``, all (T, 1, H, W) bool as ``hole`` is."""
    near = F.max_pool2d(hole.float(), 2 * RING_PX + 1, stride=1, padding=RING_PX) > 0
    return {"hole": hole, "ring": near & ~hole, "frame": torch.ones_like(hole)}


def psnr(output: Tensor, target: Tensor, inside: Tensor) -> float:
    """Give 10 · log10(1 / mean squared error) of the pixels ``inside``, at most 100 dB; NaN where there is none.

    Args:
        output: (T, 3, H, W) float in [0, 1].
        target: the same.
        inside: (T, 1, H, W) bool.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if not inside.any():
        return math.nan
    chosen = inside.expand_as(output)
    return min(float(peak_signal_noise_ratio(output[chosen], target[chosen], data_range=1.0)), PSNR_MAX)


def estimate(values: Sequence[float], videos: Sequence[str], seed: int) -> Estimate | None:
    """Give the mean over videos of each video's mean, and the interval of a bootstrap that draws videos anew.

    Percentiles 2.5 and 97.5 of 2000 means of as many videos as there are, drawn with replacement (Efron, 1979). Videos
    are drawn, not clips: the clips of one video are alike.

    Args:
        values: one a clip; NaN is left out.
        videos: the video of each clip.
        seed: decides the draws.

    Returns:
        None where no value is left.
    """
    of_video: dict[str, list[float]] = {}
    for value, video in zip(values, videos, strict=True):
        if not math.isnan(value):
            of_video.setdefault(video, []).append(value)
    if not of_video:
        return None
    means = np.array([np.mean(of_video[video]) for video in sorted(of_video)])
    count = len(means)
    if count == 1:
        return Estimate(float(means[0]), None, None, 1)
    picked = generator(seed, "bootstrap").integers(0, count, (BOOTSTRAP_DRAWS, count))
    low, high = np.quantile(means[picked].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(means.mean()), float(low), float(high), count)


def estimates(
    scores: Sequence[Mapping[str, float]], videos: Sequence[str], seed: int
) -> dict[str, Estimate | None]:
    """Give :func:`estimate` of each metric that the clips' ``scores`` have."""
    return {name: estimate([one[name] for one in scores], videos, seed) for name in scores[0]}


def _mean(values: Tensor, inside: Tensor) -> float:
    return float(values[inside.expand_as(values)].mean())
