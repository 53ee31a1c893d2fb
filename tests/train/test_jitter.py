from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, pred, video
from torch import Tensor

from vshard.train import losses
from vshard.train.jitter import (
    jitter,
    rotate,
    rotate_whole,
    shift,
)
from vshard.train.losses import Loss, loss_by_name

DRAWS = 3000
# The square of 4.3 standard deviations: one in 60000 fair draws of three kinds is farther off.
CHI_SQUARE_2 = 22.0


def golden(key: str) -> Tensor:
    with np.load(GOLDEN / "losses.npz") as stored:
        return torch.from_numpy(stored[key])


def clip(seed: int = 1, height: int = 40, width: int = 48) -> Tensor:
    return torch.from_numpy(video(3, 3, height, width, seed))


@pytest.mark.parametrize(("right", "down"), [(3, -5), (-8, 8)])
def test_golden_shifts(right: int, down: int) -> None:
    assert torch.equal(shift(golden("aug:input"), right, down), golden(f"aug:translate:{right},{down}"))


@pytest.mark.parametrize("degrees", [15.0, -7.3])
def test_golden_rotations(degrees: float) -> None:
    torch.testing.assert_close(
        rotate(golden("aug:input"), degrees), golden(f"aug:rotate:{degrees}"), rtol=0, atol=5e-6
    )


def test_golden_rotation_on_a_larger_canvas() -> None:
    found = rotate_whole(golden("aug:input"), 45.0)
    torch.testing.assert_close(found, golden("aug:rotate_expand:45"), rtol=0, atol=5e-6)


@pytest.mark.parametrize("right", [-8, -1, 0, 5])
@pytest.mark.parametrize("down", [-3, 0, 8])
def test_a_shift_moves_what_it_does_not_mirror(right: int, down: int) -> None:
    x = clip()
    moved = shift(x, right, down)
    assert moved.shape == x.shape
    for row, column in ((0, 0), (20, 24), (39, 47)):
        # A mirror without the border itself: ..., 2, 1, 0, 1, 2, ...
        source = [
            abs(place) if place < size else 2 * size - 2 - place
            for place, size in ((row - down, 40), (column - right, 48))
        ]
        assert torch.equal(moved[..., row, column], x[..., source[0], source[1]])


def test_a_rotation_goes_counter_clockwise_and_comes_back() -> None:
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 35] = 1  # right of the centre
    turned = rotate(spot, 15.0)
    row = (turned.sum((0, 1, 3)) * torch.arange(41)).sum() / turned.sum()
    assert row.item() == pytest.approx(20 - 15 * np.sin(np.radians(15)), abs=0.6)
    x = clip()
    smooth = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    there = rotate(smooth, 10.0)
    moved, left = ((y - smooth)[..., 12:28, 12:36].abs().mean().item() for y in (there, rotate(there, -10.0)))
    assert left < moved / 3


def kind_of(x: Tensor, moved: Tensor) -> str:
    if moved is x:
        return "nothing"
    return "shift" if set(moved.unique().tolist()) <= set(x.unique().tolist()) else "rotation"


def test_one_in_three_is_shifted_rotated_or_left_alone() -> None:
    rng = np.random.default_rng(3)
    x = torch.linspace(0, 1, 12 * 12).reshape(1, 1, 12, 12)
    kinds = [kind_of(x, jitter(x, x, rng)[0]) for _ in range(DRAWS)]
    counts = [kinds.count(kind) for kind in ("shift", "rotation", "nothing")]
    chi_square = sum((count - DRAWS / 3) ** 2 / (DRAWS / 3) for count in counts)
    assert chi_square < CHI_SQUARE_2, counts


class Drawn(np.random.Generator):
    """A generator that says what it gave."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.given: list[float] = []

    def uniform(self, *args: float) -> float:  # type: ignore[override]
        self.given.append(super().uniform(*args))
        return self.given[-1]


def test_shifts_and_angles_fill_their_range() -> None:
    rng = Drawn(4)
    x = torch.arange(30.0 * 30).reshape(1, 1, 30, 30)
    shifts = set()
    for _ in range(DRAWS):
        moved, _ = jitter(x, x, rng)
        if kind_of(x, moved) == "shift":
            down, right = _offset(moved)
            shifts.add((right, down))
    assert {right for right, _ in shifts} == set(range(-8, 9))
    assert {down for _, down in shifts} == set(range(-8, 9))
    assert max(np.abs(rng.given)) <= 15
    assert min(rng.given) < -14.7
    assert max(rng.given) > 14.7


def _offset(moved: Tensor) -> tuple[int, int]:
    row, column = divmod(int(moved[0, 0, 15, 15]), 30)
    return 15 - row, 15 - column


def test_both_clips_move_alike() -> None:
    rng = np.random.default_rng(5)
    x = clip()
    for _ in range(30):
        one, other = jitter(x, x.clone(), rng)
        assert torch.equal(one, other)


def test_the_same_generator_moves_the_same_way() -> None:
    x, y = clip(1), clip(2)
    first, second = (jitter(x, y, np.random.default_rng(6)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_gradients_come_back_through_every_move() -> None:
    for seed in range(12):
        x = clip().requires_grad_()
        moved, _ = jitter(x, x.detach(), np.random.default_rng(seed))
        (gradient,) = torch.autograd.grad(moved.sum(), x)
        assert gradient[..., 15:25, 15:33].min().item() > 0.9


@pytest.mark.parametrize("name", ["l1", "temporal_l1", "dct"])
def test_losses_move_clips_in_training_but_never_for_dct(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(output: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        seen.append(rng)
        return jitter(output, target, rng)

    monkeypatch.setattr(losses, "jitter", spy)
    loss: Loss = loss_by_name(name)
    z, y = torch.from_numpy(pred(3, 3, 48, 48, 1)), torch.from_numpy(video(3, 3, 48, 48, 1))
    still = loss(z, y)
    assert seen == [] and loss(z, y).item() == still.item()
    rng = np.random.default_rng(7)
    values = {loss(z, y, rng).item() for _ in range(12)}
    assert len(values) > 4
    assert seen == ([] if name == "dct" else [rng] * 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(6))
def test_a_gpu_moves_alike_without_waiting(seed: int) -> None:
    x = clip()
    wanted, _ = jitter(x, x, np.random.default_rng(seed))
    on_gpu = x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, _ = jitter(on_gpu, on_gpu, np.random.default_rng(seed))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-4)
