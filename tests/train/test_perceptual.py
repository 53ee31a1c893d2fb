from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from golden_inputs import GOLDEN, hash_weights, pred, video
from perceptual_files import PLAIN, SLICES, WHEEL_SOURCE, as_shift_tolerant, as_torchvision, saved, shapes
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import vgg

from vshard.train import perceptual
from vshard.train.losses import Loss, temporal_smoothing
from vshard.train.perceptual import (
    Perceptual,
    find_perceptual,
    load_perceptual,
    pad_to_multiple,
)

LPIPS: dict[str, Any] = json.loads((GOLDEN / "losses.json").read_text())
CASES: list[dict[str, Any]] = LPIPS["lpips_synthetic"]
# What the code of the wheel stlpips-pytorch 0.0.2 says of pred and video (3, 3, 64, 64, 1).
WHEEL_DISTANCES = (0.6145877242088318, 0.6310962438583374, 0.6088939905166626)


def clips(T: int, H: int, W: int, seed: int) -> tuple[Tensor, Tensor]:
    shape = (T, 3, H, W, seed)
    return torch.from_numpy(pred(*shape)).requires_grad_(), torch.from_numpy(video(*shape))


def of_case(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return clips(case["T"], case["H"], case["W"], case["seed"])


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """The weights of the golden README."""
    state = {
        key: torch.from_numpy(hash_weights(key, shape, LPIPS["lpips_gain"]))
        for key, shape in shapes().items()
    }
    return {key: value.abs() if key.startswith("lin") else value for key, value in state.items()}


@pytest.fixture(scope="module")
def whole_path(whole: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(whole, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def network(whole_path: Path) -> Perceptual:
    return load_perceptual(whole_path)


@pytest.fixture(scope="module")
def tolerant(whole: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Perceptual:
    return load_perceptual(saved(as_shift_tolerant(whole), tmp_path_factory.mktemp("tolerant")))


def features(x: Tensor, whole: dict[str, Tensor], shift_tolerant: bool) -> list[Tensor]:
    """The slow clear network."""
    x = (x * 2 - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450]
    ).view(3, 1, 1)
    found: list[Tensor] = []
    for place, (number, part) in enumerate(zip(PLAIN, SLICES, strict=True)):
        if place and SLICES[place - 1] != part:
            found.append(x)
            if shift_tolerant:
                x = F.pad(F.max_pool2d(x, 2, 1), (2, 2, 2, 2), mode="reflect")
                kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
                x = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, x.shape[:2])[:, :, 0]
                x = x[..., ::2, ::2]
            else:
                x = F.max_pool2d(x, 2)
        key = f"net.slice{part}.{number}"
        x = F.conv2d(x, whole[f"{key}.weight"], whole[f"{key}.bias"], padding=1).clamp(min=0)
    return [x / (x.square() + 1e-8).sum(1, keepdim=True).sqrt() for x in [*found, x]]


def slow_distances(z: Tensor, y: Tensor, whole: dict[str, Tensor], *, shift_tolerant: bool) -> Tensor:
    pairs = zip(features(z, whole, shift_tolerant), features(y, whole, shift_tolerant), strict=True)
    parts = [
        ((a - b).square() * whole[f"lin{depth}.model.1.weight"]).sum(1).mean((1, 2))
        for depth, (a, b) in enumerate(pairs)
    ]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['H']}x{case['W']}")
def test_golden_values_and_gradients(case: dict[str, Any], network: Perceptual) -> None:
    z, y = of_case(case)
    torch.testing.assert_close(
        network.distances(z, y), torch.tensor(case["lpips_per_frame"]), rtol=2e-6, atol=0
    )
    value = network(z, y)
    assert value.item() == pytest.approx(case["lpips_mean"], rel=2e-6)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.abs().sum().item() == pytest.approx(case["grad_abs_sum"], rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['H']}x{case['W']}")
def test_golden_composition(case: dict[str, Any], network: Perceptual) -> None:
    z, y = of_case(case)
    found = Loss("temporal_l1lpips", network)(z, y)
    seen = pad_to_multiple(z, 16)
    fault = seen.diff(n=2, dim=1).square().mean() - temporal_smoothing(seen)
    assert (found + 0.01 * fault).item() == pytest.approx(case["total_temporal_l1lpips"], rel=2e-6)


@pytest.mark.parametrize("shift_tolerant", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 32)])
def test_it_equals_the_slow_network(
    shift_tolerant: bool,
    height: int,
    width: int,
    whole: dict[str, Tensor],
    network: Perceptual,
    tolerant: Perceptual,
) -> None:
    z, y = clips(2, height, width, 5)
    wanted = slow_distances(z, y, whole, shift_tolerant=shift_tolerant)
    found = tolerant if shift_tolerant else network
    torch.testing.assert_close(found.distances(z, y), wanted, rtol=1e-5, atol=0)
    ours, theirs = (torch.autograd.grad(value, z)[0] for value in (found(z, y), wanted.mean()))
    # Single pixels differ by more, where an activation is 0 but for rounding.
    assert (ours - theirs).norm().item() < 1e-3 * theirs.norm().item()


