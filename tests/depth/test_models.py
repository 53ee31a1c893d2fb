from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_inputs import video
from torchvision.transforms.v2 import functional as tv

from vshard.base.errors import DepthModelError
from vshard.depth.models import (
    GROUPS,
    HUB_MODELS,
    MODELS,
    DepthModel,
    DepthOptions,
    check_depth_options,
    open_depth_model,
)

CPU = torch.device("cpu")


def options_of(
    name: str, *, resolution: int | None = None, weights: str | None = None, flip: bool = False
) -> DepthOptions:
    return DepthOptions(name, resolution, weights, flip, batch_size=2)


def refusal(options: DepthOptions) -> str:
    with pytest.raises(DepthModelError) as caught:
        check_depth_options(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def open_quietly(options: DepthOptions) -> DepthModel:
    return open_depth_model(options, CPU, 1, pytest.fail)


@pytest.mark.parametrize(
    ("name", "repository", "metric"),
    [
        ("Any_S", "LiheYoung/depth-anything-small-hf", False),
        ("Any_B", "LiheYoung/depth-anything-base-hf", False),
        ("Any_V2_S", "depth-anything/Depth-Anything-V2-Small-hf", False),
        ("Any_V2_L", "depth-anything/Depth-Anything-V2-Large-hf", False),
        ("Any_V2_N", "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf", True),
        ("Any_V2_N_B", "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf", True),
        ("Any_V2_K", "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf", True),
        ("Any_V2_K_S", "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf", True),
        ("Distill_Any_L", "xingyang1/Distill-Any-Depth-Large-hf", False),
        ("Distill_Any_B", None, False),
        ("ZoeD_N", "Intel/zoedepth-nyu", True),
        ("ZoeD_K", "Intel/zoedepth-kitti", True),
        ("ZoeD_NK", "Intel/zoedepth-nyu-kitti", True),
        ("DepthPro", "apple/DepthPro-hf", False),
    ],
)
def test_a_name_stands_for_a_repository(name: str, repository: str | None, metric: bool) -> None:
    assert (HUB_MODELS[name].repository, HUB_MODELS[name].metric) == (repository, metric)


def test_every_name_of_the_table_passes_and_is_in_the_list_of_groups() -> None:
    listed = set()
    for part in re.findall(r"\w+(?:\{[\w,]+\})?", GROUPS):
        stem, _, endings = part.partition("{")
        listed |= {stem + ending for ending in endings.rstrip("}").split(",")}
    for name in MODELS:
        assert name in listed or f"{name}_L" in listed, name
        check_depth_options(options_of(name, weights="folder" if name == "Distill_Any_B" else None))


def test_names_without_a_large_ending_mean_the_large_model() -> None:
    assert HUB_MODELS["Any_V2_N"] == HUB_MODELS["Any_V2_N_L"]
    assert HUB_MODELS["Any_V2_K"] == HUB_MODELS["Any_V2_K_L"]


@pytest.mark.parametrize("name", ["Any_V2_B", "Any_V2_L", "Any_V2_N", "Any_V2_K_B"])
def test_weights_that_may_not_be_sold_say_so(name: str) -> None:
    assert "no commercial use" in str(HUB_MODELS[name].licence)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ZoeD_Any_N", "ZoeD_N or Any_V2_N_L"),
        ("ZoeD_Any_K", "ZoeD_K or Any_V2_K_L"),
        ("ZoeD_Any_L", "ZoeD_NK or Any_V2_L"),
        ("Any_V3_Mono", "Any_V2_L or Distill_Any_L"),
        ("VDA_S", "Any_V2_S, Any_V2_L or Distill_Any_L"),
        ("VDA_Metric", "Any_V2_S, Any_V2_L or Distill_Any_L"),
    ],
)
def test_a_name_that_is_not_served_names_the_nearest_that_is(name: str, nearest: str) -> None:
    message = refusal(options_of(name))
    assert message.startswith(f"--model-type {name}: ")
    assert message.endswith(f"use {nearest}")
    assert set(re.split(", | or ", nearest)) <= set(MODELS)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("any_v2_s", "Any_V2_S"),
        ("Any_V2_X", "Any_V2_"),
        ("parallax", "Parallax"),
        ("ZoeDN", "ZoeD_N"),
        ("Depth_Pro", "DepthPro"),
    ],
)
def test_an_unknown_name_lists_the_near_ones(name: str, near: str) -> None:
    message = refusal(options_of(name))
    assert f"--model-type {name!r}: no such depth model; did you mean " in message
    assert near in message.partition("did you mean")[2].partition("?")[0]
    assert GROUPS in message


def test_a_name_near_nothing_lists_all() -> None:
    message = refusal(options_of("MiDaS"))
    assert "did you mean" not in message
    assert GROUPS in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (options_of("Parallax", resolution=392), "--resolution 392: Parallax has one size"),
        (options_of("Any_S", resolution=111), "allowed is 112 to 2160"),
        (options_of("ZoeD_N", resolution=2161), "allowed is 112 to 2160"),
        (options_of("Parallax", weights="folder"), "--depth-weights folder: Parallax is built in"),
        (options_of("NULL", weights="folder"), "--depth-weights folder: NULL is built in"),
        (options_of("Distill_Any_B"), "with --depth-weights, or use Distill_Any_S or Distill_Any_L"),
    ],
)
def test_options_that_do_not_go_together(options: DepthOptions, said: str) -> None:
    assert said in refusal(options)
    with pytest.raises(DepthModelError, match=re.escape(said)):
        open_quietly(options)


@pytest.mark.parametrize("resolution", [112, 2160])
def test_the_ends_of_the_range_are_allowed(resolution: int) -> None:
    check_depth_options(options_of("Any_S", resolution=resolution))


def test_checking_loads_nothing_heavy() -> None:
    code = (
        "import sys; from vshard.depth.models import DepthOptions, check_depth_options; "
        "check_depth_options(DepthOptions('Any_V2_S', 518, 'folder', True, 2)); "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.strip() == "[]"


def test_parallax_is_built_in() -> None:
    from vshard.depth.parallax import estimate_depth

    model = open_quietly(options_of("Parallax"))
    assert model.estimate is estimate_depth
    assert (model.name, model.metric, model.weights, model.licence) == ("Parallax", False, "", None)


@pytest.mark.parametrize(("resolution", "size"), [(None, (392, 518)), (112, (112, 140))])
def test_null_is_the_gray_picture(resolution: int | None, size: tuple[int, int]) -> None:
    frames = torch.from_numpy((video(3, 3, 96, 128, 1) * 255).round().astype(np.uint8))
    model = open_quietly(options_of("NULL", resolution=resolution))
    assert (model.name, model.metric, model.weights, model.licence) == ("NULL", False, "", None)
    depth = model.estimate(frames)
    assert (depth.dtype, depth.shape) == (torch.float32, (3, 1, *size))
    gray = tv.rgb_to_grayscale(tv.resize(frames / 255, list(size), antialias=True))
    torch.testing.assert_close(depth, gray, atol=1e-3, rtol=0)


def test_flip_works_with_built_in_models() -> None:
    frames = torch.from_numpy((video(2, 3, 96, 128, 1) * 255).round().astype(np.uint8))
    plain, both = (open_quietly(options_of("NULL", flip=flip)).estimate(frames) for flip in (False, True))
    torch.testing.assert_close(both, plain)
