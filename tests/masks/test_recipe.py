from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from golden_inputs import GOLDEN

from vshard.base.errors import OptionError
from vshard.base.seeds import generator
from vshard.masks.mappers import MAPPERS
from vshard.masks.recipe import Recipe, draw_recipe

COUNTED = json.loads((GOLDEN / "params.json").read_text(encoding="utf-8"))
DRAWS = 4000


def draw(
    *, width: int = 1920, level: int = 1, metric: bool = False, resolution: int | None = None
) -> list[Recipe]:
    rng = generator(11, "recipe")
    return [
        draw_recipe(rng, width=width, divergence_level=level, metric_depth=metric, resolution=resolution)
        for _ in range(DRAWS)
    ]


def assert_frequencies(values: list[object], expected: Mapping[object, float]) -> None:
    """Within four standard deviations of a binomial; every value is one of the expected."""
    counts = Counter(values)
    assert set(counts) == set(expected)
    for value, p in expected.items():
        assert abs(counts[value] - DRAWS * p) < 4 * np.sqrt(DRAWS * p * (1 - p)), (value, counts[value])


def assert_uniform(values: list[float], low: float, high: float) -> None:
    """Deciles within four standard deviations, ends never passed."""
    assert low <= min(values) and max(values) <= high
    for tenth in np.arange(0.1, 0.95, 0.1):
        below = sum(value < low + tenth * (high - low) for value in values)
        assert abs(below - len(values) * tenth) < 4 * np.sqrt(len(values) * tenth * (1 - tenth))


@pytest.mark.parametrize(
    ("level", "width", "presets", "low", "high"),
    [
        (1, 1920, (2, 2.5, 3, 4), 0, 10 / 3),
        (2, 1920, (4, 5, 6), 3, 10 / 3),
        (3, 1920, (7, 8, 9), 10 / 3 - 0.1, 10 / 3),
        (1, 1280, (2, 2.5, 3, 4), 0, 5),
        (2, 1280, (4, 5, 6), 3, 5),
        (3, 1280, (7, 8, 9), 4.9, 5),
        (1, 640, (2, 2.5, 3, 4), 0, 5),
        (2, 640, (4, 5, 6), 3, 8),
        (3, 320, (7, 8, 9), 6, 11),
    ],
)
def test_divergence(level: int, width: int, presets: tuple[float, ...], low: float, high: float) -> None:
    values = [recipe.divergence for recipe in draw(width=width, level=level)]
    named: list[object] = [value if value in presets else "other" for value in values]
    assert_frequencies(named, {"other": 0.3} | dict.fromkeys(presets, 0.7 / len(presets)))
    assert_uniform([value for value in values if value not in presets], low, high)


@pytest.mark.parametrize("metric", [False, True])
def test_mapper(metric: bool) -> None:
    usual = "div_6" if metric else "none"
    others = (
        ["none", "div_25", "div_10", "div_4", "div_2", "div_1"]
        if metric
        else ["inv_mul_1", "inv_mul_2", "inv_mul_3", "mul_1", "mul_2", "mul_3"]
    )
    mappers = [recipe.mapper for recipe in draw(metric=metric)]
    assert_frequencies(list(mappers), {usual: 0.7} | dict.fromkeys(others, 0.05))
    assert set(mappers) <= set(MAPPERS)


@pytest.mark.parametrize("resolution", [None, 392, 511, 512, 518])
def test_edge_dilation(resolution: int | None) -> None:
    fine = resolution is not None and resolution >= 512
    expected: dict[object, float] = (
        {0: 1 / 2, 1: 1 / 4, 2: 1 / 12, 3: 1 / 12, 4: 1 / 12} if fine else {0: 1 / 2, 1: 1 / 3, 2: 1 / 6}
    )
    assert_frequencies([recipe.edge_dilation for recipe in draw(resolution=resolution)], expected)


def test_the_other_draws() -> None:
    recipes = draw()
    assert_frequencies([recipe.short_side for recipe in recipes], {720: 1 / 3, 1080: 2 / 3})
    assert_frequencies([recipe.resize_mode for recipe in recipes], {"bicubic": 1 / 2, "bilinear": 1 / 2})
    assert_frequencies([recipe.view for recipe in recipes], {"right": 1 / 2, "left": 1 / 2})
    assert_frequencies([recipe.depth_antialias for recipe in recipes], {True: 1 / 4, False: 3 / 4})
    angles = [recipe.rotation_degrees for recipe in recipes]
    assert_frequencies([angle is None for angle in angles], {True: 1 / 2, False: 1 / 2})
    assert_uniform([angle for angle in angles if angle is not None], -45, 45)
    convergences = [recipe.convergence for recipe in recipes]
    presets = (0.0, 0.5, 1.0)
    named: list[object] = [value if value in presets else "other" for value in convergences]
    assert_frequencies(named, {"other": 0.3} | dict.fromkeys(presets, 0.7 / 3))
    assert_uniform([value for value in convergences if value not in presets], 0, 1)


