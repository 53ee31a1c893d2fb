"""The files of a run: checkpoints to go on from, the best model, and what an older run in the folder left.

The last two checkpoints are kept: a new one takes its name after the one before was renamed, so at every moment one of
them is whole, and a damaged one is no end of a long night. One that is damaged never takes the name of the one before.
"""

from __future__ import annotations

import glob
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..base.errors import CheckpointError
from ..base.files import write_file, writing
from ..base.report import Report
from .checkpoint import (
    CHECKPOINT_SUFFIX,
    KEPT_SUFFIX,
    STEPPING,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from .network import LightVideoInpaint
from .optimize import is_schedule_free, set_training, take_stepping
from .progress import Progress

PREVIOUS_SUFFIX = ".checkpoint.previous.pth"
_EPOCH_SUFFIX = ".epoch"


class Keeper:
    """Writes one run's model files into its folder."""

    def __init__(
        self,
        model_dir: Path,
        name: str,
        report: Report,
        *,
        goes_on: bool,
        backup: bool = True,
        last: Path | None = None,
    ) -> None:
        """Write nothing yet.

        ``goes_on``: the files that are there are this run's own, not an older one's, which ``backup`` keeps. ``last``:
        which of its checkpoints is the last whole one.
        """
        self.checkpoint = model_dir / f"{name}{CHECKPOINT_SUFFIX}"
        self.previous = model_dir / f"{name}{PREVIOUS_SUFFIX}"
        self.best_model = model_dir / f"{name}.pth"
        self._report, self._goes_on, self._backup = report, goes_on, backup
        # Whether the next checkpoint takes the place of the one of that name, which is damaged or an older run's.
        self._replaces = last == self.previous
        # An older run's files that are removed once this one has a checkpoint.
        self._left_behind: list[Path] = []
        self._started = f"{datetime.now():%Y%m%d%H%M%S}"

    def warn_of_older_run(self) -> None:
        """Tell that an older run's files are about to be moved aside."""
        if not self._goes_on and self.checkpoint.exists():
            fate = f"kept as *.{self._started}{KEPT_SUFFIX}" if self._backup else "removed"
            self._report.warn(
                f"{self.checkpoint} is of an older run: it is {fate} when this one saves its first (to go on with it, "
                "stop now and give --resume)"
            )

    def save(
        self,
        model: LightVideoInpaint,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        train_kwargs: dict[str, Any],
        progress: Progress,
        ours: dict[str, Any],
    ) -> None:
        """Write the checkpoint without changing a bit of what the next step starts from.

        ``ours``: our entry of it, see :meth:`.run_state.RunState.entry`.

        Raises:
            OutputError: it cannot be written.
        """
        self._keep_older_run()
        in_training = is_schedule_free(optimizer) and model.training
        weights = {name: p.detach().clone() for name, p in model.named_parameters()} if in_training else {}
        set_training(optimizer, False)
        if self.checkpoint.exists() and not self._replaces:
            with writing(self.previous):
                self.checkpoint.replace(self.previous)
        save_checkpoint(
            self.checkpoint,
            model,
            optimizer,
            train_kwargs=train_kwargs,
            best_loss=progress.best_loss,
            last_epoch=progress.epoch - 1,
            ours={**ours, STEPPING: weights},
            grad_scaler=scaler if scaler.is_enabled() else None,
        )
        self._replaces = False
        while self._left_behind:
            path = self._left_behind.pop()
            with writing(path):
                path.unlink(missing_ok=True)
        if in_training:
            take_stepping(model, optimizer, weights)

    def save_best(self, model: LightVideoInpaint, train_kwargs: dict[str, Any]) -> None:
        """Write the best model so far, once this run has a checkpoint.

        Raises:
            OutputError: it cannot be written.
        """
        assert self._goes_on, "an older run's files have these names"
        save_model(self.best_model, model, train_kwargs)

    def save_epoch(self, model: LightVideoInpaint, train_kwargs: dict[str, Any], epoch: int) -> None:
        """Write an epoch's model, which stays, once this run has a checkpoint.

        Raises:
            OutputError: it cannot be written.
        """
        assert self._goes_on, "an older run's files have these names"
        save_model(self.best_model.with_suffix(f"{_EPOCH_SUFFIX}{epoch:04d}.pth"), model, train_kwargs)

    def _keep_older_run(self) -> None:
        """Give an older run's files names that stay, before this run's first checkpoint; then they lose their own.

        So whatever ends the run before that checkpoint is whole leaves the older run as it was, to begin from again.
        """
        if self._goes_on:
            return
        self._goes_on = self._replaces = True
        name = self.best_model.name.removesuffix(".pth")
        epochs = sorted(self.best_model.parent.glob(f"{glob.escape(name)}{_EPOCH_SUFFIX}[0-9]*.pth"))
        self._left_behind = [path for path in (self.previous, self.best_model, *epochs) if path.exists()]
        if self._backup:
            checkpoint = [self.checkpoint] if self.checkpoint.exists() else []
            for path in (*checkpoint, *self._left_behind):
                kept = self._kept(path)
                _name_too(path, kept)
                self._report.say(f"{path.name} of the older run is kept as {kept.name}")

    def _kept(self, path: Path) -> Path:
        return path.with_name(f"{path.name.removesuffix('.pth')}.{self._started}{KEPT_SUFFIX}")


def load_last(model_dir: Path, name: str | None, report: Report) -> tuple[Path, dict[str, Any]]:
    """Read the last whole checkpoint of the run in ``model_dir``; see :func:`.checkpoint.load_checkpoint`.

    ``name``: the network's; None: whichever is there.

    Raises:
        CheckpointError: there is none, there are several networks' and ``name`` does not say which, or none is whole.
    """
    names = {
        path.name.removesuffix(suffix): None
        for suffix in (CHECKPOINT_SUFFIX, PREVIOUS_SUFFIX)
        for path in sorted(model_dir.glob(f"{name or '*'}{suffix}"))
    }
    if len(names) > 1:
        raise CheckpointError(
            f"{model_dir}: holds checkpoints of {len(names)} networks ({next(iter(names))}, …); say which by --arch"
        )
    if not names:
        kept = sorted(model_dir.glob(f"*.checkpoint.*{KEPT_SUFFIX}"))
        older = f" ({kept[-1].name} is of an older run: --checkpoint-file takes its weights)" if kept else ""
        raise CheckpointError(
            f"{model_dir}: no checkpoint to resume{older}; check --model-dir, or leave out --resume to start"
        )
    (found,) = names
    last, previous = model_dir / f"{found}{CHECKPOINT_SUFFIX}", model_dir / f"{found}{PREVIOUS_SUFFIX}"
    try:
        return last, load_checkpoint(last)
    except CheckpointError as error:
        if not previous.exists():
            raise
        content = load_checkpoint(previous)
        report.warn(f"{error}; going on from the one before, {previous.name}")
        return previous, content


def _name_too(path: Path, other: Path) -> None:
    """Give a file another name too, which keeps its content when the first is replaced."""
    with writing(other):
        try:
            other.hardlink_to(path)
            return
        except OSError:  # not on this file system
            content = path.read_bytes()
    write_file(other, content)
