from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, std_weights, video
from torch import Tensor, nn

from vshard.base.errors import OptionError
from vshard.train.network import ARCHITECTURES, create
from vshard.train.optimize import (
    OPTIMIZERS,
    create_optimizer,
    is_schedule_free,
    parameter_groups,
    rate_of,
    set_rates,
    set_training,
    take_state,
    take_stepping,
    warmup_steps,
)
from vshard.train.plan import TrainOptions
from vshard.train.schedule import Schedule, learning_rate_at, weight_decay_at
from vshard.train.steps import reads_flag

FACTS: dict[str, Any] = json.loads((GOLDEN / "optimize.json").read_text())
SCHEDULE_FREE = ["sgd_schedulefree", "adamw_schedulefree", "radam_schedulefree"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_groups_are_those_of_the_original(arch: str) -> None:
    with torch.device("meta"):
        model = create(arch)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.5)
    assert [[names[id(p)] for p in group["params"]] for group in groups] == FACTS["groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


def tiny_net() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.LayerNorm((3, 5, 4)), nn.Conv2d(3, 2, 1))
    state = model.state_dict()
    model.load_state_dict({k: torch.from_numpy(std_weights(k, tuple(v.shape))) for k, v in state.items()})
    return model


def backward(model: nn.Module) -> float:
    """Put the gradients of the golden runs in place; give the loss."""
    x, y = (torch.from_numpy(video(6, 2, 5, 4, seed)) for seed in (77, 78))
    loss = nn.functional.mse_loss(model(x), y)
    model.zero_grad()
    loss.backward()
    return loss.item()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss = backward(model)
    optimizer.step()
    return loss


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def assert_parameters(model: nn.Module, expected: dict[str, list[float]]) -> None:
    for name, parameter in model.named_parameters():
        found: Tensor = parameter.detach().flatten()
        torch.testing.assert_close(found, torch.tensor(expected[name]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("run", FACTS["runs"], ids=lambda run: " ".join([run["optimizer"], *run["options"]]))
def test_five_steps_give_the_golden_parameters(run: dict[str, Any]) -> None:
    asked = dict(zip(run["options"][::2], run["options"][1::2], strict=True))
    steps = warmup_steps(int(asked.get("--warmup-epoch", 0)), int(asked.get("--num-samples", 20000)), 4)
    assert steps == (run["warmup_steps"] or 0)
    model = tiny_net()
    optimizer = create_optimizer(
        run["optimizer"], model, 0.01, run["group_weight_decay"][0], warmup_steps=steps
    )
    set_training(optimizer, True)
    losses = [step(model, optimizer) for _ in range(run["steps"])]
    assert losses == pytest.approx(run["losses"], rel=1e-5)
    assert_parameters(model, run["after_train_mode"])
    set_training(optimizer, False)
    assert_parameters(model, run.get("after_eval_mode", run["after_train_mode"]))


def test_warm_up_steps_are_counted_as_in_the_original() -> None:
    assert warmup_steps(1, 20000, 4) == 625
    assert warmup_steps(2, 1000, 8) == 31
    assert warmup_steps(0, 20000, 4) == 0
    # Each of two processes takes half the samples: their steps are half as many.
    asked = TrainOptions(
        Path(), Path(), video=True, optimizer="adamw_schedulefree", warmup_epoch=1, backward_step=2
    )
    groups = [asked.optimizer_for(tiny_net(), ranks).param_groups[0] for ranks in (1, 2)]
    assert [group["warmup_steps"] for group in groups] == [1250, 625]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_reach_the_optimizer(name: str) -> None:
    for arguments, expected in (
        ({}, (1e-4, 1e-3, 0.9)),
        ({"learning_rate": 0.5, "weight_decay": 0.25, "adam_beta1": 0.7, "momentum": 0.6}, (0.5, 0.25, None)),
    ):
        optimizer = create_optimizer(name, tiny_net(), **arguments)
        decaying, fixed = optimizer.param_groups
        assert (decaying["lr"], decaying["weight_decay"], fixed["weight_decay"]) == (*expected[:2], 0.0)
        sgd = name.startswith("sgd")
        first = decaying["momentum"] if sgd else decaying["betas"][0]
        assert first == (expected[2] or (0.6 if sgd else 0.7))
        if not sgd:
            assert decaying["betas"][1] == (0.99 if name == "lion" else 0.999)
        assert not decaying.get("nesterov")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    rate = {"sgd": 0.3, "sgd_schedulefree": 3.0, "lion": 3e-3, "radam_schedulefree": 0.1}.get(name, 0.01)
    model = tiny_net()
    optimizer = create_optimizer(name, model, rate)
    set_training(optimizer, True)
    first = step(model, optimizer)
    for _ in range(40):
        step(model, optimizer)
    set_training(optimizer, False)
    assert backward(model) < 0.2 * first


def test_torch_optimizers_read_the_flag_that_leaves_a_step_out() -> None:
    for name in OPTIMIZERS:
        assert reads_flag(create_optimizer(name, tiny_net())) == (name in ("adam", "adamw", "sgd"))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_first_step_that_is_left_out_leaves_no_trace(name: str) -> None:
    one, other = tiny_net(), tiny_net()
    spoilt, plain = create_optimizer(name, one, 0.01), create_optimizer(name, other, 0.01)
    for p in one.parameters():
        p.grad = torch.full_like(p, torch.nan)
    # Memory that SGD's buffers might be taken from.
    dirt = [torch.full_like(p, 7.0) for _ in range(99) for p in one.parameters()]
    del dirt
    spoilt.found_inf = torch.tensor(1.0)
    spoilt.step()
    spoilt.found_inf = torch.tensor(0.0)
    for _ in range(3):
        assert step(one, spoilt) == step(other, plain)
    assert torch.equal(weights(one), weights(other))


def slow_lion(
    weight: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float
) -> Iterator[np.ndarray]:
    """Algorithm 2 of the paper, one number at a time."""
    weight, momentum = weight.astype(np.float64).copy(), np.zeros_like(weight, np.float64)
    for gradient in gradients:
        for i, g in np.ndenumerate(gradient):
            direction = np.sign(0.9 * momentum[i] + 0.1 * g)
            weight[i] -= rate * (direction + decay * weight[i])
            momentum[i] = 0.99 * momentum[i] + 0.01 * g
        yield weight.copy()


def test_lion_is_the_papers() -> None:
    rng = np.random.default_rng(3)
    model = nn.Sequential(nn.Linear(3, 4))
    (layer,) = model
    start = {name: p.detach().numpy().copy() for name, p in layer.named_parameters()}
    gradients = {
        name: [rng.normal(size=v.shape).astype(np.float32) for _ in range(25)] for name, v in start.items()
    }
    gradients["bias"][:3] = [np.zeros(4, np.float32)] * 3  # no gradient, no step
    lion = create_optimizer("lion", model, 0.02, 0.3)
    slow = {
        name: slow_lion(v, gradients[name], 0.02, 0.3 if name == "weight" else 0.0)
        for name, v in start.items()
    }
    for number in range(25):
        for name, p in layer.named_parameters():
            p.grad = torch.from_numpy(gradients[name][number])
        lion.step()
        for name, p in layer.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), next(slow[name]), rtol=0, atol=2e-6)
    layer.bias.grad = None
    kept = layer.bias.detach().clone()
    lion.step()
    assert torch.equal(layer.bias, kept)


