"""Optimizers and the learning rate of each epoch (facts of the original, section 10).

The schedule is a pure function of the epoch instead of an object with a state: going on from a checkpoint
needs nothing but the epoch's number, and gives the same rates as a run that never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.errors import OptionError

_BETAS = (0.9, 0.999)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters in two groups for an optimizer, each in the order of the sorted names.

    The first decays: weights of convolutions and linear layers. The second never does: biases, norms and
    parameters that belong to no layer (``mask_bias``). Order and split are those of the original, so that
    optimizer states pass both ways.
    """
    decaying = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))
    }
    parameters = sorted(model.named_parameters())
    return [
        {"params": [p for name, p in parameters if name in decaying], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters if name not in decaying], "weight_decay": 0.0},
    ]


def _adamw(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS)


def _adamw_schedulefree(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, lr=learning_rate, betas=_BETAS)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_schedulefree": _adamw_schedulefree,
}


def create_optimizer(
    name: str, model: nn.Module, learning_rate: float = 1e-4, weight_decay: float = 1e-3
) -> torch.optim.Optimizer:
    """Make the optimizer called ``name``, a key of :data:`OPTIMIZERS`, for the parameters of ``model``.

    Raises:
        OptionError: there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise OptionError(f"there is no optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](parameter_groups(model, weight_decay), learning_rate)


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimizer keeps its own averages (Defazio et al., 2024) and so takes no schedule."""
    return "train_mode" in optimizer.param_groups[0]


def set_training(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Before steps: True. Before evaluating or saving: False. Only schedule-free optimizers need it.

    They swap the weights of the model between the point that gradients are taken at and the average that is
    the result.
    """
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch:
        switch()


@dataclass(frozen=True)
class CosineSchedule:
    """Cosine warm restarts of the learning rate (SGDR, Loshchilov & Hutter, 2017), weight decay against it.

    ``max_epoch`` is what the user asks for; :func:`adjusted_max_epoch` says how many epochs are run.
    """

    max_epoch: int = 200
    cycles: int = 5
    learning_rate: float = 1e-4
    learning_rate_min: float = 1e-8
    weight_decay: float = 1e-3
    weight_decay_end: float = 1e-2

    def __post_init__(self) -> None:
        if self.max_epoch < 1:
            raise OptionError(f"the number of epochs is {self.max_epoch}; it must be 1 or more")
        if self.cycles < 1:
            raise OptionError(f"the number of cycles is {self.cycles}; it must be 1 or more")


def _restarts(schedule: CosineSchedule) -> bool:
    """Tell whether there are three epochs or more for each cycle; otherwise all epochs are one cycle.

    With one or two, the original's cut would end the training at its highest rate, or leave no epoch at all.
    """
    return schedule.max_epoch >= 3 * schedule.cycles


def adjusted_max_epoch(schedule: CosineSchedule) -> int:
    """Give how many epochs are run: cut before the last restart, so that training ends at a low rate.

    The original's rule, ``max_epoch mod cycles + 1`` fewer: 200 gives 199.
    """
    cut = schedule.max_epoch % schedule.cycles + 1 if _restarts(schedule) else 0
    return schedule.max_epoch - cut


def learning_rate_at(schedule: CosineSchedule, epoch: int) -> float:
    """Give the learning rate in force during ``epoch``, counted from 1."""
    period = schedule.max_epoch // schedule.cycles if _restarts(schedule) else schedule.max_epoch
    swing = schedule.learning_rate - schedule.learning_rate_min
    return schedule.learning_rate_min + swing * (1 + math.cos(math.pi * ((epoch - 1) % period) / period)) / 2


def weight_decay_at(schedule: CosineSchedule, epoch: int) -> float:
    """Give the weight decay in force during ``epoch``: highest where the learning rate is lowest.

    In the first epoch it lies above its minimum by ``learning_rate_min / learning_rate`` of the range.
    """
    spent = 1 - (learning_rate_at(schedule, epoch) - schedule.learning_rate_min) / schedule.learning_rate
    return schedule.weight_decay + (schedule.weight_decay_end - schedule.weight_decay) * spent


def set_epoch(optimizer: torch.optim.Optimizer, schedule: CosineSchedule, epoch: int) -> None:
    """Give the optimizer the rates of ``epoch``, counted from 1; a schedule-free one is left as it is."""
    if is_schedule_free(optimizer):
        return
    decaying, _ = optimizer.param_groups
    decaying["weight_decay"] = weight_decay_at(schedule, epoch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(schedule, epoch)
