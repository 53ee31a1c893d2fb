"""The learning rate and weight decay of each epoch (facts of the original, section 10).

In: the options of a schedule, an epoch, and how much of it is trained. Out: numbers. A pure function instead of an
object with a state: going on from a checkpoint needs nothing but the position, and gives the same rates as a run that
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ..base.errors import OptionError

WEIGHT_DECAY_END = 0.01


@dataclass(frozen=True)
class Schedule:
    """How the rates go over the epochs; names and defaults are those of the command line.

    ``scheduler``: a key of :data:`SCHEDULERS`. ``max_epoch``: what the user asks for; :func:`adjusted_max_epoch` says
    how many epochs are run. ``weight_decay_end``: where "cosine_wd" raises ``weight_decay`` to; None: 0.01, or
    ``weight_decay`` if that is more. ``learning_rate_decay_step``: see "step". ``warmup_epoch``: the epochs during
    which the rate climbs from ``warmup_learning_rate`` to that of the schedule, a little with every step.
    """

    scheduler: str = "cosine_wd"
    max_epoch: int = 200
    learning_rate: float = 1e-4
    learning_rate_cycles: int = 5
    learning_rate_cosine_min: float = 1e-8
    learning_rate_decay: float = 0.99
    learning_rate_decay_step: tuple[int, ...] = (1,)
    weight_decay: float = 1e-3
    weight_decay_end: float | None = None
    warmup_epoch: int = 0
    warmup_learning_rate: float = 1e-6

    def __post_init__(self) -> None:
        """Check what a schedule cannot be made of.

        Raises:
            OptionError: the first option that is out of its range.
        """
        if self.scheduler not in SCHEDULERS:
            raise OptionError(f"--scheduler {self.scheduler}: there are {', '.join(SCHEDULERS)}")
        for option, count, least in (
            ("--max-epoch", self.max_epoch, 1),
            ("--learning-rate-cycles", self.learning_rate_cycles, 1),
            ("--warmup-epoch", self.warmup_epoch, 0),
        ):
            if count < least:
                raise OptionError(f"{option} {count}: allowed is {least} or more")
        if not 0 < self.learning_rate < math.inf:
            raise OptionError(f"--learning-rate {self.learning_rate}: allowed is a number above 0")
        for option, rate, used in (
            ("--learning-rate-cosine-min", self.learning_rate_cosine_min, self.scheduler != "step"),
            ("--warmup-learning-rate", self.warmup_learning_rate, self.warmup_epoch > 0),
        ):
            if used and not 0 <= rate <= self.learning_rate:
                raise OptionError(f"{option} {rate}: allowed is 0 to --learning-rate, {self.learning_rate}")
        if not 0 < self.learning_rate_decay <= 1:
            raise OptionError(
                f"--learning-rate-decay {self.learning_rate_decay}: allowed is a number above 0, at most 1"
            )
        steps = self.learning_rate_decay_step
        if not steps or steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
            told = ",".join(map(str, steps))
            raise OptionError(f"--learning-rate-decay-step {told}: allowed are rising numbers from 1")


def _restarts(schedule: Schedule) -> bool:
    """Tell whether there are three epochs or more for each cycle; otherwise all epochs are one cycle.

    With one or two, the original's cut would end the training at its highest rate, or leave no epoch at all.
    """
    return schedule.max_epoch >= 3 * schedule.learning_rate_cycles


def _cosine(schedule: Schedule, epoch: int) -> float:
    """Fall along half a cosine and start again, ``learning_rate_cycles`` times (SGDR, Loshchilov & Hutter, 2017)."""
    cycles = schedule.learning_rate_cycles if _restarts(schedule) else 1
    period = schedule.max_epoch // cycles
    swing = schedule.learning_rate - schedule.learning_rate_cosine_min
    fallen = (1 + math.cos(math.pi * ((epoch - 1) % period) / period)) / 2
    return schedule.learning_rate_cosine_min + swing * fallen


def _step(schedule: Schedule, epoch: int) -> float:
    """Multiply by ``learning_rate_decay``: every so many epochs, or after each of several epochs that are named."""
    first, *more = schedule.learning_rate_decay_step
    done = epoch - 1
    times = sum(end <= done for end in (first, *more)) if more else done // first
    return schedule.learning_rate * schedule.learning_rate_decay**times


# "cosine_wd" raises the weight decay while the rate falls.
SCHEDULERS: dict[str, Callable[[Schedule, int], float]] = {
    "cosine_wd": _cosine,
    "cosine": _cosine,
    "step": _step,
}


def adjusted_max_epoch(schedule: Schedule) -> int:
    """Give how many epochs are run: with restarts, cut before the last one, so that training ends at a low rate.

    The original's rule, ``max_epoch mod cycles + 1`` fewer: 200 gives 199.
    """
    if schedule.scheduler == "step" or not _restarts(schedule):
        return schedule.max_epoch
    return schedule.max_epoch - (schedule.max_epoch % schedule.learning_rate_cycles + 1)


def learning_rate_at(schedule: Schedule, epoch: int, trained: float = 0.0) -> float:
    """Give the learning rate of the next step.

    Args:
        schedule: how it goes.
        epoch: counted from 1.
        trained: the share of the epoch that is behind, in [0, 1]; counts during the warm-up only.
    """
    rate = SCHEDULERS[schedule.scheduler](schedule, epoch)
    done = epoch - 1 + trained
    if done >= schedule.warmup_epoch:
        return rate
    start = schedule.warmup_learning_rate
    return start + (rate - start) * done / schedule.warmup_epoch


def weight_decay_at(schedule: Schedule, epoch: int) -> float:
    """Give the weight decay in force during ``epoch``: with "cosine_wd", highest where the learning rate is lowest.

    In the first epoch it lies above its minimum by ``learning_rate_cosine_min / learning_rate`` of the range.
    """
    if schedule.scheduler != "cosine_wd":
        return schedule.weight_decay
    end = schedule.weight_decay_end
    if end is None:
        end = max(WEIGHT_DECAY_END, schedule.weight_decay)
    above = _cosine(schedule, epoch) - schedule.learning_rate_cosine_min
    return schedule.weight_decay + (end - schedule.weight_decay) * (1 - above / schedule.learning_rate)
