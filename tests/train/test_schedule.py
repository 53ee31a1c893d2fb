from __future__ import annotations

import json
from typing import Any

import pytest
from golden_inputs import GOLDEN

from vshard.base.errors import OptionError
from vshard.train.schedule import (
    SCHEDULERS,
    Schedule,
    adjusted_max_epoch,
    learning_rate_at,
    weight_decay_at,
)

GOLDEN_SCHEDULES: dict[str, Any] = json.loads((GOLDEN / "optimize.json").read_text())["schedules"]
SCHEDULES = {
    "default": Schedule(),
    "odd_epochs": Schedule(max_epoch=53, learning_rate_cycles=4),
    "cosine": Schedule("cosine", max_epoch=20, learning_rate_cycles=2, learning_rate=3e-4),
}


@pytest.mark.parametrize("name", GOLDEN_SCHEDULES)
def test_rates_of_each_epoch_are_golden(name: str) -> None:
    schedule, golden = SCHEDULES[name], GOLDEN_SCHEDULES[name]
    assert adjusted_max_epoch(schedule) == golden["adjusted_max_epoch"] == len(golden["rows"])
    for epoch, learning_rate, weight_decay in golden["rows"]:
        assert learning_rate_at(schedule, epoch) == pytest.approx(learning_rate, abs=1e-12)
        assert weight_decay_at(schedule, epoch) == pytest.approx(weight_decay, rel=1e-9)


@pytest.mark.parametrize("cycles", [1, 2, 5, 7])
def test_any_number_of_epochs_starts_high_and_ends_low(cycles: int) -> None:
    for max_epoch in range(1, 120):
        schedule = Schedule(max_epoch=max_epoch, learning_rate_cycles=cycles)
        epochs = adjusted_max_epoch(schedule)
        assert 1 <= epochs <= max_epoch
        rates = [learning_rate_at(schedule, epoch) for epoch in range(1, epochs + 1)]
        assert rates[0] == max(rates) == 1e-4
        assert min(rates) > 1e-8
        assert max_epoch == 1 or rates[-1] <= 0.76e-4
    for max_epoch in (1, 2, 3, 5):
        assert adjusted_max_epoch(Schedule(max_epoch=max_epoch)) == max_epoch


def test_the_lowest_rate_and_the_highest_decay_are_those_asked_for() -> None:
    schedule = Schedule(max_epoch=1000, learning_rate_cycles=1, learning_rate_cosine_min=2e-5)
    last = adjusted_max_epoch(schedule)
    assert last == 999
    assert learning_rate_at(schedule, last) == pytest.approx(2e-5, rel=1e-3)
    for end, reached in ((None, 0.01), (0.5, 0.5), (1e-4, 1e-4)):
        falling = Schedule(max_epoch=1000, learning_rate_cycles=1, weight_decay_end=end)
        assert weight_decay_at(falling, 999) == pytest.approx(reached, rel=1e-2)
    large = Schedule(weight_decay=0.5)
    assert {weight_decay_at(large, epoch) for epoch in range(1, 200)} == {0.5}


def test_steps_multiply_the_rate_every_so_often_or_after_the_epochs_named() -> None:
    every = Schedule("step", max_epoch=7, learning_rate=8.0, learning_rate_decay=0.5)
    rates = [learning_rate_at(every, epoch) for epoch in range(1, 5)]
    assert rates == [8.0, 4.0, 2.0, 1.0]
    third = Schedule("step", learning_rate=8.0, learning_rate_decay=0.5, learning_rate_decay_step=(3,))
    assert [learning_rate_at(third, epoch) for epoch in (1, 3, 4, 6, 7)] == [8.0, 8.0, 4.0, 4.0, 2.0]
    named = Schedule("step", learning_rate=8.0, learning_rate_decay=0.5, learning_rate_decay_step=(2, 5))
    assert [learning_rate_at(named, epoch) for epoch in (2, 3, 5, 6, 99)] == [8.0, 4.0, 4.0, 2.0, 2.0]
    assert adjusted_max_epoch(every) == 7
    assert {weight_decay_at(every, epoch) for epoch in range(1, 8)} == {1e-3}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_warm_up_climbs_evenly_to_the_schedule_and_leaves_it_there(scheduler: str) -> None:
    cold = Schedule(scheduler, max_epoch=20, learning_rate=1e-3)
    warm = Schedule(scheduler, max_epoch=20, learning_rate=1e-3, warmup_epoch=2, warmup_learning_rate=1e-5)
    assert learning_rate_at(warm, 1) == 1e-5
    second = learning_rate_at(cold, 2)
    climbing = [learning_rate_at(warm, 2, trained) - 1e-5 for trained in (0.0, 0.5, 1.0)]
    assert climbing == pytest.approx([(second - 1e-5) * part for part in (0.5, 0.75, 1.0)])
    for epoch in range(3, 20):
        assert learning_rate_at(warm, epoch, 0.3) == learning_rate_at(cold, epoch)
    assert all(weight_decay_at(warm, epoch) == weight_decay_at(cold, epoch) for epoch in range(1, 20))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scheduler": "linear"}, "--scheduler linear: there are cosine_wd, cosine, step"),
        ({"max_epoch": 0}, "--max-epoch 0: allowed is 1 or more"),
        ({"learning_rate_cycles": 0}, "--learning-rate-cycles 0: allowed is 1 or more"),
        ({"warmup_epoch": -1}, "--warmup-epoch -1: allowed is 0 or more"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: allowed is a number above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: allowed is a number above 0"),
        (
            {"learning_rate": 1e-9},
            "--learning-rate-cosine-min 1e-08: allowed is 0 to --learning-rate, 1e-09",
        ),
        (
            {"warmup_epoch": 1, "warmup_learning_rate": 0.1},
            "--warmup-learning-rate 0.1: allowed is 0 to --learning-rate",
        ),
        ({"learning_rate_decay": 1.5}, "--learning-rate-decay 1.5: allowed is a number above 0, at most 1"),
        ({"learning_rate_decay_step": ()}, "--learning-rate-decay-step : allowed are rising numbers from 1"),
        ({"learning_rate_decay_step": (0,)}, "--learning-rate-decay-step 0: allowed are rising"),
        ({"learning_rate_decay_step": (5, 5)}, "--learning-rate-decay-step 5,5: allowed are rising"),
    ],
)
def test_refusals_name_the_option_and_what_is_allowed(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as refused:
        Schedule(**options)
    assert told in str(refused.value)


def test_rates_that_are_not_used_are_not_refused() -> None:
    Schedule("step", learning_rate=1e-9)
    Schedule(learning_rate=1e-7, warmup_learning_rate=1.0)
