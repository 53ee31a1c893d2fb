"""Depth models by their iw3 names: the table behind ``--model-type``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.errors import DepthModelError

if TYPE_CHECKING:
    from torch import Tensor

PARALLAX = "Parallax"

# Names of iw3 whose weights come through Hugging Face; vshard knows them but cannot load them yet.
HUB_MODELS = (
    *(f"Any_{size}" for size in "SBL"),
    *(f"Any_V2_{size}" for size in "SBL"),
    "Any_V2_N",
    *(f"Any_V2_N_{size}" for size in "SBL"),
    "Any_V2_K",
    *(f"Any_V2_K_{size}" for size in "SBL"),
    *(f"Distill_Any_{size}" for size in "SBL"),
    "ZoeD_N",
    "ZoeD_K",
    "ZoeD_NK",
    "DepthPro",
)
# Names of iw3 that no class of `transformers` serves.
UNSERVED_MODELS = ("ZoeD_Any_N", "ZoeD_Any_K", "ZoeD_Any_L", "Any_V3_Mono", "VDA_S", "VDA_B", "VDA_L")


@dataclass(frozen=True)
class DepthModel:
    """A depth estimator ready to use.

    ``estimate``: (T, 3, H, W) float32 in [0, 1] -> (T, 1, h, w) float32, larger = nearer, on the same device.
    ``metric``: whether it estimates metres (negated), which decides the mappers of the recipe.
    ``about``: one sentence on what it is, kept in every record's metadata.
    """

    name: str
    metric: bool
    about: str
    estimate: Callable[[Tensor], Tensor]


def open_depth_model(name: str, resolution: int | None) -> DepthModel:
    """Give the depth model called ``name``.

    Raises:
        DepthModelError: the name is unknown, or what loads it is not there.
    """
    if name == PARALLAX:
        if resolution is not None:
            raise DepthModelError(f"--resolution {resolution}: {PARALLAX} has no such setting; leave it out")
        from .parallax import estimate_depth

        about = "inverse depth from optical flow with a ground prior; built in, no learned weights"
        return DepthModel(PARALLAX, metric=False, about=about, estimate=estimate_depth)
    if name in HUB_MODELS:
        raise DepthModelError(
            f"--model-type {name}: this version of vshard cannot load it yet, whatever else is installed; "
            f"use {PARALLAX}, which is built in"
        )
    if name in UNSERVED_MODELS:
        raise DepthModelError(
            f"--model-type {name}: no freely loadable form of it is known; use {PARALLAX}, which is built in"
        )
    raise DepthModelError(f"--model-type {name!r}: no such depth model; this version has {PARALLAX}")
