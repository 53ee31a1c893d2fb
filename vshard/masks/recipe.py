"""The recipe of a record: everything drawn once for a sequence and shared by its frames.

Plain values only: ``recipe.to_dict()`` goes into a record's metadata as JSON, ``Recipe(**fields)``
brings it back. Distributions: facts of the original, sections 3 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ..base.errors import OptionError

Choice = TypeVar("Choice")

MAX_ROTATION_DEGREES = 45.0
SHORT_SIDES = (720, 1080, 1080)
PRESET_PROBABILITY = 0.7
CONVERGENCE_PRESETS = (0.0, 0.5, 1.0)
# level: presets, cap and wanted start of the uniform draw, all in percent of the width
DIVERGENCE_LEVELS: dict[int, tuple[tuple[float, ...], float, float]] = {
    1: ((2.0, 2.5, 3.0, 4.0), 5.0, 0.0),
    2: ((4.0, 5.0, 6.0), 8.0, 3.0),
    3: ((7.0, 8.0, 9.0), 11.0, 6.0),
}
# The uniform draw ends where a pixel moves 32 pixels, the reach of the original's mask network.
MAX_SHIFT_PX = 32
METRIC_MAPPERS = ("div_6", ("none", "div_25", "div_10", "div_4", "div_2", "div_1"))
RELATIVE_MAPPERS = ("none", ("inv_mul_1", "inv_mul_2", "inv_mul_3", "mul_1", "mul_2", "mul_3"))
# Repeats make the odds. Finer depth gets more steps.
FINE_DEPTH_RESOLUTION = 512
EDGE_DILATIONS_FINE = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4)
EDGE_DILATIONS = (0, 0, 0, 1, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """What was drawn for one sequence.

    Attributes:
        rotation_degrees: counter-clockwise, in [-45, 45), then a centred square; None = not rotated.
        short_side: short side of the frames in pixels, 720 or 1080.
        resize_mode: "bicubic" or "bilinear", antialiased.
        divergence: in percent of the frame width.
        convergence: in [0, 1], the depth that does not move.
        mapper: a key of `vshard.masks.mappers.MAPPERS`.
        edge_dilation: steps of `vshard.depth.edges.dilate_edges`.
        depth_antialias: whether depth is inferred antialiased, where the model can.
        view: base view of the forward mask.
    """

    rotation_degrees: float | None
    short_side: int
    resize_mode: Literal["bicubic", "bilinear"]
    divergence: float
    convergence: float
    mapper: str
    edge_dilation: int
    depth_antialias: bool
    view: Literal["right", "left"]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, all of them plain JSON values."""
        return asdict(self)


def draw_recipe(
    generator: np.random.Generator,
    *,
    width: int,
    divergence_level: int,
    metric_depth: bool,
    resolution: int | None,
) -> Recipe:
    """Draw the recipe of one sequence.

    Args:
        generator: derived from the seed and the sequence's key.
        width: of the source frames in pixels, before any rotation or resizing; bounds the divergence.
        divergence_level: 1, 2 or 3, from gentle to strong.
        metric_depth: whether the depth model gives distances.
        resolution: short side that depth is inferred at, in pixels; None = the model's own.

    Raises:
        OptionError: there is no such divergence level.
    """
    if divergence_level not in DIVERGENCE_LEVELS:
        levels = ", ".join(map(str, DIVERGENCE_LEVELS))
        raise OptionError(f"divergence level {divergence_level} does not exist; use one of {levels}")
    fine = resolution is not None and resolution >= FINE_DEPTH_RESOLUTION
    return Recipe(
        rotation_degrees=_rotation(generator),
        short_side=_one_of(generator, SHORT_SIDES),
        resize_mode=_one_of(generator, ("bicubic", "bilinear")),
        divergence=_divergence(generator, width, divergence_level),
        convergence=_preset_or_uniform(generator, CONVERGENCE_PRESETS, 0.0, 1.0),
        mapper=_mapper(generator, metric_depth),
        edge_dilation=_one_of(generator, EDGE_DILATIONS_FINE if fine else EDGE_DILATIONS),
        depth_antialias=bool(generator.random() < 0.25),
        view=_one_of(generator, ("right", "left")),
    )


def _rotation(generator: np.random.Generator) -> float | None:
    if generator.random() < 0.5:
        return None
    return float(generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))


def _divergence(generator: np.random.Generator, width: int, level: int) -> float:
    presets, cap, wanted_low = DIVERGENCE_LEVELS[level]
    high = min(MAX_SHIFT_PX / (0.5 * width) * 100, cap)
    # Wide frames end below the wanted start; the original then draws from the last tenth.
    return _preset_or_uniform(generator, presets, min(high - 0.1, wanted_low), high)


def _mapper(generator: np.random.Generator, metric_depth: bool) -> str:
    usual, others = METRIC_MAPPERS if metric_depth else RELATIVE_MAPPERS
    return usual if generator.random() < PRESET_PROBABILITY else _one_of(generator, others)


def _preset_or_uniform(
    generator: np.random.Generator, presets: Sequence[float], low: float, high: float
) -> float:
    if generator.random() < PRESET_PROBABILITY:
        return _one_of(generator, presets)
    return float(generator.uniform(low, high))


def _one_of(generator: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]
