from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_inputs import pred, video
from torch import Tensor

from vshard.train import dct as module
from vshard.train.dct import dct, dct_overlap, dct_rotated

LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]


def clips(height: int = 24, width: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    shape = (3, 3, height, width, seed)
    return torch.from_numpy(pred(*shape)).double(), torch.from_numpy(video(*shape)).double()


def coefficients(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of (..., H, W), by its formula."""
    height, width = x.shape[-2:]
    found = torch.zeros_like(x)
    for u in range(height):
        for v in range(width):
            rows = torch.cos(math.pi * u * (torch.arange(height).double() + 0.5) / height)
            columns = torch.cos(math.pi * v * (torch.arange(width).double() + 0.5) / width)
            scale = math.sqrt((2 if u else 1) / height) * math.sqrt((2 if v else 1) / width)
            found[..., u, v] = scale * (x * rows[:, None] * columns).sum((-2, -1))
    return found


def slow_dct(output: Tensor, target: Tensor, window: int) -> float:
    """Window by window, each clip's coefficients apart."""
    pair = []
    for x in (output, target):
        x = torch.cat([x, (x.clamp(0, 1) * LUMA).sum(1, keepdim=True)], dim=1)
        rows, columns = (math.ceil(size / window) * window - size for size in x.shape[-2:])
        grown = x.new_zeros(*x.shape[:2], x.shape[2] + rows, x.shape[3] + columns)
        top, left = rows // 2, columns // 2
        grown[..., top : top + x.shape[2], left : left + x.shape[3]] = x
        pair.append(grown)
    z, y = pair
    differences = []
    for top in range(0, z.shape[2], window):
        for left in range(0, z.shape[3], window):
            cell = (..., slice(top, top + window), slice(left, left + window))
            differences.append(
                (coefficients(z[cell].clamp(0, 1)) - coefficients(y[cell].clamp(0, 1))).abs().mean()
            )
    return float(torch.stack(differences).mean() + 0.001 * (z - y).abs().mean())


@pytest.mark.parametrize(("height", "width"), [(24, 24), (16, 27)])
@pytest.mark.parametrize("window", [4, 6])
def test_windows_equal_the_formula(height: int, width: int, window: int) -> None:
    z, y = clips(height, width)
    assert dct(z, y, window).item() == pytest.approx(slow_dct(z, y, window), rel=1e-12)


@pytest.mark.parametrize("size", [8, 11])
def test_the_whole_frame_equals_a_window_of_its_size(size: int) -> None:
    z, y = clips(size, size)
    assert dct(z, y).item() == pytest.approx(slow_dct(z, y, size), rel=1e-12)


def test_frames_that_are_no_square_take_each_side_by_itself() -> None:
    z, y = clips(8, 12)
    pair = [torch.cat([x, (x.clamp(0, 1) * LUMA).sum(1, keepdim=True)], dim=1) for x in (z, y)]
    apart = coefficients(pair[0].clamp(0, 1)) - coefficients(pair[1].clamp(0, 1))
    wanted = apart.abs().mean() + 0.001 * (pair[0] - pair[1]).abs().mean()
    assert dct(z, y).item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 27)])
def test_overlap_is_the_mean_of_two_grids(height: int, width: int) -> None:
    z, y = clips(height, width)
    rows, columns = -height % 8, -width % 8
    grow = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    moved = [torch.nn.functional.pad(torch.nn.functional.pad(x, grow), (4, 4, 4, 4)) for x in (z, y)]
    wanted = (slow_dct(z, y, 8) + slow_dct(moved[0], moved[1], 8)) / 2
    assert dct_overlap(z, y, 8).item() == pytest.approx(wanted, rel=1e-12)


