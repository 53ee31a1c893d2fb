from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, pred, video
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.train import losses

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "losses.json").read_text())["cases"]


def size_of(case: dict[str, Any]) -> str:
    return f"{case['T']}x{case['H']}x{case['W']}"


def frames(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    shape = (case["T"], 3, case["H"], case["W"], case["seed"])
    return torch.from_numpy(pred(*shape)).requires_grad_(), torch.from_numpy(video(*shape))


def smoothing_over_channels(output: Tensor) -> Tensor:
    """The original's mistake, to compare its sums with ours."""
    return output.diff(n=2, dim=1).square().mean()


@pytest.mark.parametrize("case", CASES, ids=size_of)
def test_golden_values(case: dict[str, Any]) -> None:
    output, target = frames(case)
    values = case["values"]
    smoothing = values["second_difference_over_frames"]
    fault = values["temporal_smoothing_as_implemented"]
    assert smoothing_over_channels(output).item() == pytest.approx(fault, rel=2e-6)
    assert losses.temporal_smoothing(output).item() == pytest.approx(smoothing, rel=2e-6)
    assert losses.temporal_gradient(output, target).item() == pytest.approx(
        values["temporal_gradient"], rel=2e-6
    )
    assert losses.LOSSES["l1"](output, target).item() == pytest.approx(values["clamp_l1"], rel=2e-6)
    mended = values["compose_temporal_l1_base"] + 0.01 * (smoothing - fault)
    assert losses.LOSSES["temporal_l1"](output, target).item() == pytest.approx(mended, rel=2e-6)


def test_golden_gradients() -> None:
    with np.load(GOLDEN / "losses.npz") as stored:
        for case in (case for case in CASES if size_of(case) in stored):
            output, target = frames(case)
            mended = losses.temporal_l1(output, target)
            fault = smoothing_over_channels(output) - losses.temporal_smoothing(output)
            (gradient,) = torch.autograd.grad(mended + 0.01 * fault, output)
            expected = torch.from_numpy(stored[size_of(case)])
            torch.testing.assert_close(gradient[::4, :, ::4, ::4], expected, rtol=1e-5, atol=1e-9)


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


@pytest.mark.parametrize("name", losses.LOSSES)
def test_equal_frames_in_range_cost_only_their_own_unrest(name: str) -> None:
    still = torch.full((4, 3, 8, 8), 0.5)
    assert losses.loss_by_name(name)(still, still).item() == 0


def test_unknown_losses_name_the_choice() -> None:
    with pytest.raises(
        OptionError, match="'temporal_l1lpips' is not built yet; choose one of temporal_l1, l1"
    ):
        losses.loss_by_name("temporal_l1lpips")
    with pytest.raises(OptionError, match="'l2' is not a loss; choose one of temporal_l1, l1"):
        losses.loss_by_name("l2")
