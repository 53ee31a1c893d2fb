from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_inputs import GOLDEN, std_weights, video
from torch import Tensor, nn

from vshard.base.errors import OptionError
from vshard.train.network import LightVideoInpaint
from vshard.train.optimize import (
    OPTIMIZERS,
    CosineSchedule,
    adjusted_max_epoch,
    create_optimizer,
    is_schedule_free,
    learning_rate_at,
    parameter_groups,
    set_epoch,
    set_training,
    weight_decay_at,
)

FACTS: dict[str, Any] = json.loads((GOLDEN / "optimize.json").read_text())
SCHEDULES = {"default": CosineSchedule(), "odd_epochs": CosineSchedule(max_epoch=53, cycles=4)}


def test_groups_are_those_of_the_original() -> None:
    model = LightVideoInpaint(base_dim=16)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.5)
    assert [[names[id(p)] for p in group["params"]] for group in groups] == FACTS["groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_of_each_epoch_are_golden(name: str) -> None:
    schedule, golden = SCHEDULES[name], FACTS["schedules"][name]
    assert adjusted_max_epoch(schedule) == golden["adjusted_max_epoch"] == len(golden["rows"])
    for epoch, learning_rate, weight_decay in golden["rows"]:
        assert learning_rate_at(schedule, epoch) == pytest.approx(learning_rate, abs=1e-12)
        assert weight_decay_at(schedule, epoch) == pytest.approx(weight_decay, rel=1e-9)


@pytest.mark.parametrize("cycles", [1, 2, 5, 7])
def test_any_number_of_epochs_starts_high_and_ends_low(cycles: int) -> None:
    for max_epoch in range(1, 120):
        schedule = CosineSchedule(max_epoch=max_epoch, cycles=cycles)
        epochs = adjusted_max_epoch(schedule)
        assert 1 <= epochs <= max_epoch
        rates = [learning_rate_at(schedule, epoch) for epoch in range(1, epochs + 1)]
        assert rates[0] == max(rates) == 1e-4
        assert min(rates) > 1e-8
        assert max_epoch == 1 or rates[-1] <= 0.76e-4
    for max_epoch in (1, 2, 3, 5):
        assert adjusted_max_epoch(CosineSchedule(max_epoch=max_epoch)) == max_epoch


def tiny_net() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.LayerNorm((3, 5, 4)), nn.Conv2d(3, 2, 1))
    state = model.state_dict()
    model.load_state_dict({k: torch.from_numpy(std_weights(k, tuple(v.shape))) for k, v in state.items()})
    return model


def assert_parameters(model: nn.Module, expected: dict[str, list[float]]) -> None:
    for name, parameter in model.named_parameters():
        found: Tensor = parameter.detach().flatten()
        torch.testing.assert_close(found, torch.tensor(expected[name]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "run", FACTS["runs"], ids=lambda run: f"{run['optimizer']}-{run['group_weight_decay'][0]}"
)
def test_five_steps_give_the_golden_parameters(run: dict[str, Any]) -> None:
    model = tiny_net()
    optimizer = create_optimizer(run["optimizer"], model, 0.01, run["group_weight_decay"][0])
    x, y = (torch.from_numpy(video(6, 2, 5, 4, seed)) for seed in (77, 78))
    set_training(optimizer, True)
    losses = []
    for _ in range(run["steps"]):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(run["losses"], rel=1e-5)
    assert_parameters(model, run["after_train_mode"])
    set_training(optimizer, False)
    assert_parameters(model, run.get("after_eval_mode", run["after_train_mode"]))


def test_defaults_are_those_of_the_original() -> None:
    for name in OPTIMIZERS:
        group = create_optimizer(name, tiny_net()).param_groups[0]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-3)


def test_an_epoch_sets_both_groups_of_a_scheduled_optimizer_only() -> None:
    schedule = CosineSchedule()
    optimizer = create_optimizer("adamw", tiny_net())
    set_epoch(optimizer, schedule, 40)
    decaying, fixed = optimizer.param_groups
    assert decaying["lr"] == fixed["lr"] == learning_rate_at(schedule, 40) < 1e-6
    assert (decaying["weight_decay"], fixed["weight_decay"]) == (weight_decay_at(schedule, 40), 0.0)

    free = create_optimizer("adamw_schedulefree", tiny_net())
    set_epoch(free, schedule, 40)
    assert (is_schedule_free(free), is_schedule_free(optimizer)) == (True, False)
    assert [(g["lr"], g["weight_decay"]) for g in free.param_groups] == [(1e-4, 1e-3), (1e-4, 0.0)]


def test_refusals_name_what_is_allowed() -> None:
    with pytest.raises(OptionError, match="'sgd'; choose one of adamw, adamw_schedulefree"):
        create_optimizer("sgd", tiny_net())
    with pytest.raises(OptionError, match="epochs is 0; it must be 1 or more"):
        CosineSchedule(max_epoch=0)
    with pytest.raises(OptionError, match="cycles is 0; it must be 1 or more"):
        CosineSchedule(cycles=0)
