"""What a network sees and what is made of its answer: golden numbers, and tiny networks of the published classes."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import GOLDEN
from tiny_networks import NAMES, frames_of, make_networks, open_quietly, options_of, save_networks
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from transformers import PreTrainedModel

from vshard.base.errors import DepthModelError
from vshard.depth import hub
from vshard.depth.edges import dilate_edges, normalize
from vshard.depth.models import open_depth_model
from vshard.depth.sizes import View, zoe_view

CPU = torch.device("cpu")
CASES = json.loads((GOLDEN / "depth.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def networks() -> dict[str, PreTrainedModel]:
    return make_networks()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_networks(tmp_path_factory.mktemp("weights"))


# ---- what the original computes around a network


def fake_network(pixels: Tensor) -> Tensor:
    return 0.5 * pixels[:, 0] + 0.3 * pixels[:, 1] + 0.2 * pixels[:, 2] + 3


def golden_family(case: dict[str, Any]) -> hub.Family:
    if case["kind"] == "depth_anything":
        return hub.FAMILIES["depth_anything"]
    view = partial(
        zoe_view,
        landscape_height=case["h_height"],
        portrait_height=case["v_height"],
        multiple=case["multiple_of"],
    )
    return replace(hub.FAMILIES["zoedepth"], view=view)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "depth.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


@pytest.mark.parametrize("case", CASES["preprocess_cases"], ids=lambda case: case["key"])
def test_a_network_sees_what_the_original_shows_it(case: dict[str, Any], golden: dict[str, Tensor]) -> None:
    seen: list[Tensor] = []

    def network(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return fake_network(pixels)

    frames = golden[case["input"]]
    hub.infer(frames, network, golden_family(case), resolution=case.get("lower_bound"), metric=False)
    torch.testing.assert_close(seen[0], golden[case["key"]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES["pipeline_cases"], ids=lambda case: case["key"])
def test_depth_is_the_originals(case: dict[str, Any], golden: dict[str, Tensor]) -> None:
    from vshard.depth.models import _mirror_averaged

    estimate = hub.make_estimator(
        fake_network, golden_family(case), device=CPU, resolution=case.get("lower_bound"),
        metric=case.get("metric", case["kind"] == "zoe"), batch_size=1, threads=1, warn=pytest.fail,
    )  # fmt: skip
    if case["flip_average"]:
        estimate = _mirror_averaged(estimate)
    depth = dilate_edges(estimate(golden[case["input"]]), case["edge_dilation"])
    torch.testing.assert_close(depth, golden[case["key"]], atol=1e-5, rtol=0)
    if case["key"] == CASES["pipe_normalized_from"]:
        torch.testing.assert_close(normalize(depth), golden["pipe:normalized"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dim", "pad"), [(-1, 0), (-1, 4), (-2, 3)])
def test_the_border_is_reflected(dim: int, pad: int) -> None:
    picture = torch.rand((2, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    sides = (pad, pad, 0, 0) if dim == -1 else (0, 0, pad, pad)
    assert torch.equal(hub._reflect(picture, dim, pad), F.pad(picture, sides, mode="reflect"))


def test_a_border_wider_than_the_picture_is_reflected_again_and_again() -> None:
    row = torch.arange(3.0)[None]
    assert hub._reflect(row, -1, 6).tolist() == [[2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]]
    view = zoe_view(1500, 360, None)
    assert view == View(512, 512, 25, 201)  # 110 columns between borders of 201
    depth = hub.infer(
        frames_of(1, 1500, 360), fake_network, hub.FAMILIES["zoedepth"], resolution=None, metric=True
    )
    assert depth.shape == (1, 1, 462, 110)
    assert depth.isfinite().all()


def test_what_is_no_number_is_replaced_within_its_frame() -> None:
    def network(pixels: Tensor) -> Tensor:
        depth = fake_network(pixels)
        depth[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        return depth

    frames = frames_of(2, 60, 80)
    family = hub.FAMILIES["depth_anything"]
    clean = hub.infer(frames, fake_network, family, resolution=112, metric=False)
    depth = hub.infer(frames, network, family, resolution=112, metric=False)
    low, high = clean[0, 0].view(-1)[3:].min(), clean[0, 0].view(-1)[3:].max()
    assert depth[0, 0, 0, :3].tolist() == [low, high, low]
    assert torch.equal(depth.flatten(1)[:, 3:], clean.flatten(1)[:, 3:])
    assert torch.equal(depth[1], clean[1])
    metres = hub.infer(frames, network, family, resolution=112, metric=True)
    assert metres[0, 0, 0, :3].tolist() == [-high, -high, -low]


def test_a_frame_without_any_number_is_an_error() -> None:
    with pytest.raises(DepthModelError, match="damaged"):
        hub.infer(
            frames_of(2, 60, 80),
            lambda pixels: fake_network(pixels) * torch.tensor([1, torch.nan])[:, None, None],
            hub.FAMILIES["depth_anything"],
            resolution=112,
            metric=False,
        )


# ---- networks of the published classes


@pytest.mark.parametrize(
    ("kind", "size", "mean", "std"),
    [
        ("relative", (112, 140), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("metric", (112, 140), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("zoe", None, (0.5,) * 3, (0.5,) * 3),
        ("two domains", None, (0.5,) * 3, (0.5,) * 3),
        ("pro", (1536, 1536), (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_depth_is_what_the_network_gives_by_hand(
    networks: dict[str, PreTrainedModel],
    folders: dict[str, Path],
    kind: str,
    size: tuple[int, int] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    frames = frames_of(1, 128, 160)
    resolution = None if kind == "pro" else 112
    model = open_quietly(options_of(NAMES[kind], folders[kind], resolution=resolution))
    depth = model.estimate(frames)

    border = View(0, 0)
    if size is None:
        border = zoe_view(128, 160, 112)
        assert border == View(128, 160, 17, 20)
        size = (128 - 34, 160 - 40)
    pixels = tv.normalize(tv.resize(frames / 255, list(size), antialias=True), list(mean), list(std))
    pixels = tv.pad(pixels, [border.pad_width, border.pad_height], padding_mode="reflect")
    with torch.no_grad():
        expected = networks[kind].eval()(pixel_values=pixels).predicted_depth[:, None]
    if border.pad_height:
        expected = tv.center_crop(expected, list(size))
    assert expected.std() > 1e-3 * expected.abs().max()
    metric = kind not in ("relative", "pro")
    torch.testing.assert_close(depth, -expected if metric else expected, atol=1e-5, rtol=1e-4)
    assert not depth.requires_grad

    digest = hashlib.sha256((folders[kind] / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert model.weights == f"{kind} sha256:{digest}"
    assert (model.name, model.metric) == (NAMES[kind], metric)
    assert str(folders[kind].parent) not in model.about + model.weights
    assert "their own licence" in str(model.licence)


def test_depth_pros_raw_answer_is_larger_where_it_is_nearer() -> None:
    """The published reading of its answer is metres = 1 / answer, so the answer itself is inverse depth."""
    from types import SimpleNamespace

    from transformers import DepthProImageProcessor

    answer = torch.tensor([[[0.1, 10.0]]])
    read = DepthProImageProcessor().post_process_depth_estimation(
        SimpleNamespace(predicted_depth=answer, field_of_view=None)  # type: ignore[arg-type]
    )
    torch.testing.assert_close(read[0]["predicted_depth"], 1 / answer[0])


def test_parameters_that_may_be_missing_are_those_no_output_depends_on(
    networks: dict[str, PreTrainedModel],
) -> None:
    for kind, size in (("relative", (42, 56)), ("zoe", (64, 64)), ("pro", (1536, 1536))):
        network = networks[kind]
        network.zero_grad()
        network(pixel_values=torch.rand(1, 3, *size)).predicted_depth.sum().backward()
        idle = {name for name, p in network.named_parameters() if p.grad is None}
        idle = {name for name in idle if not name.startswith("fov_model.")}
        may_lack = {name for name, _ in network.named_parameters() if hub.UNUSED.search(name)}
        assert {name for name in may_lack if not name.startswith("fov_model.")} == idle, kind
        assert idle


def test_the_number_of_threads_leaves_no_trace(folders: dict[str, Path]) -> None:
    frames = frames_of(5, 120, 160)
    options = options_of("Any_V2_S", folders["relative"], resolution=112)
    alone, together = (open_quietly(options, threads).estimate(frames) for threads in (1, 3))
    assert alone.numpy().tobytes() == together.numpy().tobytes()
    by_frame = torch.cat([open_quietly(options).estimate(frame) for frame in frames.split(1)])
    assert torch.equal(alone, by_frame)


def test_flip_averages_with_the_mirrored_frames(folders: dict[str, Path]) -> None:
    frames = frames_of(2, 128, 160)
    plain, both = (
        open_quietly(options_of("ZoeD_N", folders["zoe"], resolution=112, flip=flip))
        for flip in (False, True)
    )
    mirrored = plain.estimate(frames.flip(-1)).flip(-1)
    assert not torch.allclose(mirrored, plain.estimate(frames))
    torch.testing.assert_close(both.estimate(frames), (plain.estimate(frames) + mirrored) / 2)


def test_only_the_frames_at_work_are_floats() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def network(pixels: Tensor) -> Tensor:
        nonlocal most
        assert len(pixels) == 1
        alive.append(weakref.ref(pixels))
        most = max(most, sum(reference() is not None for reference in alive))
        return fake_network(pixels)

    estimate = hub.make_estimator(
        network, hub.GRAY, device=CPU, resolution=112, metric=False, batch_size=4, threads=1, warn=pytest.fail
    )
    gc.disable()
    try:
        estimate(frames_of(6, 60, 80))
    finally:
        gc.enable()
    assert len(alive) == 6
    assert most <= 2


# ---- a GPU's memory


def test_a_batch_that_memory_does_not_hold_is_halved_for_good() -> None:
    sizes: list[int] = []
    warned: list[str] = []

    def work(frames: Tensor) -> Tensor:
        sizes.append(len(frames))
        if len(frames) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return frames[:, :1] * 2.0

    frames = torch.arange(16)[:, None, None, None].expand(-1, 3, 2, 2)
    estimate = hub.GpuBatches(work, 16, warned.append)
    for _ in range(2):
        assert torch.equal(estimate(frames), frames[:, :1] * 2.0)
    assert sizes == [16, 8, 4, *[2] * 16]
    assert len(warned) == 1
    assert "--batch-size 2" in warned[0]


def test_down_to_one_frame_at_a_time() -> None:
    def work(frames: Tensor) -> Tensor:
        if len(frames) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return frames

    warned: list[str] = []
    frames = torch.rand(4, 3, 2, 2)
    assert torch.equal(hub.GpuBatches(work, 2, warned.append)(frames), frames)
    assert len(warned) == 1


def test_a_last_short_batch_does_not_count() -> None:
    sizes: list[int] = []
    estimate = hub.GpuBatches(lambda batch: sizes.append(len(batch)) or batch, 4, pytest.fail)  # type: ignore[func-returns-value]
    frames = torch.rand(6, 3, 2, 2)
    assert torch.equal(estimate(frames), frames)
    assert sizes == [4, 2]


def test_one_frame_too_large_for_the_gpu_is_an_error_that_names_the_resolution() -> None:
    def work(frames: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(DepthModelError, match=r"1920x1080.*--resolution"):
        hub.GpuBatches(work, 4, pytest.fail)(torch.zeros(4, 3, 1, 1).expand(-1, -1, 1080, 1920))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", list(NAMES))
def test_a_gpu_gives_nearly_the_same_depth(folders: dict[str, Path], kind: str) -> None:
    frames = frames_of(3, 128, 160)
    options = options_of(NAMES[kind], folders[kind], resolution=None if kind == "pro" else 112)
    slow = open_quietly(options).estimate(frames)
    fast = open_depth_model(options, torch.device("cuda", 0), 1, pytest.fail).estimate(frames)
    assert fast.dtype == torch.float32
    assert (normalize(fast.cpu()) - normalize(slow)).abs().mean() < 0.02


def test_depth_pro_says_that_it_does_not_use_a_resolution(folders: dict[str, Path]) -> None:
    warned: list[str] = []
    open_depth_model(options_of("DepthPro", folders["pro"], resolution=518), CPU, 1, warned.append)
    assert warned == ["--resolution 518: DepthPro has one size of its own and does not use it"]