@pytest.mark.parametrize(
    ("name", "warmup"), [*((name, 0) for name in SCHEDULE_FREE), *((name, 4) for name in SCHEDULE_FREE[:2])]
)
def test_what_a_schedule_free_one_leaves_is_the_average_of_its_points(name: str, warmup: int) -> None:
    model = tiny_net()
    optimizer = create_optimizer(name, model, 0.02, warmup_steps=warmup)
    group = optimizer.param_groups[0]
    points, shares = [], []
    for number in range(1, 9):
        set_training(optimizer, True)
        step(model, optimizer)
        if warmup:
            assert rate_of(optimizer) == pytest.approx(0.02 * min(number / warmup, 1))
        points.append(torch.cat([optimizer.state[p]["z"].flatten() for p in model.parameters()]).clone())
        shares.append(group["lr_max"] ** 2)
        stepping = weights(model)
        set_training(optimizer, False)
    share = torch.tensor(shares)
    assert share.sum() > 0
    average = (torch.stack(points) * share[:, None]).sum(0) / share.sum()
    torch.testing.assert_close(weights(model), average, rtol=0, atol=1e-5)
    assert (weights(model) - stepping).abs().max() > 1e-4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_anywhere_and_taken_up_equals_unbroken(name: str) -> None:
    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = create_optimizer(name, model, 0.01)
        set_training(optimizer, True)
        return optimizer

    whole = tiny_net()
    optimizer = made(whole)
    wanted = [(step(whole, optimizer), weights(whole))[1] for _ in range(7)]
    for stop in range(7):
        broken = tiny_net()
        optimizer = made(broken)
        for _ in range(stop):
            step(broken, optimizer)
        stepping = {name: p.detach().clone() for name, p in broken.named_parameters()}
        set_training(optimizer, False)
        state, result = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(broken.state_dict())
        broken = tiny_net()
        broken.load_state_dict(result)
        optimizer = create_optimizer(name, broken, 0.01)
        take_state(optimizer, state)
        take_stepping(broken, optimizer, stepping)
        for number in range(stop, 7):
            step(broken, optimizer)
            assert torch.equal(weights(broken), wanted[number])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_is_taken_up_with_the_options_given_now(name: str) -> None:
    model = tiny_net()
    optimizer = create_optimizer(name, model, 0.01, 0.1)
    set_training(optimizer, True)
    for _ in range(6):
        step(model, optimizer)
    set_training(optimizer, False)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:  # as saved on a device without fused steps
        group["fused"] = None
    again = create_optimizer(name, model, 0.003, 0.7)
    take_state(again, saved)
    assert [(g["lr"], g["weight_decay"]) for g in again.param_groups] == [(0.003, 0.7), (0.003, 0.0)]
    assert reads_flag(again) == reads_flag(optimizer)
    assert again.state_dict()["state"].keys() == saved["state"].keys()
    if is_schedule_free(again):
        for key in ("k", "weight_sum", "lr_max"):
            assert again.param_groups[1][key] == saved["param_groups"][1][key] != 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_a_step_would_stumble_over_is_refused(name: str) -> None:
    """Sizes that lie made a fused step read what is not its own."""
    model = tiny_net()
    optimizer = create_optimizer(name, model)
    set_training(optimizer, True)
    step(model, optimizer)
    set_training(optimizer, False)
    state = copy.deepcopy(optimizer.state_dict())
    take_state(create_optimizer(name, model), state)
    first = next(iter(state["state"]))
    sparse = torch.zeros_like(next(iter(model.parameters()))).to_sparse()
    for kept in state["state"][first]:
        for odd in (
            None,
            "x",
            torch.zeros(2),
            torch.zeros(0),
            sparse,
            torch.zeros(1).expand(1 << 20, 1 << 20),
        ):
            lying = copy.deepcopy(state)
            lying["state"][first][kept] = odd
            with pytest.raises(ValueError, match=f"{kept} of a weight of"):
                take_state(create_optimizer(name, model), lying)
        spoilt = copy.deepcopy(state)
        if isinstance(entry := spoilt["state"][first][kept], torch.Tensor):
            entry.fill_(float("nan"))
            with pytest.raises(ValueError, match="no such numbers"):
                take_state(create_optimizer(name, model), spoilt)
        lacking = copy.deepcopy(state)
        del lacking["state"][first][kept]
        if lacking["state"][first]:  # else as before the first step
            with pytest.raises(ValueError, match=f"no {kept} of a weight"):
                take_state(create_optimizer(name, model), lacking)
    for count in ("k", "weight_sum", "lr_max", "scheduled_lr"):
        if count not in optimizer.param_groups[0]:
            continue
        for odd_count in (None, "x", float("nan"), torch.zeros(2)):
            lying = copy.deepcopy(state)
            lying["param_groups"][1][count] = odd_count
            with pytest.raises(ValueError, match="odd counts"):
                take_state(create_optimizer(name, model), lying)
    if is_schedule_free(optimizer):
        state["param_groups"][0]["train_mode"] = True
        with pytest.raises(ValueError, match="in training mode"):
            take_state(create_optimizer(name, model), state)


