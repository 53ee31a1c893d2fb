"""An exponential moving average of the weights, which is what gets evaluated and kept as the best model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import CheckpointError
from ..base.tensors import copy_numbers


class Average:
    """The average of a model's parameters: every ``step`` steps, ``decay`` of it stays and the rest is the model's."""

    def __init__(self, model: nn.Module, decay: float, step: int) -> None:
        """Begin with the weights that ``model`` has."""
        self._model, self._decay, self._step = model, decay, step
        self._steps = 0
        self._weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take a step of the optimizer into account."""
        self._steps += 1
        if self._steps % self._step == 0:
            own = [parameter.detach() for parameter in self._model.parameters()]
            torch._foreach_lerp_(list(self._weights.values()), own, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average's weights for the length of a block."""
        own = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self._give(self._weights)
        try:
            yield
        finally:
            self._give(own)

    def state(self) -> dict[str, Any]:
        """Give it as plain values and tensors, for a checkpoint."""
        return {"steps": self._steps, "weights": self._weights}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it out of a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: it is not that of such a model.
        """
        steps = state["steps"]
        if type(steps) is not int or steps < 0:
            raise ValueError(f"an average of {steps!r} steps")
        copy_numbers(self._weights, state["weights"])
        self._steps = steps

    @torch.no_grad()
    def _give(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(weights[name])


def take_average(
    average: Average | None, state: dict[str, Any] | None, checkpoint: Path, advice: str
) -> None:
    """Let ``average`` go on from the ``state`` of a checkpoint; where one has none, the other must have none.

    Raises:
        CheckpointError: only one of them has; ``advice`` says what else to do.
        KeyError, TypeError, ValueError: as :meth:`Average.load_state`.
    """
    if state is None and average is not None:
        raise CheckpointError(f"{checkpoint}: was trained without --ema-model; leave it out, or {advice}")
    if state is not None and average is None:
        raise CheckpointError(f"{checkpoint}: was trained with --ema-model; give it, or {advice}")
    if average is not None and state is not None:
        average.load_state(state)
