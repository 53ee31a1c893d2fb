"""The loader that a folder of PNGs gets without further thought, to be measured against.

It does what the original's does (reference, section 7), in its order: Pillow decodes 12 frames and 12 masks whole,
they become floats, colour changes, holes grow, and last the best of four crops is cut out. What is handed over is
float32. No step is slower than it has to be: no metadata is read, folders are listed once, floats change in place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .samples import (
    CROP_CANDIDATES,
    CROP_PX,
    FRAMES,
    INNER_DILATION_MAX_PX,
    OUTER_DILATION_MAX_PX,
    TARGET_BORDER_PX,
)

FloatSample = tuple[Tensor, Tensor, Tensor]
_Pair = TypeVar("_Pair")


class DirectoryRecords(Dataset[FloatSample]):
    """Record folders as training samples of floats; see :func:`float_sample`."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """List the files of ``folders``."""
        self._records = [
            list(zip(sorted(folder.glob("*_C.png")), sorted(folder.glob("*_M.png")), strict=True))
            for folder in folders
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> FloatSample:
        rng = sample_generator()
        files = draw_frames(self._records[index], rng)
        x = torch.stack([_load(frame, "RGB") for frame, _ in files])
        mask = torch.stack([_load(mask, "L") for _, mask in files])
        return float_sample(x, mask, rng)


def sample_generator() -> random.Random:
    """Give a generator for one sample, other ones in every worker."""
    return random.Random(int(torch.randint(1 << 62, ())))


def draw_frames(files: Sequence[_Pair], rng: random.Random) -> Sequence[_Pair]:
    """Draw 12 frames that follow one another, half the time in reverse order."""
    first = rng.randint(0, len(files) - FRAMES)
    drawn = files[first : first + FRAMES]
    return drawn[::-1] if rng.random() < 0.5 else drawn


def float_sample(x: Tensor, mask: Tensor, rng: random.Random) -> FloatSample:
    """Augment and crop 12 whole frames.

    Args:
        x: (12, 3, H, W) float32 in [0, 1]; may change.
        mask: (12, 1, H, W) float32 in [0, 1].
        rng: for the draws.

    Returns:
        As :func:`best_crop`.
    """
    if rng.random() < 0.5:
        x = change_colour(x, rng)
    if rng.random() < 0.5:
        n = rng.randint(1, OUTER_DILATION_MAX_PX)
        mask = grow_rightwards(mask, n)
    if rng.random() < 0.25:
        n = rng.randint(1, INNER_DILATION_MAX_PX)
        mask = grow_rightwards(mask.flip(-1), n).flip(-1)
    height, width = mask.shape[-2:]
    places = [
        (rng.randint(0, height - CROP_PX), rng.randint(0, width - CROP_PX)) for _ in range(CROP_CANDIDATES)
    ]
    return best_crop(x, mask, places)


def grow_rightwards(mask: Tensor, steps: int) -> Tensor:
    """Let (12, 1, H, W) grow by ``steps`` pixels; a third of the time that ``max_pool2d`` takes."""
    grown = 0
    while grown < steps:
        step = min(grown + 1, steps - grown)
        wider = mask.clone()
        torch.maximum(mask[..., step:], mask[..., :-step], out=wider[..., step:])
        mask, grown = wider, grown + step
    return mask


def change_colour(x: Tensor, rng: random.Random) -> Tensor:
    """Make (12, 3, H, W) gray, or scale and lift each channel, in place; stays in [0, 1]."""
    if rng.random() < 0.05:
        return x.mean(dim=1, keepdim=True).expand_as(x)
    scale = [rng.uniform(0.7, 0.9) for _ in range(3)]
    bias = [rng.uniform(0, 1 - factor) for factor in scale]
    return x.mul_(torch.tensor(scale)[:, None, None]).add_(torch.tensor(bias)[:, None, None]).clamp_(0, 1)


def best_crop(x: Tensor, mask: Tensor, places: Sequence[tuple[int, int]]) -> FloatSample:
    """Cut the crop with the largest mask sum out, the first on a tie.

    Args:
        x: (12, 3, H, W) float32 in [0, 1].
        mask: (12, 1, H, W) float32 in [0, 1].
        places: (row, column) of crops.

    Returns:
        x: (12, 3, 256, 256); mask: (12, 1, 256, 256), 0 or 1; y: (12, 3, 224, 224), x without its border; float32.
    """
    windows = [(..., slice(r, r + CROP_PX), slice(c, c + CROP_PX)) for r, c in places]
    window = max(windows, key=lambda window: float(mask[window].sum()))
    crop = x[window]
    border = slice(TARGET_BORDER_PX, -TARGET_BORDER_PX)
    return crop, (mask[window] > 0).float(), crop[..., border, border]


def to_tensor(image: Image.Image) -> Tensor:
    """Do what torchvision's function of this name does, whose import takes 2 s: (channels, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


def _load(path: Path, mode: str) -> Tensor:
    with Image.open(path) as image:
        return to_tensor(image if image.mode == mode else image.convert(mode))
