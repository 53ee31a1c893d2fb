"""Discriminators: networks that tell filled frames from filmed ones, patch by patch, knowing what was to be filled.

In: the frames to be judged and what the generator was given. Out: logits of patches of 8×8 pixels, high for filmed.
They are taken up by ``--discriminator`` under the names of iw3 (facts of the original, section 11). Only the names are
facts: that the original's are conditional patch discriminators is known, their layers are not, and those here are ours.

Two kinds, of one form: three convolutions that halve the picture, and a head.

- ``l3c`` judges a patch by the 38 pixels around it (Isola et al., *Image-to-Image Translation with Conditional
  Adversarial Networks*, 2017).
- ``ffc`` adds blocks with a branch over the frame's Fourier transform (Chi, Jiang & Mu, *Fast Fourier Convolution*,
  2020), so that every patch is judged by the whole frame: repeated texture, the colours of the other side.

``l3ce`` and ``ffce`` are half as wide again, with more blocks; ``l3cffce`` is ``l3c`` and ``ffce`` side by side. All
look at each frame and at its difference from the frame before, where flicker shows. Features are normalised in each
frame by itself, so nothing depends on how many samples are added up or on how many processes.

Cost of learning from a sample of 12 frames of 224×224 and of the network's gradient, on a CPU core, beside 2.5 to 2.9 s
for a step of the small network: l3c 0.5 s, l3ce 1.7, ffc 0.9, ffce 2.1, l3cffce 2.6; less than 1 GiB of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import OptionError

# A frame, its difference from the one before, what the generator was given, and the mask.
_CHANNELS = 3 + 3 + 3 + 1
_WIDTHS = (32, 64, 96)
_WIDER = (48, 96, 144)
_GROUPS = 8
_SLOPE = 0.2


class Patches(nn.Module):
    """One discriminator: three halvings, blocks between or behind them, a head.

    Weights are drawn from PyTorch's global generator.
    """

    def __init__(self, widths: tuple[int, ...], blocks: Callable[[int, int], list[nn.Module]]) -> None:
        """``blocks`` gives those behind a level, from the level's number and width."""
        super().__init__()
        layers: list[nn.Module] = []
        before = _CHANNELS
        for level, width in enumerate(widths):
            layers.append(nn.Conv2d(before, width, 4, stride=2, padding=1))
            if level:  # raw colours are not normalised: their means are what a fill may get wrong
                layers.append(nn.GroupNorm(_GROUPS, width))
            layers += [nn.LeakyReLU(_SLOPE), *blocks(level, width)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, frames: Tensor, given: Tensor, mask: Tensor) -> list[Tensor]:
        """Judge a clip.

        Args:
            frames: (T, 3, H, W) float32 in [0, 1], filled or filmed.
            given: (T, 3, H, W) float32 in [0, 1], the frames with emptied holes.
            mask: (T, 1, H, W) float32, 1 = hole.

        Returns:
            A list of one (T, 1, H // 8, W // 8) float32: above 0, the patch looks filmed.
        """
        change = torch.cat([torch.zeros_like(frames[:1]), frames.diff(dim=0)])
        seen = torch.cat([frames * 2 - 1, change, given * 2 - 1, mask], dim=1)
        return [self.layers(seen.contiguous(memory_format=torch.channels_last)).float()]


class Several(nn.Module):
    """Discriminators side by side: the list of all their logits."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, frames: Tensor, given: Tensor, mask: Tensor) -> list[Tensor]:
        """Judge a clip; see :meth:`Patches.forward`."""
        return [logits for member in self.members for logits in member(frames, given, mask)]


class _Residual(nn.Module):
    """Normalise, bend, mix neighbours; ``spectral``: and the whole frame. Added to the input, of the same shape."""

    def __init__(self, width: int, *, spectral: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.whole = _Spectral(width) if spectral else None

    def forward(self, x: Tensor) -> Tensor:
        bent = F.leaky_relu(self.norm(x), _SLOPE)
        added: Tensor = self.near(bent)
        if self.whole is not None:
            added = added + self.whole(bent)
        return x + added


class _Spectral(nn.Module):
    """Mix channels at each frequency of the frame: (T, C, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 2
        self.narrow = nn.Conv2d(width, inner, 1)
        self.mix = nn.Conv2d(inner * 2, inner * 2, 1)
        self.widen = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # There is no Fourier transform of bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            narrow = self.narrow(x.float())
            waves = torch.fft.rfft2(narrow, norm="ortho")
            mixed = F.leaky_relu(self.mix(torch.cat([waves.real, waves.imag], dim=1)), _SLOPE)
            waves = torch.complex(*(part.contiguous() for part in mixed.chunk(2, dim=1)))
            out: Tensor = self.widen(torch.fft.irfft2(waves, s=narrow.shape[-2:], norm="ortho"))
        return out


def _l3c() -> nn.Module:
    return Patches(_WIDTHS, lambda _level, _width: [])


def _l3ce() -> nn.Module:
    return Patches(_WIDER, lambda level, width: [_Residual(width)] if level else [])


def _ffc() -> nn.Module:
    return Patches(_WIDTHS, lambda level, width: _spectral_blocks(width, 2) if level == 2 else [])


def _ffce() -> nn.Module:
    return Patches(_WIDER, lambda level, width: _spectral_blocks(width, 3) if level == 2 else [])


def _spectral_blocks(width: int, count: int) -> list[nn.Module]:
    return [_Residual(width, spectral=True) for _ in range(count)]


DISCRIMINATORS: dict[str, Callable[[], nn.Module]] = {
    "l3c": _l3c,
    "l3ce": _l3ce,
    "ffc": _ffc,
    "ffce": _ffce,
    "l3cffce": lambda: Several(_l3c(), _ffce()),
}


def create_discriminator(name: str) -> nn.Module:
    """Make the discriminator called ``name``, a key of :data:`DISCRIMINATORS`, with fresh weights, on the CPU.

    Raises:
        OptionError: there is no such discriminator.
    """
    if name not in DISCRIMINATORS:
        raise OptionError(f"--discriminator {name}: allowed are {', '.join(DISCRIMINATORS)}")
    return DISCRIMINATORS[name]()
