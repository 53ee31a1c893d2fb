"""Optimizers by their names in the original (facts, section 10).

In: a network and the options of the command line. Out: an optimizer that :mod:`.steps` drives. The rates of each epoch
come from :mod:`.schedule`; schedule-free optimizers (Defazio et al., "The Road Less Scheduled", 2024) take none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import OptionError
from ..base.tensors import copy_numbers, is_numbers
from .lion import Lion
from .schedule import Schedule, learning_rate_at, weight_decay_at

BETA2, LION_BETA2 = 0.999, 0.99  # the original's; Lion's paper's
# The original counts the warm-up's steps with its batch size for still images, for video too.
WARMUP_BATCH_SIZE = 8
# Devices on which torch's optimizers change all weights in one pass, and read there whether to leave a step out.
_FUSED_DEVICES = ("cpu", "cuda")
# Entries of a parameter group that say how far it has come; all others are options.
_COUNTS = ("k", "weight_sum", "lr_max", "scheduled_lr")
_POSITION = ("params", *_COUNTS, "train_mode")
# What optimizers keep of a weight in its shape, but for this.
_STEPS = "step"

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class _Options:
    """``adam_beta1``: of the Adam and Lion families. ``momentum``: of SGD. ``warmup_steps``: of schedule-free ones."""

    learning_rate: float
    adam_beta1: float
    momentum: float
    warmup_steps: int

    @property
    def betas(self) -> tuple[float, float]:
        return self.adam_beta1, BETA2


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Split the parameters in two groups for an optimizer, each in the order of the sorted names.

    The first decays: weights of convolutions and linear layers. The second never does: biases, norms and
    parameters that belong to no layer (``mask_bias``). Order and split are those of the original, so that
    an optimizer's state means the same to both.
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


def _fused(groups: Groups) -> bool:
    return all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])


def _adam(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=options.learning_rate, betas=options.betas, fused=_fused(groups))


def _adamw(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=_fused(groups))


def _sgd(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        groups, lr=options.learning_rate, momentum=options.momentum, fused=_fused(groups)
    )
    # Fused steps start from memory that was never written, when the first one is left out (torch 2.14).
    if options.momentum:
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def _lion(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    return Lion(groups, options.learning_rate, (options.adam_beta1, LION_BETA2))


def _sgd_schedulefree(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    from schedulefree import SGDScheduleFree

    if not options.momentum:
        raise OptionError("--momentum 0: sgd_schedulefree needs more, up to 1; or take --optimizer sgd")
    return SGDScheduleFree(
        groups, lr=options.learning_rate, momentum=options.momentum, warmup_steps=options.warmup_steps
    )


def _adamw_schedulefree(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    if not options.adam_beta1:
        raise OptionError("--adam-beta1 0: adamw_schedulefree needs more, up to 1; or take --optimizer adamw")
    return AdamWScheduleFree(
        groups, lr=options.learning_rate, betas=options.betas, warmup_steps=options.warmup_steps
    )


def _radam_schedulefree(groups: Groups, options: _Options) -> torch.optim.Optimizer:
    from schedulefree import RAdamScheduleFree

    if not options.adam_beta1:
        raise OptionError("--adam-beta1 0: radam_schedulefree needs more, up to 1; or take --optimizer adam")
    if options.warmup_steps:
        raise OptionError("--warmup-epoch: radam_schedulefree warms up by itself; leave it out")
    return RAdamScheduleFree(groups, lr=options.learning_rate, betas=options.betas)


OPTIMIZERS: dict[str, Callable[[Groups, _Options], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "lion": _lion,
    "sgd_schedulefree": _sgd_schedulefree,
    "adamw_schedulefree": _adamw_schedulefree,
    "radam_schedulefree": _radam_schedulefree,
}


def create_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-3,
    *,
    adam_beta1: float = 0.9,
    momentum: float = 0.9,
    warmup_steps: int = 0,
) -> torch.optim.Optimizer:
    """Make the optimizer called ``name``, a key of :data:`OPTIMIZERS`, for the parameters of ``model``.

    ``sgd`` and ``adam`` add the decay to the gradient, the others take it off the weights. Torch's own are fused on
    the CPU and on CUDA.

    Args:
        name: which.
        model: the network, on its device.
        learning_rate: the highest one.
        weight_decay: of the first of the :func:`parameter_groups`.
        adam_beta1: what stays of the mean gradient, in [0, 1): the Adam family and Lion.
        momentum: the same of ``sgd`` (not Nesterov's) and ``sgd_schedulefree``.
        warmup_steps: steps over which a schedule-free optimizer raises its rate.

    Raises:
        OptionError: there is no such optimizer, or an option does not fit it.
    """
    if name not in OPTIMIZERS:
        raise OptionError(f"there is no optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    options = _Options(learning_rate, adam_beta1, momentum, warmup_steps)
    return OPTIMIZERS[name](parameter_groups(model, weight_decay), options)


def warmup_steps(warmup_epoch: int, num_samples: int, backward_step: int) -> int:
    """Give how many steps a schedule-free optimizer warms up for, by the original's count.

    For video that is half as long again as ``warmup_epoch`` epochs: it counts 8 frames a sample, where there are 12.
    """
    return warmup_epoch * num_samples // (WARMUP_BATCH_SIZE * backward_step)


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


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, epoch: int, trained: float = 0.0) -> None:
    """Give the optimizer the rates of its next step; a schedule-free one is left as it is.

    ``epoch`` counts from 1; ``trained``: the share of it that is behind, in [0, 1].
    """
    if is_schedule_free(optimizer):
        return
    decaying, _ = optimizer.param_groups
    decaying["weight_decay"] = weight_decay_at(schedule, epoch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(schedule, epoch, trained)


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """Give the learning rate of the last step, or of the next one where the schedule is not the optimizer's own."""
    group = optimizer.param_groups[0]
    return float(group.get("scheduled_lr", group["lr"]))


def take_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from the ``state_dict`` of an optimizer of the same kind, with the options this one was made with.

    So rates and decay that are given anew count, and a state from a GPU is fused on the CPU and the other way round.

    Raises:
        OptionError: the momentum is another, from which a schedule-free optimizer cannot find its averages again.
        AttributeError, KeyError, TypeError, ValueError: ``state`` does not fit.
    """
    groups = []
    _check_kept(optimizer, state)
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name, option in (("betas", "--adam-beta1"), ("momentum", "--momentum")):
            if is_schedule_free(optimizer) and name in own and own[name] != saved[name]:
                asked, was = (value[0] if name == "betas" else value for value in (own[name], saved[name]))
                raise OptionError(f"{option} {asked}: the run was begun with {was}, give the same")
        groups.append({**own, **{key: saved[key] for key in _POSITION if key in own}})
    optimizer.load_state_dict({**state, "param_groups": groups})


def take_stepping(model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor]) -> None:
    """Put back the weights that a schedule-free optimizer steps from: going there and back is not exact.

    Raises:
        KeyError, TypeError, ValueError: ``weights`` are not those of ``model``.
    """
    set_training(optimizer, True)
    copy_numbers(dict(model.named_parameters()), weights)


def _check_kept(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Refuse what a step would stumble over, or read beyond: fused ones trust the sizes.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: ``state`` is none of such an optimizer.
    """
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        counts = [saved[name] for name in _COUNTS if name in own]
        if not all(type(count) in (int, float) and math.isfinite(count) for count in counts):
            raise ValueError(f"odd counts {counts}")
        if saved.get("train_mode"):
            raise ValueError("the averages of a schedule-free optimizer in training mode")
        wanted = _kept_by(optimizer, own)
        for parameter, number in zip(own["params"], saved["params"], strict=True):
            kept = state["state"].get(number)
            if not kept:  # before the first step
                continue
            if missing := wanted - kept.keys():
                raise ValueError(f"no {', '.join(sorted(missing))} of a weight")
            for name, value in kept.items():
                shape = () if name == _STEPS else parameter.shape
                if not is_numbers(value, shape):
                    raise ValueError(f"{name} of a weight of {tuple(parameter.shape)} is no such numbers")


def _kept_by(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> set[str]:
    """Name what such an optimizer keeps of each weight: what a step of one weight leaves."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    options = {name: value for name, value in group.items() if name not in _POSITION}
    twin = type(optimizer)([{**options, "params": [weight]}])  # type: ignore[call-arg]
    set_training(twin, True)
    twin.step()
    return set(twin.state[weight])
