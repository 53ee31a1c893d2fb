from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, pred, video
from torch import Tensor, nn

from vshard.base.errors import OptionError
from vshard.train import losses
from vshard.train.dct import dct, dct_overlap, dct_rotated
from vshard.train.losses import LOSSES, Loss, NetworkOptions, loss_by_name
from vshard.train.perceptual import pad_to_multiple

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "losses.json").read_text())["cases"]
NETWORKS = {losses.LPIPS, losses.DINOV2}
GRADIENT_KEYS = set(np.load(GOLDEN / "losses.npz"))
WITHOUT_NETWORK = [name for name, weights in LOSSES.items() if not NETWORKS & set(weights)]


class Nothing(nn.Module):
    """A network that finds no difference: what is left of a loss are its other terms."""

    source = "nothing"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.new_zeros(())


class One(Nothing):
    """A network that finds the difference 1."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.new_ones(())


def named(value: Any) -> str:
    return value if isinstance(value, str) else size_of(value)


def size_of(case: dict[str, Any]) -> str:
    return f"{case['T']}x{case['H']}x{case['W']}"


@cache
def arrays(T: int, H: int, W: int, seed: int) -> tuple[Tensor, Tensor]:
    shape = (T, 3, H, W, seed)
    return torch.from_numpy(pred(*shape)), torch.from_numpy(video(*shape))


def clips(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    output, target = arrays(case["T"], case["H"], case["W"], case["seed"])
    return output.clone().requires_grad_(), target


def fault(output: Tensor) -> Tensor:
    """What the original's smoothing, over the colour channels by mistake, has more than ours."""
    return output.diff(n=2, dim=1).square().mean() - losses.temporal_smoothing(output)


def original_temporal_l1(output: Tensor, target: Tensor) -> Tensor:
    return loss_by_name("temporal_l1")(output, target) + 0.01 * fault(output)


def padded(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return pad_to_multiple(output, 16), pad_to_multiple(target, 16)


def terms(name: str, output: Tensor, target: Tensor) -> Tensor:
    """Sum the terms of a loss that need no network, over the frames as they are."""
    weights = {term: weight for term, weight in LOSSES[name].items() if term in losses.TERMS}
    parts = [weight * losses.TERMS[term](output, target, None) for term, weight in weights.items()]
    return torch.stack(parts).sum()


# Golden name -> ours. The original's compositions end in the same reflected frames where LPIPS belongs to them.
GOLDEN_LOSSES = {
    "temporal_gradient": losses.temporal_gradient,
    "clamp_l1": losses.clamp_l1,
    "dct_full_clamp": dct,
    "dct_w4_clamp": lambda z, y: dct(z, y, 4),
    "dct_w24_clamp_rot": lambda z, y: dct_rotated(z, y, 24, None),
    "dct_full_clamp_rot": lambda z, y: dct_rotated(z, y, None, None),
    "dct_w32_clamp_overlap": lambda z, y: dct_overlap(z, y, 32),
    "compose_dct": lambda z, y: loss_by_name("dct")(z, y),
    "compose_l1dct_base": lambda z, y: terms("l1dctlpips", z, y),
    "compose_temporal_l1_base": original_temporal_l1,
    "compose_temporal_l1dct_base": lambda z, y: terms("temporal_l1dctlpips", z, y) + 0.01 * fault(z),
    "padded16_temporal_l1_base": lambda z, y: original_temporal_l1(*padded(z, y)),
    "padded16_temporal_l1dct_base": lambda z, y: (
        Loss("temporal_l1dctlpips", Nothing())(z, y) + 0.01 * fault(padded(z, y)[0])
    ),
    "temporal_smoothing_as_implemented": lambda z, _: losses.temporal_smoothing(z) + fault(z),
    "second_difference_over_frames": lambda z, _: losses.temporal_smoothing(z),
}


# The original does not cut frames that are not square into windows of 24.
VALUES = [(name, case) for case in CASES for name in GOLDEN_LOSSES if name in case["values"]]
GRADIENTS = [(name, case) for name, case in VALUES if f"{name}:{size_of(case)}" in GRADIENT_KEYS]


@pytest.mark.parametrize(("name", "case"), VALUES, ids=named)
def test_golden_values(name: str, case: dict[str, Any]) -> None:
    value = GOLDEN_LOSSES[name](*clips(case))
    tolerance = 5e-6 if "rot" in name or name == "compose_dct" else 2e-6
    assert value.item() == pytest.approx(case["values"][name], rel=tolerance)


@pytest.mark.parametrize(("name", "case"), GRADIENTS, ids=named)
def test_golden_gradients(name: str, case: dict[str, Any]) -> None:
    output, target = clips(case)
    (gradient,) = torch.autograd.grad(GOLDEN_LOSSES[name](output, target), output)
    with np.load(GOLDEN / "losses.npz") as stored:
        expected = torch.from_numpy(stored[f"{name}:{size_of(case)}"])
    found = gradient[::4, :, ::4, ::4]
    # A coefficient that differs by nothing but rounding has a sign, and its window a gradient, by chance.
    difference = (found - expected).abs()
    assert difference.max().item() < 0.005 * expected.abs().max().item()
    assert difference.mean().item() < 2e-4 * expected.abs().mean().item()
    assert gradient.abs().sum().item() == pytest.approx(case["gradient_abs_sums"][name], rel=1e-4)


def test_smoothing_is_blind_to_steady_change_and_to_colour() -> None:
    ramp = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 4, 4) * torch.tensor(
        [0.0, 1.0, -1.0]
    ).view(1, 3, 1, 1)
    assert losses.temporal_smoothing(ramp).item() == pytest.approx(0, abs=1e-7)
    flicker = torch.zeros(9, 3, 4, 4)
    flicker[::2] = 1
    assert losses.temporal_smoothing(flicker).item() == pytest.approx(4)


