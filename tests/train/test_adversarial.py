"""The adversarial losses by golden numbers and laws, and a discriminator that learns."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, uniform, video, vmask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.train import adversarial
from vshard.train.adversarial import (
    Adversary,
    AdversaryOptions,
    discriminator_loss,
    generator_loss,
    straight_clamp,
    warmup,
)
from vshard.train.checkpoint import _plain
from vshard.train.discriminators import DISCRIMINATORS, create_discriminator
from vshard.train.network import LightVideoInpaint
from vshard.train.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
STORED = json.loads((GOLDEN / "adversarial.json").read_text())


def logits(shape: list[int], seed: int, middle: float) -> Tensor:
    return torch.from_numpy(((uniform(tuple(shape), seed) - middle) * 4).astype(np.float32))


def golden_level(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of filmed and of filled frames, and the mask, of one of the two levels."""
    shape, edge = ((STORED["gan"]["shape"], 0.7), (STORED["gan"]["shape2"], 0.5))[number]
    seed = STORED["gan"]["seed"] + 3 * number
    mask = torch.from_numpy(uniform(tuple(shape), seed + 2) > edge)
    return logits(shape, seed, 0.4), logits(shape, seed + 1, 0.6), mask


def test_golden_hinge() -> None:
    (real, fake, mask), (real2, fake2, mask2) = golden_level(0), golden_level(1)
    gan = STORED["gan"]
    assert (int(mask.sum()), int(mask2.sum())) == (gan["mask_true"], gan["mask2_true"])
    found = {
        "generator_no_mask": generator_loss([real]),
        "generator_masked_static": generator_loss([real], mask),
        "discriminator_masked": discriminator_loss([real], [fake], mask),
        "discriminator_method_with_mask_none": discriminator_loss([real], [fake]),
        "discriminator_empty_mask": discriminator_loss([real], [fake], torch.zeros_like(mask)),
        "list_generator": generator_loss([real, real2]),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(gan[name], rel=2e-6, abs=0), name
    # The original gives each level a mask of its own; ours are one mask at the resolution of each.
    levels = [discriminator_loss([real], [fake], mask), discriminator_loss([real2], [fake2], mask2)]
    assert adversarial._weighted(levels).item() == pytest.approx(gan["list_discriminator_masked"], rel=2e-6)
    assert list(adversarial.LIST_WEIGHTS) == gan["list_loss_weights"]


def test_golden_clamp() -> None:
    stored = STORED["ste_clamp"]
    x = torch.tensor(stored["x"], requires_grad=True)
    clamped = straight_clamp(x)
    torch.testing.assert_close(clamped, torch.tensor(stored["forward"]), rtol=2e-7, atol=0)
    (clamped * torch.arange(len(x))).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(stored["grad_of_sum_i_times_out_i"]), rtol=2e-7, atol=0)


def test_golden_warmup() -> None:
    for case in STORED["generator_warmup"]:
        found = warmup(case["iteration"], case["warmup_iterations"])
        assert found == pytest.approx(case["weight"], rel=1e-12, abs=0)


@given(st.integers(1, 2000))
def test_warmup_grows_from_0_to_1(steps: int) -> None:
    weights = [warmup(step, steps) for step in range(steps + 2)]
    assert weights[0] == 0 and weights[-2:] == [1, 1]
    assert all(a < b for a, b in pairwise(weights[:-1]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-1e6, 1e6))
def test_nothing_outside_the_holes_matters(seed: int, other: float) -> None:
    real, fake = (logits([2, 1, 4, 5], seed + k, 0.5) for k in range(2))
    mask = torch.from_numpy(uniform((2, 1, 32, 40), seed + 2) > 0.97).float()
    hole = torch.nn.functional.max_pool2d(mask, 8) > 0
    moved = [torch.where(hole, x, torch.full_like(x, other)) for x in (real, fake)]
    assert torch.equal(generator_loss([moved[1]], mask), generator_loss([fake], mask))
    moved[0][~hole] = float("nan")
    assert torch.equal(
        discriminator_loss([moved[0]], [moved[1]], mask), discriminator_loss([real], [fake], mask)
    )
    inside = fake.requires_grad_()
    generator_loss([inside], mask).backward()
    assert inside.grad is not None
    assert torch.equal(inside.grad != 0, hole)


