"""Files of weights of the perceptual loss as others write them, and the one that comes with a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# How the layers are numbered by torchvision and LPIPS, and where blurring layers count too; (slice, channels) of each.
PLAIN = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
BLURRED = (0, 2, 6, 8, 12, 14, 16, 20, 22, 24, 28, 30, 32)
FILTERS = {2: 5, 3: 11, 4: 19, 5: 27}
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
SLICES = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
# The network of the wheel stlpips-pytorch 0.0.2.
WHEEL_SOURCE = "shift-tolerant LPIPS-VGG16 sha256:bec5e2df4b607ed3"


def shapes() -> dict[str, tuple[int, ...]]:
    """A file's content as the package lpips writes it."""
    found: dict[str, tuple[int, ...]] = {}
    before = 3
    for number, part, channels in zip(PLAIN, SLICES, CHANNELS, strict=True):
        found[f"net.slice{part}.{number}.weight"] = (channels, before, 3, 3)
        found[f"net.slice{part}.{number}.bias"] = (channels,)
        before = channels
    for depth, channels in enumerate((64, 128, 256, 512, 512)):
        found[f"lin{depth}.model.1.weight"] = (1, channels, 1, 1)
    return found


def flat(value: float) -> dict[str, Tensor]:
    """A file's content that takes little room: one value everywhere."""
    return {key: torch.tensor(value).expand(shape) for key, shape in shapes().items()}


def as_torchvision(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions alone, under torchvision's names, and a layer that LPIPS does not have."""
    state = {
        f"features.{key.split('.', 2)[2]}": value for key, value in whole.items() if key.startswith("net")
    }
    return state | {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def as_shift_tolerant(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the wheel's names."""
    state = {key: value for key, value in whole.items() if key.startswith("lin")}
    for plain, blurred, part in zip(PLAIN, BLURRED, SLICES, strict=True):
        for name in ("weight", "bias"):
            state[f"net.slice{part}.{blurred}.{name}"] = whole[f"net.slice{part}.{plain}.{name}"]
    for part, number in FILTERS.items():
        state[f"net.slice{part}.{number}.filt"] = torch.zeros(1)
    return state


def saved(state: Any, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name
