"""Losses between filled and true frames, by the names of iw3 (facts of the original, section 9).

Every loss takes two (T, 3, H, W) float tensors, the network's frames first, whose true values lie in [0, 1],
and gives a scalar that gradients flow through. T is at least 3. They cost little beside the network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..base.errors import OptionError

Loss = Callable[[Tensor, Tensor], Tensor]

# How much the values outside [0, 1], which clamping hides, still count: enough to pull them back.
_OUTSIDE_WEIGHT = 0.001


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


def temporal_l1(output: Tensor, target: Tensor) -> Tensor:
    """0.8 clamped L1 + 0.2 temporal gradient + 0.01 smoothing."""
    steady = 0.2 * temporal_gradient(output, target) + 0.01 * temporal_smoothing(output)
    return 0.8 * clamp_l1(output, target) + steady


LOSSES: dict[str, Loss] = {"temporal_l1": temporal_l1, "l1": clamp_l1}

# Names of the original whose terms (LPIPS, DCT, DINOv2) are not built yet.
_NOT_BUILT = frozenset(
    {"temporal_l1lpips", "l1lpips", "l1dctlpips", "temporal_l1dctlpips", "dct", "l1dinov2"}
)


def loss_by_name(name: str) -> Loss:
    """Give the loss called ``name``, a key of :data:`LOSSES`.

    Raises:
        OptionError: there is no such loss, or it is one of the original's that is not built yet.
    """
    if name in LOSSES:
        return LOSSES[name]
    problem = "is not built yet" if name in _NOT_BUILT else "is not a loss"
    raise OptionError(f"{name!r} {problem}; choose one of {', '.join(LOSSES)}")
