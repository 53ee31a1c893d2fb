from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, hash_weights, std_weights, video, vmask
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.train import products
from vshard.train.network import ARCHITECTURES, BORDER_PX, LightVideoInpaint, create
from vshard.train.products import linear, mix

Fill = Callable[[str, tuple[int, ...]], Any]
HASH: Fill = partial(hash_weights, gain=0.5)
BLURRED_HOLE = 0.9


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "network.json").read_text())


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(GOLDEN / "network.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


@pytest.fixture
def narrow() -> LightVideoInpaint:
    torch.manual_seed(0)
    return filled(LightVideoInpaint(base_dim=16), HASH)


def filled(model: LightVideoInpaint, fill: Fill) -> LightVideoInpaint:
    weights = {key: torch.from_numpy(fill(key, tuple(v.shape))) for key, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return model


def clip(frames: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    x, mask = video(frames, 3, height, width, seed), vmask(frames, height, width, seed)
    return torch.from_numpy(x), torch.from_numpy(mask)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def assert_gradients(model: LightVideoInpaint, norms: dict[str, float]) -> None:
    found = {key: float(p.grad.double().norm()) for key, p in model.named_parameters()}
    assert found == pytest.approx(norms, rel=2e-4)


def hash_case_mask() -> Tensor:
    mask = torch.full((12, 1, 128, 192), BLURRED_HOLE)
    for t in range(12):
        mask[t, 0, 20 + t : 60 + t, 30:75] = 1
        mask[t, 0, 64:68, 40 + 4 * t : 44 + 4 * t] = 0.995
        mask[t, 0, 80:96, 80:96] = 0
        mask[t, 0, 100, 50] = 1
    return mask


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_architectures_have_the_keys_and_shapes_of_iw3(size: str, facts: dict[str, Any]) -> None:
    name = "inpaint.light_video_inpaint_v1" + ("" if size == "small" else f"_{size}")
    table = facts["tables"][name]
    model = create(size)
    assert list(table["shapes"].items()) == [(k, list(v.shape)) for k, v in model.state_dict().items()]
    assert (model.name, model.kwargs) == (table["name"], table["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == table["num_parameters"]
    assert ARCHITECTURES[name] == ARCHITECTURES[f"inpaint.light_video_inpaint_v1_{size}"] == model.kwargs


def test_hash_weights_give_the_golden_frames_and_gradients(
    facts: dict[str, Any], arrays: dict[str, Tensor]
) -> None:
    model = filled(create("small"), HASH)
    x, mask = clip(12, 128, 192, seed=6)
    soft = hash_case_mask()

    out = model.fill(x, soft)
    loss = (out**2).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts["hash"]["loss"], rel=1e-5)
    assert_gradients(model, facts["hash"]["gradient_norms"])
    assert_near(out[:, :, ::6, ::6].detach(), arrays["hash_train_out_nocrop"], 1e-4)
    borders = out[[0, 11]][:, :, [0, 1, -2, -1]]
    assert_near(borders.detach(), arrays["hash_train_out_border_rows"], 1e-4)

    cropped = out[:, :, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX][:, :, ::8, ::8].detach()
    assert_near(cropped, arrays["hash_train_out_crop"], 1e-4)
    assert_near(cropped.clamp(0, 1), arrays["hash_eval_out_crop"], 1e-4)
    with torch.no_grad():
        preprocessed = model.eval()(*model.preprocess(x, mask))
    assert_near(preprocessed[:, :, ::8, ::8], arrays["hash_eval_preprocessed"], 1e-4)


def test_std_weights_give_the_golden_frames_and_gradients(
    facts: dict[str, Any], arrays: dict[str, Tensor]
) -> None:
    model = filled(create("small"), std_weights)
    x, mask = model.preprocess(*clip(12, 200, 232, seed=4))
    assert_near(x[:, :, ::8, ::8], arrays["pre_x"], 0)
    assert_near(mask[:, :, ::8, ::8], arrays["pre_mask"], 1e-6)

    out = model(x, mask)
    loss = (out**2).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts["std"]["loss"], rel=1e-5)
    assert_gradients(model, facts["std"]["gradient_norms"])
    assert_near(out[:, :, ::8, ::8].detach(), arrays["train_out"], 2e-4)
    assert_near(out[:, :, ::8, ::8].detach().clamp(0, 1), arrays["eval_out"], 2e-4)


@pytest.mark.parametrize("size", ["medium", "large"])
def test_wider_networks_give_the_golden_frames(size: str, arrays: dict[str, Tensor]) -> None:
    model = filled(create(size), HASH)
    x, _ = clip(12, 64, 96, seed=7)
    mask = torch.full((12, 1, 64, 96), BLURRED_HOLE)
    mask[:, :, 10:30, 12:40] = 1
    with torch.no_grad():
        assert_near(model.fill(x, mask)[:, :, ::6, ::6], arrays[f"hash_{size}"], 1e-4)


@pytest.mark.parametrize(
    ("frames", "height", "width", "step"), [(7, 104, 152, 8), (12, 64, 96, 4), (1, 64, 96, 4)]
)
def test_infer_gives_the_golden_frames(
    frames: int, height: int, width: int, step: int, arrays: dict[str, Tensor]
) -> None:
    model = filled(create("small"), std_weights)
    x, mask = clip(frames, height, width, seed=5)
    out = model.infer(x, mask)  # also in training mode
    assert out.shape == x.shape
    assert not out.requires_grad
    assert_near(out[:, :, ::step, ::step], arrays[f"infer_{frames}"], 2e-4)


def test_infer_of_14_frames_repeats_5_in_front_and_5_behind(narrow: LightVideoInpaint) -> None:
    x, mask = clip(14, 40, 48, seed=5)
    windows = [[0] * 5 + list(range(7)), [*range(7, 14), *[13] * 5]]
    with torch.no_grad():
        first, second = (narrow.fill(*narrow.preprocess(x[i], mask[i])).clamp(0, 1) for i in windows)
    assert_near(narrow.infer(x, mask), torch.cat([first[5:], second[:7]]), 0)


def test_infer_of_24_frames_is_two_clips(narrow: LightVideoInpaint) -> None:
    x, mask = clip(24, 40, 48, seed=5)
    apart = torch.cat([narrow.infer(x[:12], mask[:12]), narrow.infer(x[12:], mask[12:])])
    assert_near(narrow.infer(x, mask.bool()), apart, 0)


def test_frames_outside_the_blurred_mask_stay_as_they_are(narrow: LightVideoInpaint) -> None:
    x, mask = clip(12, 56, 48, seed=5)
    emptied, soft = narrow.preprocess(x, mask)
    known = (soft == 0).expand_as(x)
    assert 0.2 < known.float().mean() < 0.9
    assert torch.equal(narrow.fill(emptied, soft)[known], x[known])
    assert (emptied[mask.bool().expand_as(x)] == 0).all()
    assert (soft[mask.bool()] == 1).all()


def test_forward_cuts_the_border_and_clamps_only_in_eval(narrow: LightVideoInpaint) -> None:
    x, mask = narrow.preprocess(*clip(12, 48, 56, seed=5))
    with torch.no_grad():
        whole = narrow.fill(x, mask)[:, :, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
        assert whole.max() > 1
        assert torch.equal(narrow(x, mask), whole)
        assert torch.equal(narrow.eval()(x, mask), whole.clamp(0, 1))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 76), (63, 200), (192, 127), (136, 256)])
def test_what_is_spared_changes_neither_frames_nor_gradients(height: int, width: int) -> None:
    model = filled(LightVideoInpaint(8), HASH).double()
    x, mask = model.preprocess(*(t.double() for t in clip(12, height, width, seed=5)))
    outs, gradients = [], []
    for out in (model(x, mask), model.fill(x, mask)[:, :, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]):
        outs.append(out.detach())
        gradients.append(torch.autograd.grad(out.square().mean(), [*model.parameters()]))
    assert_near(*outs, 1e-12)
    for ours, whole in zip(*gradients, strict=True):
        assert_near(ours, whole, 1e-12 * float(whole.abs().max()))


def test_one_graph_without_breaks_gives_the_same_frames(narrow: LightVideoInpaint) -> None:
    x, mask = narrow.preprocess(*clip(12, 40, 48, seed=5))
    compiled = torch.compile(narrow, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, mask), narrow(x, mask))