def test_draws_do_not_hang_together() -> None:
    recipes = draw()
    rotated = np.array([recipe.rotation_degrees is not None for recipe in recipes])
    for other in ("short_side", "resize_mode", "convergence", "mapper", "edge_dilation", "view"):
        values = [getattr(recipe, other) for recipe in recipes]
        most_common = Counter(values).most_common(1)[0][0]
        usual = np.array([value == most_common for value in values])
        assert abs(np.corrcoef(rotated, usual)[0, 1]) < 4 / np.sqrt(DRAWS), other


def test_same_seed_same_recipe_and_json_keeps_it() -> None:
    first, second = draw()[:50], draw()[:50]
    assert first == second
    for recipe in first:
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("level", [0, 4])
def test_an_unknown_level_is_named_with_the_allowed_ones(level: int) -> None:
    with pytest.raises(OptionError, match=rf"^divergence level {level} does not exist; use one of 1, 2, 3$"):
        draw(level=level)


def assert_as_counted(values: list[object], counted: Mapping[str, int], draws: int) -> None:
    """Within four standard deviations of what the original drew; ``counted`` values are written as text."""
    ours = Counter(f"{value}" for value in values)
    assert set(ours) == set(counted)
    for value, count in counted.items():
        p = (ours[value] + count) / (len(values) + draws)
        spread = np.sqrt(p * (1 - p) * (1 / len(values) + 1 / draws))
        assert abs(ours[value] / len(values) - count / draws) < 4 * spread, (value, ours[value], count)


@pytest.mark.parametrize("case", COUNTED["divergence"], ids=lambda case: f"{case['width']}-{case['level']}")
def test_divergences_are_those_the_original_drew(case: dict) -> None:
    values = [recipe.divergence for recipe in draw(width=case["width"], level=case["level"])]
    named: list[object] = [v if str(v) in case["discrete_counts"] else "other" for v in values]
    counted = case["discrete_counts"] | {"other": case["continuous_count"]}
    assert_as_counted(named, counted, COUNTED["draws"])
    between = np.array([v for v, name in zip(values, named, strict=True) if name == "other"])
    for tenth, edge in enumerate(case["continuous"]["deciles_10_to_90"], 1):
        p = tenth / 10
        spread = np.sqrt(p * (1 - p) * (1 / len(between) + 1 / case["continuous_count"]))
        assert abs((between < edge).mean() - p) < 4 * spread, (tenth, edge)


def test_other_draws_are_those_the_original_drew() -> None:
    for metric, kind in ((True, "metric"), (False, "relative")):
        mappers: list[object] = [recipe.mapper for recipe in draw(metric=metric)]
        assert_as_counted(mappers, COUNTED["mapper"][kind]["counts"], COUNTED["draws"])
    for case in COUNTED["edge_dilation"]:
        steps: list[object] = [recipe.edge_dilation for recipe in draw(resolution=case["resolution"])]
        assert_as_counted(steps, case["counts"], COUNTED["draws"])
    recipes, once = draw(), COUNTED["per_sequence"]
    presets = COUNTED["convergence"]["discrete_counts"]
    named: list[object] = [r.convergence if str(r.convergence) in presets else "other" for r in recipes]
    counted = presets | {"other": COUNTED["convergence"]["continuous_count"]}
    assert_as_counted(named, counted, COUNTED["draws"])
    rotations = {"True": once["rotate_crop_count"], "False": once["draws"] - once["rotate_crop_count"]}
    drawn: tuple[tuple[list[object], dict[str, int]], ...] = (
        ([recipe.short_side for recipe in recipes], once["target_short_side_counts"]),
        ([recipe.resize_mode for recipe in recipes], once["resize_mode_counts"]),
        ([recipe.view for recipe in recipes], once["view_counts"]),
        ([recipe.depth_antialias for recipe in recipes], once["depth_antialias_counts"]),
        ([recipe.rotation_degrees is not None for recipe in recipes], rotations),
    )
    for values, counts in drawn:
        assert_as_counted(values, counts, once["draws"])