def sample(seed: int = 0, size: int = 64) -> tuple[Tensor, Tensor]:
    """Twelve true frames and their holes."""
    return torch.from_numpy(video(12, 3, size, size, seed)), torch.from_numpy(vmask(12, size, size, seed))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_judges_patches_by_all_it_is_given(name: str) -> None:
    torch.manual_seed(0)
    discriminator = create_discriminator(name)
    frames, mask = sample(size=72)
    empty = frames * (1 - mask)
    frames.requires_grad_()
    found = discriminator(frames, empty, mask)
    assert [tuple(one.shape) for one in found] == [(12, 1, 9, 9)] * (2 if name == "l3cffce" else 1)
    for number, one in enumerate(found):
        # The frame itself and, by its difference from it, the one after.
        (gradient,) = torch.autograd.grad(one[5].sum(), frames, retain_graph=True)
        seen = gradient.abs().sum((1, 2, 3)) > 0
        assert seen.tolist() == [k in (4, 5) for k in range(12)]
        for changed in ((frames, empty * 0.5, mask), (frames, empty, 1 - mask)):
            assert not torch.allclose(discriminator(*changed)[number], one)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_those_of_waves_judge_by_the_whole_frame(name: str) -> None:
    torch.manual_seed(0)
    discriminator = create_discriminator(name)
    for norm in [m for m in discriminator.modules() if isinstance(m, torch.nn.GroupNorm)]:
        norm.forward = lambda x: x  # type: ignore[method-assign]  # it takes the whole frame's contrast
    frames, mask = sample(size=128)
    frames.requires_grad_()
    for number, one in enumerate(discriminator(frames, frames.detach(), mask)):
        (gradient,) = torch.autograd.grad(one[5, 0, 0, 0], frames, retain_graph=True)
        assert gradient[5, :, :8, :8].any()
        waves = "ffc" in name and (name != "l3cffce" or number == 1)
        assert bool(gradient[5, :, -8:, -8:].any()) == waves


def test_unknown_discriminators_name_the_choice() -> None:
    with pytest.raises(OptionError, match="--discriminator l3: allowed are l3c, l3ce, ffc, ffce, l3cffce"):
        create_discriminator("l3")


def options(name: str = "l3c", *, warmup_steps: int = 0, amp: torch.dtype | None = None) -> AdversaryOptions:
    return AdversaryOptions(name, weight=0.2, warmup_steps=warmup_steps, backward_step=1, amp=amp, seed=71)


class Play:
    """A network and its adversary, a sample at a time, by plain calls."""

    def __init__(self, wanted: AdversaryOptions | None = None) -> None:
        torch.manual_seed(3)
        self.model = LightVideoInpaint(base_dim=4)
        self.adversary = Adversary(self.model.to_image.weight, ALONE, wanted or options())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def add(self, seed: int, weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the output, the gradient of its loss, that of both, and the discriminator's loss."""
        y, mask = sample(seed)
        emptied, soft = self.model.preprocess(y, mask)
        out = self.model(emptied, soft)
        target = y[..., 16:-16, 16:-16]
        (gradient,) = torch.autograd.grad((out - target).abs().mean(), out, retain_graph=True)
        both, loss = self.adversary.add(out, gradient, target, emptied, mask, weight=weight)
        return out, gradient, both, loss

    def step(self, seed: int) -> float:
        out, _, both, loss = self.add(seed)
        out.backward(both)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.adversary.step(torch.zeros(()))
        return float(loss)

    def everything(self) -> Tensor:
        ours = [*self.model.parameters(), *self.adversary.discriminator.parameters(), self.adversary._ratio]
        return torch.cat([parameter.detach().flatten() for parameter in ours])


def test_the_weight_is_the_mean_ratio_of_gradients_at_the_last_layer() -> None:
    play = Play()
    expected = 0.0
    for seed in range(4):
        y, mask = sample(seed)
        assert float(play.adversary.weight) == pytest.approx(0.2 * expected, rel=1e-5)
        out, gradient, both, _ = play.add(seed)
        # The same by the definition: what the discriminator says of the clamped frames, and both gradients.
        inner = slice(16, -16)
        emptied = (y * (1 - mask))[..., inner, inner]
        judged = play.adversary.discriminator(straight_clamp(out), emptied, mask[..., inner, inner])
        asked = generator_loss(judged, mask[..., inner, inner])
        last = play.model.to_image.weight
        (asked_at_out,) = torch.autograd.grad(asked, out, retain_graph=True)
        torch.testing.assert_close(both, gradient + 0.2 * expected * asked_at_out, rtol=1e-4, atol=1e-9)
        norms = [
            float(torch.autograd.grad(of, last, by, retain_graph=True)[0].norm())
            for of, by in ((out, gradient), (asked, None))
        ]
        ratio = norms[0] / norms[1]
        assert 1e-3 < ratio < 10
        expected = 0.99 * expected + 0.01 * ratio if seed else ratio
        play.adversary.step(torch.zeros(()))
    assert float(play.adversary.weight) == pytest.approx(0.2 * expected, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1e30), st.floats(0, 1e30)), min_size=1, max_size=8))