def test_a_schedule_free_state_keeps_its_momentum() -> None:
    for name, option in (("sgd_schedulefree", "momentum"), ("adamw_schedulefree", "adam_beta1")):
        state = create_optimizer(name, tiny_net()).state_dict()
        other = create_optimizer(name, tiny_net(), **{option: 0.8})
        told = f"--{option.replace('_', '-')} 0.8: the run was begun with 0.9, give the same"
        with pytest.raises(OptionError, match=told):
            take_state(other, state)
    take_state(
        create_optimizer("adamw", tiny_net(), adam_beta1=0.8),
        create_optimizer("adamw", tiny_net()).state_dict(),
    )


def test_an_epoch_sets_both_groups_of_a_scheduled_optimizer_only() -> None:
    schedule = Schedule(warmup_epoch=1)
    for name in OPTIMIZERS:
        optimizer = create_optimizer(name, tiny_net())
        decaying, fixed = optimizer.param_groups
        assert is_schedule_free(optimizer) == (name in SCHEDULE_FREE)
        set_rates(optimizer, schedule, 40)
        if name in SCHEDULE_FREE:
            assert [(g["lr"], g["weight_decay"]) for g in (decaying, fixed)] == [(1e-4, 1e-3), (1e-4, 0.0)]
            continue
        assert rate_of(optimizer) == decaying["lr"] == fixed["lr"] == learning_rate_at(schedule, 40) < 1e-6
        assert (decaying["weight_decay"], fixed["weight_decay"]) == (weight_decay_at(schedule, 40), 0.0)
        set_rates(optimizer, schedule, 1, 0.5)
        assert rate_of(optimizer) == pytest.approx((1e-6 + 1e-4) / 2)


def test_refusals_name_what_is_allowed() -> None:
    with pytest.raises(
        OptionError, match="'rmsprop'; choose one of adam, adamw, sgd, lion, sgd_schedulefree"
    ):
        create_optimizer("rmsprop", tiny_net())
    with pytest.raises(OptionError, match="--momentum 0: sgd_schedulefree needs more"):
        create_optimizer("sgd_schedulefree", tiny_net(), momentum=0.0)
    for name in ("adamw_schedulefree", "radam_schedulefree"):
        with pytest.raises(OptionError, match=f"--adam-beta1 0: {name} needs more"):
            create_optimizer(name, tiny_net(), adam_beta1=0.0)
    with pytest.raises(OptionError, match="--warmup-epoch: radam_schedulefree warms up by itself"):
        create_optimizer("radam_schedulefree", tiny_net(), warmup_steps=3)
