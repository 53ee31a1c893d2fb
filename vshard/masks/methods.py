"""How the mask of frames as filmed is made: by the original's network, or by depth gradients; chosen once a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import MaskModelError
from .backward import gradient_mask, mlbw_mask
from .mappers import map_depth
from .mlbw import find_mask_weights, load_mask_network
from .recipe import Recipe

AUTO, GRADIENT = "auto", "gradient"


@dataclass(frozen=True)
class BackwardMask:
    """The mask of frames as filmed.

    ``name``: "gradient", or "mlbw sha256:…" with the first 16 hex digits of its weights.
    ``make``: (depth (T, 1, h, w) float32 in [0, 1] without a mapper, frame size (H, W), recipe) -> (T, 1, H, W)
    float32, 1 = hole.
    """

    name: str
    make: Callable[[Tensor, tuple[int, int], Recipe], Tensor]


def open_backward_mask(
    wanted: str,
    weights: Path | None,
    device: torch.device,
    begun_with: str | None,
    warn: Callable[[str], None],
) -> BackwardMask:
    """Open the backward mask for a run.

    Args:
        wanted: "mlbw", "gradient", or "auto": the network where its weights can be had.
        weights: the network's file, which is asking for it; None = PyTorch's cache, or a download into it.
        device: where the network works.
        begun_with: the name of the mask that an unfinished run was begun with, which "auto" then keeps to.
        warn: is told when "auto" does without the network, and why.

    Raises:
        MaskModelError: the network is asked for, or was used before, and cannot be had.
    """
    if wanted == GRADIENT or (wanted == AUTO and begun_with == GRADIENT and weights is None):
        return BackwardMask(GRADIENT, _by_gradient)
    try:
        path = find_mask_weights(weights)
    except MaskModelError as error:
        if wanted != AUTO or begun_with is not None:
            raise
        warn(f"backward masks are made by depth gradients: {error}")
        return BackwardMask(GRADIENT, _by_gradient)
    network = load_mask_network(path).to(device)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def by_network(depth: Tensor, size: tuple[int, int], recipe: Recipe) -> Tensor:
        shifts = {"divergence": recipe.divergence, "convergence": recipe.convergence}
        return mlbw_mask(network, depth, size, mapper=recipe.mapper, **shifts)

    return BackwardMask(f"mlbw sha256:{digest}", by_network)


def _by_gradient(depth: Tensor, size: tuple[int, int], recipe: Recipe) -> Tensor:
    mapped = map_depth(depth, recipe.mapper)
    return gradient_mask(mapped, size, divergence=recipe.divergence, convergence=recipe.convergence)