def test_the_weight_stays_within_bounds(norms: list[tuple[float, float]]) -> None:
    adversary = Adversary(torch.nn.Parameter(torch.zeros(1)), ALONE, options())
    for loss, asked in [*norms, (float("inf"), 1.0), (1.0, float("nan"))]:
        adversary._norms = torch.tensor([loss, asked])
        before = float(adversary.weight)
        adversary.step(torch.zeros(()))
        weight = float(adversary.weight)
        assert weight == 0 or 0.2 * 1e-3 * (1 - 1e-6) <= weight <= 0.2 * 10 * (1 + 1e-6)
        assert weight != 0 or before == 0
        if not (0 < loss < np.inf and 0 < asked < np.inf):
            assert weight == before


def test_the_warm_up_holds_it_back() -> None:
    play = Play(options(warmup_steps=4))
    for seed in range(3):
        play.step(seed)
        weight = 0.2 * float(play.adversary._ratio) * warmup(seed + 1, 4)
        assert float(play.adversary.weight) == pytest.approx(weight, rel=1e-6) and weight > 0


def test_spoilt_steps_and_fillers_change_nothing() -> None:
    play, other = Play(), Play()
    play.step(0), other.step(0)
    before = play.everything()
    play.add(1)
    play.adversary.step(torch.ones(()))
    assert torch.equal(play.everything(), before)
    play.add(2, weight=0.0)
    play.add(3), other.add(3)
    play.adversary.step(torch.zeros(())), other.adversary.step(torch.zeros(()))
    assert torch.equal(play.everything(), other.everything()) and not torch.equal(play.everything(), before)


@pytest.mark.parametrize("name", ["l3c", "ffc"])
def test_it_learns_to_tell_a_constant_fill_from_the_truth(name: str) -> None:
    last = torch.nn.Parameter(torch.ones(1))
    adversary = Adversary(last, ALONE, options(name))
    adversary.set_rate(2)
    losses = []
    for step in range(25):
        y, mask = sample(step % 4)
        empty = y * (1 - mask)
        out = (empty + 0.5 * mask) * last
        _, loss = adversary.add(out, torch.ones_like(out), y, empty, mask, weight=1.0)
        adversary.step(torch.zeros(()))
        losses.append(float(loss))
    assert 0.9 < losses[0] < 1.1 and sum(losses[-4:]) < 0.75 * sum(losses[:4]), losses
    # On frames that it has not seen, too.
    y, mask = sample(6)
    empty = y * (1 - mask)
    with torch.no_grad():
        filmed, filled = (adversary.discriminator(x, empty, mask) for x in (y, empty + 0.5 * mask))
    assert generator_loss(filled, mask) - generator_loss(filmed, mask) > 0.15


def test_resumed_equals_unbroken() -> None:
    for name in ("l3c", "l3cffce"):
        whole, first, second = (Play(options(name)) for _ in range(3))
        told = [whole.step(seed) for seed in range(4)]
        assert [first.step(seed) for seed in range(2)] == told[:2]
        file = io.BytesIO()
        torch.save(_plain(first.adversary.state(), ""), file)  # as a checkpoint has it
        second.adversary.load_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        second.model.load_state_dict(first.model.state_dict())
        assert [second.step(seed) for seed in range(2, 4)] == told[2:]
        assert torch.equal(second.everything(), whole.everything())
        assert second.adversary.state()["step"] == 4


def test_a_state_that_lies_is_refused() -> None:
    play = Play()
    play.step(0)
    for change in (
        {"step": -1}, {"step": 1.5}, {"step": "x"}, {"ratio": torch.tensor(float("nan"))}, {"ratio": torch.zeros(0)},
        {"ratio": torch.tensor(-1.0)}, {"ratio": torch.tensor(1e9)}, {"weights": {}}, {"weights": torch.zeros(2)},
        {"optimizer": {}}, {"optimizer": None},
    ):  # fmt: skip
        with pytest.raises((AttributeError, KeyError, TypeError, ValueError, RuntimeError)):
            Play().adversary.load_state({**play.adversary.state(), **change})
    state = play.adversary.state()
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match="exp_avg of a weight of"):
        Play().adversary.load_state(state)


def test_mixed_precision_comes_near() -> None:
    exact, half, full = (
        Play(options("ffc", amp=amp)).step(0) for amp in (None, torch.bfloat16, torch.float16)
    )
    assert full == exact, "beside float16 the discriminator is of float32"
    assert half == pytest.approx(exact, rel=0.02) and half != exact
