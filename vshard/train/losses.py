"""Losses between filled and true frames, by the names of iw3 (facts of the original, section 9); ``psnr`` is ours.

A loss is a weighted sum of terms, each of which takes two (T, 3, H, W) float tensors, the network's frames first, whose
true values lie in [0, 1], and gives a scalar that gradients flow through. T is at least 3, H and W at least 32 (above 8
where no term asks for more). In training both clips are moved alike first (:mod:`vshard.train.jitter`).

Terms of pixels and frequencies cost little beside the network. Those of another network cost more than it does: of a
CPU core LPIPS takes 12 s and DINOv2 6 s for 12 frames of 224×224, a step without them 3 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import OptionError
from .dct import dct, dct_overlap, dct_rotated
from .dinov2 import find_dinov2
from .jitter import jitter
from .perceptual import MULTIPLE_PX, find_perceptual, pad_to_multiple

# How much the values outside [0, 1], which clamping hides, still count: enough to pull them back.
_OUTSIDE_WEIGHT = 0.001

Term = Callable[[Tensor, Tensor, "np.random.Generator | None"], Tensor]
Say = Callable[[str], None]


def clamp_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the clamped frames + 0.001 of the frames as they are."""
    clamped = F.l1_loss(output.clamp(0, 1), target.clamp(0, 1))
    return clamped + _OUTSIDE_WEIGHT * F.l1_loss(output, target)


def temporal_gradient(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the change from frame to frame."""
    return F.l1_loss(output.diff(dim=0), target.diff(dim=0))


def temporal_smoothing(output: Tensor) -> Tensor:
    """Mean square of the second difference over the frames: how unevenly the picture changes.

    The original takes it over the colour channels by mistake; here it is over time.
    """
    return output.diff(n=2, dim=0).square().mean()


def psnr_gap(output: Tensor, target: Tensor) -> Tensor:
    """How far the clip's PSNR is from 60 dB, as a share of 60: log10(1 + 10⁶ · mean squared error) / 6.

    Frames differ in holes and close around them alone. So a sample counts by the share of its error that is taken
    away, be its holes wide or thin, its picture rough or smooth; by a mean error wide holes in rough pictures are
    nearly all that counts. Ours.
    """
    return (1 + 1e6 * F.mse_loss(output, target)).log10() / 6


LPIPS, DINOV2 = "LPIPS", "DINOv2"

TERMS: dict[str, Term] = {
    "L1": lambda z, y, _: clamp_l1(z, y),
    "temporal gradient": lambda z, y, _: temporal_gradient(z, y),
    "smoothing": lambda z, _y, _: temporal_smoothing(z),
    "PSNR": lambda z, y, _: psnr_gap(z, y),
    "DCT 4": lambda z, y, _: dct(z, y, 4),
    "DCT 24 rotated": lambda z, y, rng: dct_rotated(z, y, 24, rng),
    "DCT rotated": lambda z, y, rng: dct_rotated(z, y, None, rng),
    "DCT 32 overlapping": lambda z, y, _: dct_overlap(z, y, 32),
}

_STEADY = {"temporal gradient": 0.2, "smoothing": 0.01}
# Name of a loss -> weight of each of its terms: a key of TERMS, or a network.
LOSSES: dict[str, dict[str, float]] = {
    "temporal_l1": {"L1": 0.8, **_STEADY},
    "l1": {"L1": 1.0},
    "temporal_l1lpips": {"L1": 0.8, **_STEADY, LPIPS: 0.2},
    "l1lpips": {"L1": 1.0, LPIPS: 0.4},
    "l1dctlpips": {"DCT 32 overlapping": 0.5, "L1": 0.5, LPIPS: 0.2},
    "temporal_l1dctlpips": {"L1": 0.4, "DCT 32 overlapping": 0.4, **_STEADY, LPIPS: 0.2},
    "dct": {"DCT 4": 0.2, "DCT 24 rotated": 0.2, "DCT rotated": 0.6},
    "l1dinov2": {"L1": 1.0, DINOV2: 0.1},
    "psnr": {"PSNR": 1.0},
}
# One is rotated on a canvas of its own, one is the same wherever a pixel lies.
_NEVER_MOVED = frozenset({"dct", "psnr"})


@dataclass(frozen=True)
class NetworkOptions:
    """Where a term's network comes from.

    ``weights``: a file for LPIPS, a folder for DINOv2; None: the usual places. ``stored``: :attr:`Loss.source` of the
    run that goes on, None for a new one. ``say`` is told before a download, and when it cannot be had.
    """

    weights: Path | None = None
    stored: str | None = None
    say: Say = lambda _: None


class Loss(nn.Module):
    """A loss by its name; ``to(device)`` moves the network that some losses bring.

    ``source`` says which network and weights, for the user and the checkpoint; None where there is none.
    """

    def __init__(self, name: str, network: nn.Module | None = None, source: str | None = None) -> None:
        super().__init__()
        self.name, self.network, self.source = name, network, source
        self._weights = LOSSES[name]

    def forward(self, output: Tensor, target: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Compare two clips.

        Args:
            output: (T, 3, H, W) float32, the network's frames.
            target: (T, 3, H, W) float32 in [0, 1].
            rng: draws moves and rotations, in training. None: nothing is moved, and the same clips always cost the
                same, as in evaluation.
        """
        if rng is not None and self.name not in _NEVER_MOVED:
            output, target = jitter(output, target, rng)
        if LPIPS in self._weights:  # the original lets all terms see what its network sees
            output, target = (pad_to_multiple(x, MULTIPLE_PX) for x in (output, target))
        total = output.new_zeros(())
        for term, weight in self._weights.items():
            if term in TERMS:
                total = total + weight * TERMS[term](output, target, rng)
            else:
                assert self.network is not None
                total = total + weight * self.network(output, target)
        return total


_NETWORKS: dict[str, Callable[..., nn.Module]] = {LPIPS: find_perceptual, DINOV2: find_dinov2}


def loss_by_name(name: str, options: NetworkOptions | None = None) -> Loss:
    """Make the loss called ``name``, a key of :data:`LOSSES`, on the CPU.

    Raises:
        OptionError: there is no such loss, or weights are named for one that needs none.
        VshardError: it needs a network whose weights cannot be had, or are not those of the run that goes on.
    """
    if name not in LOSSES:
        raise OptionError(f"{name!r} is not a loss; choose one of {', '.join(LOSSES)}")
    options = options or NetworkOptions()
    find = next((partial(found) for term, found in _NETWORKS.items() if term in LOSSES[name]), None)
    if find is None:
        if options.weights is not None:
            raise OptionError(
                f"--perceptual-weights {options.weights}: the loss {name!r} needs none; leave it out"
            )
        return Loss(name)
    network = find(options.weights, options.stored, options.say)
    return Loss(name, network, str(network.source))
