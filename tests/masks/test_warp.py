from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.depth.edges import normalize
from vshard.masks import warp
from vshard.masks.mappers import map_depth
from vshard.masks.warp import (
    CLOSING_REACH_PX,
    Eye,
    close_mask,
    hole_mask,
    nonwarp_mask,
    rows_at_once,
    warp_depth,
)

with np.load(GOLDEN / "forward_warp.npz") as _stored:
    ARRAYS = {key: torch.from_numpy(_stored[key]) for key in _stored}
# "mask2x:steps:96x160:div=5.0:conv=0.0:view=right"
CASES = [key.removeprefix("mask2x:") for key in ARRAYS if key.startswith("mask2x:")]
# "leftmask2x:forward_fill:steps:div=6.0:conv=0.5:both"
ONE_EYE = [key for key in ARRAYS if key.startswith(("leftmask2x", "rightmask2x"))]


def arguments(case: str) -> dict[str, Any]:
    fields = dict(field.split("=") for field in case.split(":") if "=" in field)
    named = {"divergence": float(fields["div"]), "convergence": float(fields["conv"])}
    return named | ({"view": fields["view"]} if "view" in fields else {})


@pytest.mark.parametrize("case", CASES)
def test_masks_meet_the_original(case: str) -> None:
    name, size = case.split(":")[:2]
    height, width = map(int, size.split("x"))
    depth = ARRAYS["depth:lowres" if name == "lowres" else f"depth:{name}:{size}"]
    mask = nonwarp_mask(depth, (height, width), **arguments(case))
    assert mask.dtype == torch.float32
    if name == "lowres":  # resizing may round differently on another processor
        assert (mask * 2 != ARRAYS[f"mask2x:{case}"]).float().mean() <= 0.001
    else:
        assert torch.equal(mask * 2, ARRAYS[f"mask2x:{case}"].float())
    assert torch.equal(close_mask(ARRAYS[f"mask2x:{case}"] / 2) * 2, ARRAYS[f"closed2x:{case}"].float())


@pytest.mark.parametrize("case", [key for key in ARRAYS if key.startswith("stage:")])
def test_warped_depth_meets_the_original(case: str) -> None:
    depth = ARRAYS["depth:" + ":".join(case.split(":")[1:3])]
    warped = warp_depth(depth.flatten(0, 2), **arguments(case), eye="left")
    torch.testing.assert_close(warped.view_as(depth), ARRAYS[case], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ONE_EYE)
def test_masks_of_one_eye_meet_the_original(case: str) -> None:
    eye, name, views = case.split("mask2x")[0], case.split(":")[2], case.split(":")[-1]
    settings = arguments(case)
    if views != "both":  # one synthetic eye moves twice as far
        settings["divergence"] *= 2
    depth = ARRAYS[f"rgbdepth:{name}"]
    mask = hole_mask(depth.flatten(0, 2), **settings, eye=eye)  # type: ignore[arg-type]
    assert torch.equal(mask.view_as(depth) * 2, ARRAYS[case].float())


def test_the_first_frames_of_the_original_pipeline() -> None:
    cases = json.loads((GOLDEN / "pipeline_forward.json").read_text())
    with np.load(GOLDEN / "pipeline_forward.npz") as stored:
        for index, case in enumerate(cases):
            depth = map_depth(
                normalize(torch.from_numpy(stored[f"depth_raw{index}"])).flip(-1), case.pop("mapper")
            )
            mask = close_mask(nonwarp_mask(depth, case.pop("output_hw"), **case))
            expected = stored[f"mask_forward2x{index}"]
            assert expected.any()
            assert (mask.numpy() * 2 != expected).mean() <= 0.005


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", ["binary", "half"])
def test_closing_meets_the_original(kind: str, n: int) -> None:
    with np.load(GOLDEN / "dilation.npz") as stored:
        closed = close_mask(torch.from_numpy(stored[f"mask_{kind}"]), n)
        assert torch.equal(closed, torch.from_numpy(stored[f"mask_closing:mask_{kind}:k=3:n={n}"]))