def test_bfloat16_autocast_stays_near(narrow: LightVideoInpaint) -> None:
    x, mask = narrow.preprocess(*clip(12, 40, 48, seed=5))
    exact = narrow(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = narrow(x, mask)
    rough.mean().backward()
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()
    assert all(p.grad.isfinite().all() for p in narrow.parameters())


def test_same_seed_same_weights() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(LightVideoInpaint(base_dim=16).parameters()).detach()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("kwargs", [{"base_dim": 15}, {"base_dim": 0}, {"lv2_mlp_ratio": 0}])
def test_widths_that_cannot_be_built(kwargs: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=str(next(iter(kwargs)))):
        LightVideoInpaint(**kwargs)


def test_refusals_name_what_is_allowed(narrow: LightVideoInpaint) -> None:
    with pytest.raises(OptionError, match="'tiny'; choose one of narrow, small, medium, large, inpaint"):
        create("tiny")
    with pytest.raises(OptionError, match="12 frames at once and was given 11"):
        narrow(*clip(11, 64, 64, seed=1))
    with pytest.raises(OptionError, match="no frame to fill"):
        narrow.infer(torch.zeros(0, 3, 64, 64), torch.zeros(0, 1, 64, 64))


@pytest.mark.parametrize("kwargs", [{"base_dim": 200_000}, {"lv2_mlp_ratio": 1000}])
def test_a_width_from_a_strangers_file_takes_no_memory(kwargs: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="at most 1024 and 16 are built"):
        LightVideoInpaint(**kwargs)


def plain_network() -> Any:
    """The benchmark's network: written out plainly, for comparing."""
    path = Path(__file__).parents[2] / "benchmarks" / "step.py"
    spec = importlib.util.spec_from_file_location("benchmark_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainNetwork


@pytest.mark.parametrize(
    "kwargs", [{"base_dim": 16, "lv2_mlp_ratio": 1}, {"base_dim": 8, "lv2_mlp_ratio": 2}]
)
def test_plain_code_gives_the_same_frames_and_gradients(
    kwargs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    ours, plain = LightVideoInpaint(**kwargs), plain_network()(**kwargs)
    plain.load_state_dict(filled(ours, HASH).state_dict())
    ours, plain = ours.double(), plain.double()
    x, mask = (t.double() for t in clip(12, 72, 136, seed=5))
    outs = [model(*model.preprocess(x, mask)) for model in (ours, plain)]
    assert_near(outs[0], outs[1], 1e-6)  # the blur's weights are float32
    for out in outs:
        out.square().mean().backward()
    for (key, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm(), key


@pytest.mark.parametrize("shape", [(5, 7, 16), (2, 192, 16), (16, 192, 16)])
def test_linear_and_mix_are_the_products_they_say(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    x, weight, bias = torch.randn(shape), torch.randn(24, 16), torch.randn(24)
    places, place_bias = torch.randn(shape[0], shape[0]), torch.randn(shape[0])
    inputs = [t.requires_grad_() for t in (x, weight, bias, places, place_bias)]
    exact = [t.detach().double().requires_grad_() for t in inputs]

    found = mix(linear(x, weight, bias), places, place_bias)
    dx, dweight, dbias, dplaces, dplace_bias = exact
    once = torch.einsum("ntk,ok->nto", dx, dweight) + dbias
    expected = torch.einsum("mn,nto->mto", dplaces, once) + dplace_bias[:, None, None]
    assert (found - expected).norm() < 1e-6 * expected.norm()

    pull = torch.randn(found.shape).transpose(0, 1).contiguous().transpose(0, 1)
    gradients = torch.autograd.grad(found, inputs, pull)
    for gradient, true in zip(gradients, torch.autograd.grad(expected, exact, pull.double()), strict=True):
        assert (gradient - true).norm() < 5e-6 * true.norm()


def test_products_by_the_usual_functions_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(8, 30, 16), torch.randn(16, 16), torch.randn(16)
    places, place_bias = torch.randn(8, 8), torch.randn(8)
    found = mix(linear(x, weight, bias), places, place_bias)
    monkeypatch.setattr(products, "_ONEDNN", False)
    torch.testing.assert_close(mix(linear(x, weight, bias), places, place_bias), found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_a_gpu_stays_near(amp: torch.dtype, narrow: LightVideoInpaint) -> None:
    x, mask = narrow.preprocess(*clip(12, 40, 48, seed=5))
    exact = narrow(x, mask).detach()
    narrow.cuda()
    with torch.autocast("cuda", amp):
        rough = narrow(x.cuda(), mask.cuda())
    rough.float().mean().backward()
    assert (rough.float().cpu() - exact).norm() < 0.03 * exact.norm()
    assert all(p.grad.isfinite().all() for p in narrow.parameters())


# Takes 64 MiB twice and tells how many pages the second time touched anew.
_TAKE_TWICE = """
import resource, numpy
from vshard.base.memory import keep_freed_memory
print(int({keep} and keep_freed_memory()))
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.full(2**26, 1, numpy.uint8)
    touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(touched)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_kept_on_demand(keep: bool) -> None:
    # Without huge pages, which NumPy asks for.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    code = _TAKE_TWICE.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    told, touched = map(int, done.stdout.split())
    assert told == keep
    assert (touched < 1000) == keep
