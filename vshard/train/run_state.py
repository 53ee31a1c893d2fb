"""What of a run is in its checkpoints: all that a resumed run needs to make the steps of an unbroken one.

Out: our entry of a checkpoint, plain values and tensors. In: the same, and iw3's entries beside it (optimizer and
scaler), put back in place. The weights themselves are there from the start (``weights.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import CheckpointError
from ..stream.split import Split
from ..stream.training import Gather, TrainingStream
from .adversarial import take_adversary
from .checkpoint import ADVERSARY, AVERAGE, EVALUATED, LOSS, OURS, PROGRESS, STEPPING, STREAM
from .ema import Average, take_average
from .losses import Loss
from .optimize import take_state, take_stepping
from .plan import TrainOptions
from .progress import Progress
from .steps import Steps

_WEIGHTS_ONLY = "take its weights only with --resume --reset-state"


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change from step to step; :class:`Progress` is given and taken beside them."""

    options: TrainOptions
    steps: Steps
    stream: TrainingStream
    average: Average | None
    loss: Loss
    eval_split: Split

    def entry(self, progress: Progress, gather: Gather) -> dict[str, Any]:
        """Give our entry of a checkpoint, but for the weights that a schedule-free optimizer steps from.

        On several ranks all have to call it, with a ``gather``; one of them may save it for all.
        """
        adversary = self.steps.adversary
        return {
            PROGRESS: progress.plain(),
            STREAM: self.stream.state_dict(gather),
            AVERAGE: self.average.state() if self.average is not None else None,
            LOSS: {"name": self.loss.name, "network": self.loss.source},
            EVALUATED: _named(self.eval_split),
            ADVERSARY: adversary.state() if adversary is not None else None,
        }

    def take(
        self, checkpoint: Path, content: dict[str, Any], best_model: Path, warn: Callable[[str], None]
    ) -> Progress:
        """Go on from the ``content`` of a checkpoint; give how far its run had come.

        ``best_model``: the file that its best loss is of. ``warn`` is told when that loss counts no more.

        Raises:
            CheckpointError: it is of a run with other options, or holds no position to go on from.
        """
        try:
            progress, stream = self._take(checkpoint, content, best_model, warn)
        except CheckpointError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint}: holds no position to go on from ({error}); {_WEIGHTS_ONLY}"
            ) from error
        try:
            self.stream.load_state_dict(stream)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}; {_WEIGHTS_ONLY}") from error
        if not self.stream.position:  # the data may have changed
            return Progress(progress.epoch, best_loss=progress.best_loss)
        return progress

    def _take(
        self, checkpoint: Path, content: dict[str, Any], best_model: Path, warn: Callable[[str], None]
    ) -> tuple[Progress, dict[str, Any]]:
        """Take all but the stream's position, which is given with the progress."""
        stored, steps = content[OURS], self.steps
        before = content["train_kwargs"]["optimizer"]
        if before != self.options.optimizer:
            raise CheckpointError(
                f"{checkpoint}: was trained with --optimizer {before}; give the same, or --reset-state to take the "
                "weights only"
            )
        take_state(steps.optimizer, content["optimizer_state_dict"][0])
        progress = Progress.from_plain(stored[PROGRESS])
        if stored[STREAM]["epoch"] != progress.epoch:
            raise ValueError(
                f"samples of epoch {stored[STREAM]['epoch']}, progress of epoch {progress.epoch}"
            )
        if stored[STEPPING]:
            take_stepping(steps.model, steps.optimizer, stored[STEPPING])
        scaling = content["grad_scaler_state_dict"][0]
        if steps.scaler.is_enabled() and scaling:
            steps.scaler.load_state_dict(scaling)
        take_average(self.average, stored[AVERAGE], checkpoint, _WEIGHTS_ONLY)
        take_adversary(steps.adversary, stored.get(ADVERSARY), checkpoint, _WEIGHTS_ONLY)
        changed = self._unlike_before(stored, best_model)
        if changed is None:
            return progress, stored[STREAM]
        if np.isfinite(progress.best_loss):
            warn(f"{changed}: what was the best model so far counts no more")
        return Progress(progress.epoch, progress.not_finite), stored[STREAM]

    def _unlike_before(self, stored: dict[str, Any], best_model: Path) -> str | None:
        """Say why the best loss of a checkpoint's ``stored`` entry is no measure for this run's, None if it is."""
        before = stored[LOSS]["name"]
        if before != self.loss.name:
            return f"--loss is {self.loss.name} now and was {before}"
        records = _named(self.eval_split)
        if stored.get(EVALUATED, records) != records:
            return f"{self.eval_split.root}: its records are others now"
        if not best_model.exists():
            return f"{best_model} is not there"
        return None


def _named(split: Split) -> str:
    """Give a hash of which records a split has."""
    keys = "\n".join(sorted(map(str, split.keys.tolist())))
    return hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()