def slow_warp(
    row: NDArray[np.float32], divergence: float, convergence: float, eye: Eye
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One row, one source and one step at a time, as the facts tell it: depth with fill, and mask."""
    f32, width = np.float32, len(row)
    reach = divergence * 0.01 * width * 0.5
    pad = int(width * divergence / 100 + 2)
    padded = np.pad(row, pad, mode="edge")
    layers: list[dict[int, tuple[Any, Any, Any]]] = [{}, {}]  # cell: (depth, source, weight)
    for source, depth in enumerate(padded):
        shift = depth * f32(reach) - f32(reach * convergence)
        target = f32(source) + shift if eye == "left" else f32(source) - shift
        target = min(max(target, f32(0)), f32(len(padded) - 1))
        ceil_weight = min(max(target - np.floor(target), f32(1e-5)), f32(1 - 1e-5))
        for layer, cell, weight in (
            (layers[0], int(np.floor(target)), 1 - ceil_weight),
            (layers[1], int(np.ceil(target)), ceil_weight),
        ):
            if cell not in layer or depth > layer[cell][0]:
                layer[cell] = (depth, source, weight)
    warped, index, state = [f32(-1)] * width, [f32(-1)] * width, [0.0] * width
    for x in range(width):
        landed = [layer.get(x + pad) for layer in layers]
        found = [entry for entry in landed if entry]
        if not found:
            state[x] = 1.0
        elif len(found) == 1:
            ((warped[x], source, weight),) = found
            index[x] = f32(source) * weight / weight
        else:
            (d0, i0, w0), (d1, i1, w1) = found
            warped[x] = d0 + (d1 - d0) * (w1 / (w0 + w1))
            index[x] = (f32(i0) * w0 + f32(i1) * w1) / (w0 + w1)
    behind = -1 if eye == "left" else 1  # where fill comes from
    for _ in range(width):
        before = list(index)
        for x in range(width):
            if before[x] == -1 and 0 <= x + behind < width:
                index[x] = before[x + behind]
    for _ in range(width):
        before = list(index)
        for x in range(width):
            if 0 <= x - behind < width and (before[x - behind] - before[x]) * behind > 0:
                index[x], state[x], warped[x] = before[x - behind], 0.5, f32(-1)
    for _ in range(width):
        held = list(warped)
        for x in range(width):
            if held[x] == -1 and 0 <= x + behind < width:
                warped[x] = held[x + behind]
    return np.maximum(np.array(warped, f32), 0), np.array(state, f32)


@st.composite
def depth_rows(draw: st.DrawFn) -> Tensor:
    """Rows of runs of equal depth and of single pixels: layers, thin things and noise."""
    width = draw(st.integers(2, 28))
    runs = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 9)), min_size=width, max_size=width)
    row = [level / 64 for level, length in draw(runs) for _ in range(length)][:width]
    return torch.tensor([row], dtype=torch.float32)


SHIFTS = {
    "divergence": st.floats(0, 60),
    "convergence": st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
}


@settings(deadline=None, max_examples=150)
@given(rows=depth_rows(), eye=st.sampled_from(["left", "right"]), **SHIFTS)
def test_one_eye_equals_the_slow_way(rows: Tensor, eye: Eye, divergence: float, convergence: float) -> None:
    warped, mask = slow_warp(rows[0].numpy(), divergence, convergence, eye)
    fast = {"divergence": divergence, "convergence": convergence, "eye": eye}
    np.testing.assert_array_equal(hole_mask(rows, **fast)[0].numpy(), mask)
    np.testing.assert_allclose(warp_depth(rows, **fast)[0].numpy(), warped, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(rows=depth_rows(), **SHIFTS)
def test_there_and_back_equals_the_slow_way(rows: Tensor, divergence: float, convergence: float) -> None:
    for view, away in (("right", "left"), ("left", "right")):
        row = rows[0].numpy() if view == "right" else rows[0].numpy()[::-1]
        warped, _ = slow_warp(row, divergence, convergence, away)  # type: ignore[arg-type]
        _, mask = slow_warp(warped, divergence, convergence, view)  # type: ignore[arg-type]
        fast = nonwarp_mask(
            rows[None, None],
            (1, rows.shape[1]),
            divergence=divergence,
            convergence=convergence,
            view=view,  # type: ignore[arg-type]
        )[0, 0, 0].numpy()
        np.testing.assert_array_equal(fast, mask if view == "right" else mask[::-1])


@pytest.mark.parametrize("eye", ["left", "right"])
def test_a_near_square_hides_what_lies_beside_it(eye: Eye) -> None:
    rows = torch.zeros(1, 100)
    rows[:, 40:60] = 1
    mask = hole_mask(rows, divergence=20, convergence=0, eye=eye)[0]
    uncovered = slice(40, 50) if eye == "left" else slice(50, 60)  # the square has moved 10 pixels
    assert (mask[uncovered] == 1).all()
    assert mask.sum() == 10


def test_flat_depth_and_no_divergence_have_no_hole() -> None:
    depth = torch.rand((2, 1, 6, 40), generator=torch.Generator().manual_seed(5))
    assert not nonwarp_mask(depth, (6, 40), divergence=0, convergence=0.5, view="right").any()
    flat = torch.full((1, 1, 6, 40), 0.7)
    assert not nonwarp_mask(flat, (6, 40), divergence=9, convergence=0, view="left").any()


def test_slices_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, size = ARRAYS["depth:blobs:97x131"], (97, 131)
    whole = nonwarp_mask(depth, size, divergence=9, convergence=0.5, view="left")
    for pixels in (1000, 1):
        monkeypatch.setattr(warp, "CHUNK_PIXELS_ONE_THREAD", pixels)
        assert rows_at_once(97, 131, depth.device) == max(pixels // 131, 1)
        assert torch.equal(
            nonwarp_mask(depth[:1], size, divergence=9, convergence=0.5, view="left"), whole[:1]
        )
    torch.set_num_threads(2)
    monkeypatch.setattr(warp, "CHUNK_PIXELS", 500)
    try:
        assert rows_at_once(97, 131, depth.device) == 3
        assert torch.equal(nonwarp_mask(depth, size, divergence=9, convergence=0.5, view="left"), whole)
    finally:
        torch.set_num_threads(1)


def test_an_unknown_view_is_named_with_the_allowed_ones() -> None:
    wrong: Any = "both"
    with pytest.raises(OptionError, match=r"^view 'both' does not exist; use right or left$"):
        nonwarp_mask(torch.zeros(1, 1, 2, 2), (2, 2), divergence=1, convergence=0, view=wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_mask() -> None:
    depth = ARRAYS["depth:noise:96x160"]
    for view in ("right", "left"):
        on_cpu, on_gpu = (
            nonwarp_mask(depth.to(device), (96, 160), divergence=9, convergence=0.3, view=view).cpu()  # type: ignore[arg-type]
            for device in ("cpu", "cuda")
        )
        assert (on_cpu != on_gpu).float().mean() <= 0.001


@pytest.mark.parametrize("view", ["right", "left"])
def test_wanted_rows_are_those_of_the_whole_closed_mask(view: Any) -> None:
    depth = torch.rand((1, 1, 10, 12), generator=torch.Generator().manual_seed(5))
    depth = depth.repeat_interleave(4, -2).repeat_interleave(5, -1)
    drawn: dict[str, Any] = {"divergence": 40.0, "convergence": 0.3, "view": view}
    whole = close_mask(nonwarp_mask(depth, (40, 60), **drawn))
    for start, stop in ((0, 40), (0, 7), (11, 12), (17, 31), (33, 40)):
        near, far = max(start - CLOSING_REACH_PX, 0), min(stop + CLOSING_REACH_PX, 40)
        part = close_mask(nonwarp_mask(depth, (40, 60), rows=(near, far), **drawn))
        assert torch.equal(part[..., start - near : stop - near, :], whole[..., start:stop, :])
    assert 0.05 < whole.mean() < 0.9