def test_clamping_leaves_a_weak_pull_back_from_outside() -> None:
    output = torch.full((3, 3, 4, 4), 1.5, requires_grad=True)
    target = torch.ones(3, 3, 4, 4)
    loss = losses.clamp_l1(output, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.0005)
    assert output.grad is not None
    assert output.grad.sum().item() == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("temporal_l1lpips", 0.2),
        ("l1lpips", 0.4),
        ("l1dctlpips", 0.2),
        ("temporal_l1dctlpips", 0.2),
        ("l1dinov2", 0.1),
    ],
)
def test_a_network_counts_beside_the_other_terms(name: str, weight: float) -> None:
    z, y = clips(CASES[2])
    without, together = (Loss(name, network, "made up")(z, y) for network in (Nothing(), One()))
    assert (together - without).item() == pytest.approx(weight, rel=1e-5)
    seen = padded(z, y) if losses.LPIPS in LOSSES[name] else (z, y)
    assert without.item() == pytest.approx(terms(name, *seen).item(), rel=1e-6)
    assert not [term for term in LOSSES[name] if term not in losses.TERMS and term not in NETWORKS]


@pytest.mark.parametrize("name", LOSSES)
def test_training_and_evaluation_see_one_loss_where_nothing_is_drawn(name: str) -> None:
    """A still clip that is grey all over is the same however it is moved."""
    loss = Loss(name, One() if NETWORKS & set(LOSSES[name]) else None)
    z, y = (torch.full((3, 3, 48, 48), value, requires_grad=value == 0.6) for value in (0.6, 0.5))
    if name != "dct":
        for seed in range(6):
            moved = loss(z, y, np.random.default_rng(seed))
            assert moved.item() == pytest.approx(loss(z, y).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss(z, y), z)
    assert gradient.abs().sum().item() > 0.1


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_equal_frames_in_range_cost_only_their_own_unrest(name: str) -> None:
    still = torch.full((4, 3, 32, 32), 0.5)
    assert loss_by_name(name)(still, still).item() == 0


def test_psnr_counts_decibels_below_60() -> None:
    target = torch.full((4, 3, 32, 32), 0.5)
    loss = loss_by_name("psnr")
    for decibels in (10.0, 20.0, 40.0):
        output = target + 10 ** (-decibels / 20)
        assert loss(output, target).item() == pytest.approx((60 - decibels) / 60, abs=1e-3)
    # Half of the error is as much less in an easy sample as in a hard one.
    hard, easy = (loss(target + e, target) - loss(target + e / 2, target) for e in (0.4, 0.02))
    assert hard.item() == pytest.approx(easy.item(), rel=0.02)


def test_unknown_losses_name_the_choice() -> None:
    with pytest.raises(
        OptionError, match="'l2' is not a loss; choose one of temporal_l1, l1, temporal_l1lpips"
    ):
        loss_by_name("l2")


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_weights_are_refused_where_none_are_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"w.pth: the loss '{name}' needs none; leave it out"):
        loss_by_name(name, NetworkOptions(weights=tmp_path / "w.pth"))