def test_torchvisions_layout_gives_what_torchmetrics_computes(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = SimpleNamespace(features=vgg.make_layers(vgg.cfgs["D"]))
    # All but the classifier, whose random weights would take seconds.
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: layers)
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    convolutions = {key: value for key, value in whole.items() if key.startswith("net")}
    theirs.load_state_dict(convolutions, strict=False)
    z, y = clips(2, 48, 48, 6)
    wanted = theirs(z * 2 - 1, y * 2 - 1).flatten()
    path = saved(as_torchvision(whole), tmp_path)
    torch.testing.assert_close(load_perceptual(path).distances(z, y), wanted, rtol=1e-5, atol=0)


def test_the_wheels_weights_give_what_the_wheels_code_gave() -> None:
    found = find_perceptual()
    assert found.source == WHEEL_SOURCE
    z, y = clips(3, 64, 64, 1)
    # Its code adds its epsilon outside the root.
    torch.testing.assert_close(found.distances(z, y), torch.tensor(WHEEL_DISTANCES), rtol=2e-5, atol=0)


def test_equal_clips_are_no_distance_apart_and_noise_adds_to_it() -> None:
    network = find_perceptual()
    _, y = clips(2, 64, 64, 7)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    distances = [network(y + level * noise, y).item() for level in (0, 0.02, 0.05, 0.1, 0.2)]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


@pytest.mark.parametrize("frames", [1, 4, 6])
def test_a_few_frames_at_a_time_are_the_same(
    frames: int, network: Perceptual, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, y = clips(frames, 32, 32, 8)
    wanted = network.distances(z, y).mean()
    (gradient,) = torch.autograd.grad(wanted, z)
    seen: list[int] = []
    distances = network.distances
    monkeypatch.setattr(network, "distances", lambda a, b: seen.append(len(a)) or distances(a, b))
    value = network(z, y)
    (found,) = torch.autograd.grad(3 * value, z)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(found, 3 * gradient, rtol=1e-4, atol=1e-8)
    assert sum(seen) == frames and max(seen) <= perceptual._CHUNK_FRAMES


def test_gradients_reach_the_output_alone_and_once(network: Perceptual) -> None:
    z, y = clips(1, 32, 32, 9)
    y.requires_grad_()
    value = network(z, y)
    first, second = (torch.autograd.grad(value, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (of_target,) = torch.autograd.grad(value, y, retain_graph=True, allow_unused=True)
    assert of_target is None
    assert not any(parameter.requires_grad for parameter in network.parameters())
    (again,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        again.sum().backward()
    with torch.no_grad():
        assert network(z, y).item() == value.item()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (50, 70)])
def test_padding_mirrors_and_counts_every_pixel_once(height: int, width: int) -> None:
    z, _ = clips(1, height, width, 10)
    found = pad_to_multiple(z, 16)
    assert found.shape[-2] % 16 == found.shape[-1] % 16 == 0
    down, across = found.shape[-2] - height, found.shape[-1] - width
    padding = ((0, 0), (0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2))
    assert np.array_equal(found.detach().numpy(), np.pad(z.detach().numpy(), padding, mode="reflect"))
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert (gradient == 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shift_tolerant", [False, True])
def test_a_gpu_finds_the_same_without_waiting(
    shift_tolerant: bool, network: Perceptual, tolerant: Perceptual
) -> None:
    network = copy.deepcopy(tolerant if shift_tolerant else network)
    z, y = clips(5, 50, 64, 11)
    wanted = network(z, y)
    (gradient,) = torch.autograd.grad(wanted, z)
    network.cuda()
    on_gpu = [x.detach().cuda().requires_grad_() for x in (z, y)]
    network(*on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = network(*on_gpu)
        (other,) = torch.autograd.grad(found, on_gpu[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Convolutions of float32 are of 10 bits there.
    assert found.item() == pytest.approx(wanted.item(), rel=5e-3)
    assert F.cosine_similarity(other.cpu().flatten(), gradient.flatten(), dim=0).item() > 0.99