def test_one_frequency_costs_the_same_wherever_it_lies() -> None:
    wave = torch.cos(math.pi * 3 * (torch.arange(16) + 0.5) / 16)[:, None].expand(16, 16) * 0.2
    target = torch.full((2, 3, 16, 16), 0.5)
    upright, lying = (dct(target + w, target) for w in (wave, wave.T))
    assert upright.item() == pytest.approx(lying.item(), rel=1e-5)
    # One coefficient of 256 a channel, with 16 / sqrt(2) times the amplitude; 0.001 of the mean itself.
    amplitude = 0.2 * 16 / math.sqrt(2)
    assert upright.item() == pytest.approx(amplitude / 256 + 0.001 * wave.abs().mean().item(), rel=1e-4)


def test_rotated_is_half_upright_and_one_turned() -> None:
    z, y = clips()
    turned = dct_rotated(z, y, None, None).item() - 0.5 * dct(z, y).item()
    # The canvas has twice the area, so what is turned counts about half.
    assert 0.4 < turned / dct(z, y).item() < 0.6


class OneAngle(np.random.Generator):
    """Gives one angle, and what it was asked for."""

    def __init__(self, degrees: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.degrees = degrees
        self.asked: list[tuple[float, ...]] = []

    def uniform(self, *args: float) -> float:  # type: ignore[override]
        self.asked.append(args)
        return self.degrees


def test_the_angle_is_drawn_or_half_of_a_right_one() -> None:
    z, y = clips()
    rng = OneAngle(45.0)
    assert dct_rotated(z, y, 6, rng).item() == dct_rotated(z, y, 6, None).item()
    assert rng.asked == [(-45.0, 45.0)]
    assert dct_rotated(z, y, 6, OneAngle(20.0)).item() != dct_rotated(z, y, 6, None).item()


def test_upright_costs_the_same_by_angle_zero() -> None:
    z, y = clips()
    turned = dct_rotated(z, y, None, OneAngle(0.0)).item() - 0.5 * dct(z, y).item()
    assert 0.3 < turned / dct(z, y).item() < 1


@pytest.mark.parametrize("window", [None, 6])
def test_gradients_equal_differences(window: int | None) -> None:
    z, y = clips(12, 12)
    draw = torch.Generator().manual_seed(1)
    noise, direction = (torch.randn(z.shape, dtype=z.dtype, generator=draw) for _ in range(2))
    # Inside [0, 1], where nothing is clamped; multiples of 1/255 would leave coefficients of 0.
    z = (z * 0.5 + 0.2 + 0.01 * noise).requires_grad_()
    step = 1e-8
    for loss in (
        lambda x: dct(x, y, window),
        lambda x: dct_rotated(x, y, window, OneAngle(20.0)),
        lambda x: dct_overlap(x, y, 6),
    ):
        (gradient,) = torch.autograd.grad(loss(z), z)
        with torch.no_grad():
            slope = (loss(z + step * direction) - loss(z - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_cosines_are_kept_apart_by_size_type_and_device() -> None:
    made = module._cosines(8, torch.float32, torch.device("cpu"))
    assert made is module._cosines(8, torch.float32, torch.device("cpu"))
    assert module._cosines(8, torch.float64, torch.device("cpu")).dtype == torch.float64
    assert module._cosines(6, torch.float32, torch.device("cpu")).shape == (6, 6)
    torch.testing.assert_close(made @ made.T, torch.eye(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_without_waiting() -> None:
    z, y = (x.float() for x in clips(64, 64))
    wanted = [dct(z, y, 4), dct(z, y), dct_overlap(z, y, 32), dct_rotated(z, y, 24, None)]
    on_gpu = [x.cuda() for x in (z, y)]
    for _ in range(2):  # the first time with cosines made, then with those kept
        torch.cuda.set_sync_debug_mode("error")
        try:
            a, b = on_gpu
            found = [dct(a, b, 4), dct(a, b), dct_overlap(a, b, 32), dct_rotated(a, b, 24, None)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(found, wanted, strict=True):
            assert one.item() == pytest.approx(other.item(), rel=2e-5)
