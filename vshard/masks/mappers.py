"""Disparity mappers: depth in [0, 1] to depth in [0, 1], both 1 = nearest, ends kept.

A mapper bends the depth before views are shifted: some spread the near part, some the far part, `div_*`
turn distance into disparity. One table by the original's names; formulas and constants: facts of the
original, section 4. Slightly outside [0, 1] they go on smoothly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..base.errors import OptionError


def map_depth(depth: Tensor, name: str) -> Tensor:
    """Apply the mapper called ``name``.

    Args:
        depth: any shape, float32 in [0, 1], 1 = nearest.
        name: a key of `MAPPERS`.

    Returns:
        Shape, dtype and range of ``depth``. `none` gives the same tensor back.

    Raises:
        OptionError: no mapper has that name.
    """
    if name not in MAPPERS:
        raise OptionError(f"mapper {name!r} is unknown; use one of {', '.join(MAPPERS)}")
    return MAPPERS[name](depth)


def _softplus(x: Tensor, bias: float, scale: float) -> Tensor:
    """log(1 + e^((x - bias)·scale)), moved and scaled to run from 0 to 1."""
    low, high = (math.log1p(math.exp((end - bias) * scale)) for end in (0, 1))
    return (torch.log1p(torch.exp((x - bias) * scale)) - low) / (high - low)


def _inverse_softplus(x: Tensor, bias: float, scale: float) -> Tensor:
    """log(e^((x - bias)·scale) - 1), its argument kept above 1e-6, moved and scaled to run from 0 to 1."""
    low, high = (math.log(max(math.expm1((end - bias) * scale), 1e-6)) for end in (0, 1))
    return (torch.log(torch.expm1((x - bias) * scale).clamp(min=1e-6)) - low) / (high - low)


def _disparity(x: Tensor, k: float) -> Tensor:
    """Read x as distance 1 + k - x and give its disparity, scaled to run from 0 to 1."""
    far = k / (1 + k)
    return (k / (1 + k - x) - far) / (1 - far)


def _shifted_disparity(x: Tensor, nearest: float) -> Tensor:
    """Read x as disparity from distance nearest + 16 to nearest, and bring the nearest to distance 1."""
    far = 1 / (nearest + 16)
    distance = 1 / (far + (1 / nearest - far) * x) - nearest + 1
    return (1 / distance - 1 / 17) / (1 - 1 / 17)


MAPPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "pow2": torch.square,
    "softplus": partial(_softplus, bias=0.5, scale=12),
    "softplus2": lambda x: _softplus(x, bias=0.5, scale=12) ** 2,
    "mul_1": partial(_softplus, bias=0.343, scale=12),
    "mul_2": partial(_softplus, bias=0.515, scale=12),
    "mul_3": partial(_softplus, bias=0.687, scale=12),
    "inv_mul_1": partial(_inverse_softplus, bias=-0.002102, scale=7.8788),
    "inv_mul_2": partial(_inverse_softplus, bias=-0.0003, scale=6.2626),
    "inv_mul_3": partial(_inverse_softplus, bias=-0.0001, scale=3.4343),
    "div_25": partial(_disparity, k=2.5),
    "div_10": partial(_disparity, k=1.0),
    "div_6": partial(_disparity, k=0.6),
    "div_4": partial(_disparity, k=0.4),
    "div_2": partial(_disparity, k=0.2),
    "div_1": partial(_disparity, k=0.1),
    "shift_30": partial(_shifted_disparity, nearest=3.0),
    "shift_20": partial(_shifted_disparity, nearest=2.0),
    "shift_14": partial(_shifted_disparity, nearest=1.4),
    "shift_08": partial(_shifted_disparity, nearest=0.8),
    "shift_06": partial(_shifted_disparity, nearest=0.6),
    "shift_045": partial(_shifted_disparity, nearest=0.45),
}
