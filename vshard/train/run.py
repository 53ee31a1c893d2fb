"""The training run: epochs of accumulated steps, evaluation with pictures, checkpoints to go on from.

Everything that decides a step comes from the options, the epoch and the position in it, so a run that was stopped
and resumed from a checkpoint makes the same steps as an unbroken one.
"""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.devices import choose_device
from ..base.errors import CheckpointError, VshardError
from ..base.files import make_folder, write_file, writing
from ..base.locks import only_one
from ..base.report import Report
from ..base.seeds import derived_seed
from ..base.stopping import StoppedError, StopRequest, stop_request
from ..records.png import encode_png
from ..stream.loader import evaluation_loader, training_loader
from ..stream.order import plan_epoch
from ..stream.samples import finish
from ..stream.split import open_dataset
from .checkpoint import KEPT_SUFFIX, last_checkpoint, load_checkpoint, load_model, save_checkpoint, save_model
from .losses import loss_by_name
from .network import LightVideoInpaint, create
from .optimize import (
    CosineSchedule,
    adjusted_max_epoch,
    create_optimizer,
    is_schedule_free,
    set_epoch,
    set_training,
)
from .pictures import side_by_side
from .plan import DEFAULT_ARCH, TrainOptions

NOT_FINITE_MAX = 100
WEIGHT_DECAY_END = 0.01
EVAL_FOLDER = "eval"
_REPORT_EVERY_SECONDS = 1.0
# Checkpoint entry: the weights that a schedule-free optimizer takes gradients at.
_STEPPING = "stepping_weights"


class TrainingError(VshardError, ArithmeticError):
    """Training cannot go on: the loss is not a number too often."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: ``consumed`` samples of ``epoch`` (from 1) are in the weights.

    ``loss_sum`` is the sum of their losses, ``not_finite`` counts those left out. ``plan`` tells the data and the
    options that the position belongs to.
    """

    epoch: int = 1
    consumed: int = 0
    loss_sum: float = 0.0
    not_finite: int = 0
    best_loss: float = float("inf")
    plan: str = ""


@dataclass(frozen=True)
class Trained:
    """What a run left behind; ``train_loss`` is the last epoch's, None where none was left to train."""

    checkpoint: Path
    best_model: Path
    epoch: int
    train_loss: float | None
    best_loss: float


def train(options: TrainOptions, report: Report) -> Trained:
    """Train on ``options.data_dir`` and keep everything in ``options.model_dir``.

    Raises:
        VshardError: the dataset, an option, a checkpoint or the model folder is not as it must be.
        StoppedError: Ctrl-C or SIGTERM; everything up to the last step is saved.
    """
    with stop_request() as request:
        run = _Run(options, report, request)
        with only_one(make_folder(options.model_dir) / ".vshard.lock", "training here"):
            run.begin()
            return run.train()


class _Run:
    """What a run holds open: the network, its optimizer, the data and how far it has come."""

    def __init__(self, options: TrainOptions, report: Report, request: StopRequest) -> None:
        self.options, self.report, self.request = options, report, request
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss_by_name(options.loss)
        self.device = choose_device(options.gpu)
        self.train_split, self.eval_split, self.left_out = open_dataset(options.data_dir)
        self.model = self._first_weights().to(self.device)
        self.optimizer = create_optimizer(
            options.optimizer, self.model, options.learning_rate, options.weight_decay
        )
        self.schedule = CosineSchedule(
            max_epoch=options.max_epoch,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            weight_decay_end=max(WEIGHT_DECAY_END, options.weight_decay),
        )
        self.last_epoch = options.max_epoch
        if not is_schedule_free(self.optimizer):
            self.last_epoch = adjusted_max_epoch(self.schedule)
        self.checkpoint = options.model_dir / f"{self.model.name}.checkpoint.pth"
        self.best_model = options.model_dir / f"{self.model.name}.pth"
        keys = hashlib.blake2b("\n".join(self.train_split.keys.tolist()).encode(), digest_size=4).hexdigest()
        plan = f"{len(self.train_split)} records ({keys}), {options.draws} draws, seed {options.seed}"
        self.progress = Progress(plan=plan)
        self.started = f"{datetime.now():%Y%m%d%H%M%S}"
        self.losses = options.model_dir / f"loss_{self.started}.csv"
        self.goes_on = options.resume and not options.reset_state

    def begin(self) -> None:
        """Take up the position of the run that is resumed, and tell what is about to happen."""
        options, report = self.options, self.report
        make_folder(options.model_dir / EVAL_FOLDER)
        if self.goes_on:
            self._resume()
        elif self.checkpoint.exists() and not options.resume:
            report.warn(
                f"{self.checkpoint} is of an older run: it is kept as *.{self.started}.pth.bk when this one saves "
                "its first (to go on with it, stop now and give --resume)"
            )
        left = f" ({self.left_out} left out: eval/ has them)" if self.left_out else ""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        report.say(
            f"{len(self.train_split)} records to train on{left}, {len(self.eval_split)} to evaluate on; "
            f"{self.model.name}, {parameters:.2f} M parameters, on {self.device}"
        )
        if self.last_epoch != options.max_epoch:
            report.say(f"epochs: {self.last_epoch}, so that the last one has the lowest rate")

    def train(self) -> Trained:
        """Go through the epochs that are left."""
        train_loss = None
        if self.progress.epoch > self.last_epoch:
            self.report.say(
                f"all {self.last_epoch} epochs are done; raise --max-epoch, or start over with --reset-state"
            )
        while self.progress.epoch <= self.last_epoch:
            epoch = self.progress.epoch
            started = time.monotonic()
            train_loss = self._train_epoch()
            eval_loss = None
            if epoch % self.options.eval_step == 0 or epoch == self.last_epoch:
                self._save()
                eval_loss = self._evaluate()
                if not np.isfinite(eval_loss):
                    raise TrainingError(
                        f"epoch {epoch}: the evaluation loss is not a number, the weights are spoilt; start anew, or "
                        "from an older *.pth.bk, with a smaller --learning-rate"
                    )
                if eval_loss < self.progress.best_loss:
                    self.progress = replace(self.progress, best_loss=eval_loss)
                    self._keep_older_run()
                    save_model(self.best_model, self.model, self.options.plain())
            self.progress = Progress(epoch + 1, best_loss=self.progress.best_loss, plan=self.progress.plan)
            self._save()
            self._log(epoch, train_loss, eval_loss, time.monotonic() - started)
        self.report.finish()
        return Trained(
            self.checkpoint, self.best_model, self.progress.epoch - 1, train_loss, self.progress.best_loss
        )

    def _train_epoch(self) -> float:
        """Train from the position in this epoch to its end; give the epoch's mean loss."""
        options, progress = self.options, self.progress
        self._mode(training=True)
        set_epoch(self.optimizer, self.schedule, progress.epoch)
        plan = plan_epoch(len(self.train_split), options.draws, seed=options.seed, epoch=progress.epoch)
        samples = training_loader(
            self.train_split,
            plan,
            seed=options.seed,
            epoch=progress.epoch,
            start=progress.consumed,
            workers=options.workers,
        )
        self.report.start(f"epoch {progress.epoch}/{self.last_epoch}", len(plan), "samples")
        saved = reported = time.monotonic()
        pending: list[Tensor] = []
        for sample in samples:
            x, mask, y = finish(sample, self.device)
            loss = self.loss(self.model(*self.model.preprocess(x, mask)), y)
            torch.autograd.backward(loss / options.backward_step)
            pending.append(loss.detach())
            consumed = self.progress.consumed + len(pending)
            if len(pending) < options.backward_step and consumed < len(plan):
                continue
            self._step(pending)
            pending = []
            now = time.monotonic()
            if now - reported >= _REPORT_EVERY_SECONDS or consumed == len(plan):
                reported = now
                self.report.advance(consumed, f"loss {self._mean_loss():.5f}")
            if now - saved >= options.checkpoint_minutes * 60:
                self._save()
                saved = now
            if self.request.asked:
                self._save()
                raise StoppedError(
                    f"stopped in epoch {progress.epoch} after {consumed} of {len(plan)} samples, all saved; the same "
                    "command with --resume goes on from there"
                )
        return self._mean_loss()

    def _step(self, pending: list[Tensor]) -> None:
        """Make one optimizer step of the gradients of ``pending`` losses, unless one is not a number."""
        values = torch.stack(pending).tolist()
        bad = sum(not np.isfinite(value) for value in values)
        progress = self.progress
        if bad:
            if progress.not_finite + bad > NOT_FINITE_MAX:
                raise TrainingError(
                    f"epoch {progress.epoch}: the loss was not a number more than {NOT_FINITE_MAX} times; resume "
                    "from the last checkpoint with a smaller --learning-rate"
                )
            self.report.warn(f"epoch {progress.epoch}: the loss is not a number, this step is left out")
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress = replace(
            progress,
            consumed=progress.consumed + len(values),
            loss_sum=progress.loss_sum + sum(value for value in values if np.isfinite(value)),
            not_finite=progress.not_finite + bad,
        )

    def _mean_loss(self) -> float:
        return self.progress.loss_sum / max(self.progress.consumed - self.progress.not_finite, 1)

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Give the mean loss over ``eval/``, saving the pictures asked for."""
        self._mode(training=False)
        self.report.start(f"evaluating epoch {self.progress.epoch}", len(self.eval_split), "records")
        total = 0.0
        for done, sample in enumerate(evaluation_loader(self.eval_split, workers=self.options.workers), 1):
            x, mask, y = finish(sample, self.device)
            emptied, soft = self.model.preprocess(x, mask)
            out = self.model(emptied, soft)
            total += float(self.loss(out, y))
            if (done - 1) % self.options.save_eval_step == 0:
                border = (x.shape[-1] - y.shape[-1]) // 2
                masked = emptied[..., border:-border, border:-border]
                picture = self.options.model_dir / EVAL_FOLDER / f"{done - 1}.png"
                write_file(picture, encode_png(side_by_side([masked, out, y])))
            self.report.advance(done, f"loss {total / done:.5f}")
            if self.request.asked:
                raise StoppedError(
                    f"stopped while evaluating epoch {self.progress.epoch}, whose training is saved; the same command "
                    "with --resume goes on from there"
                )
        return total / len(self.eval_split)

    def _mode(self, *, training: bool) -> None:
        """Switch network and optimizer between taking steps and being evaluated or saved."""
        self.model.train(training)
        set_training(self.optimizer, training)

    def _first_weights(self) -> LightVideoInpaint:
        """Give the network to start with: the last checkpoint's, --checkpoint-file's, or fresh."""
        options = self.options
        torch.manual_seed(derived_seed(options.seed, "weights") & 0x7FFFFFFF)
        fresh = create(options.arch or DEFAULT_ARCH)
        source = options.checkpoint_file
        if options.resume:
            source = last_checkpoint(options.model_dir, fresh.name if options.arch else None)
        if source is None:
            return fresh
        loaded = load_model(source)
        if not all(bool(parameter.isfinite().all()) for parameter in loaded.parameters()):
            raise CheckpointError(f"{source}: its weights are not all numbers; give another file")
        if options.arch and loaded.kwargs != fresh.kwargs:
            raise CheckpointError(
                f"{source}: holds a network of {loaded.kwargs}, --arch {options.arch} is one of {fresh.kwargs}; leave "
                "out --arch to take the file's"
            )
        return loaded

    def _resume(self) -> None:
        """Take optimizer and position from the last checkpoint."""
        content = load_checkpoint(self.checkpoint)
        stored = content.get("vshard", {})
        try:
            if content["train_kwargs"]["optimizer"] != self.options.optimizer:
                raise CheckpointError(
                    f"{self.checkpoint}: was trained with --optimizer {content['train_kwargs']['optimizer']}; give "
                    "the same, or --reset-state to take the weights only"
                )
            self.optimizer.load_state_dict(content["optimizer_state_dict"][0])
            position = Progress(**stored["progress"])
            if stored[_STEPPING]:
                self._take_stepping(stored[_STEPPING])
            if not all(
                isinstance(count, int) for count in (position.epoch, position.consumed, position.not_finite)
            ):
                raise ValueError("odd counts")
        except CheckpointError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoint}: holds no position to go on from ({error}); take its weights only with "
                "--resume --reset-state"
            ) from error
        if position.plan != self.progress.plan and position.consumed:
            self.report.warn(
                f"the data or the order changed ({position.plan} before, {self.progress.plan} now): epoch "
                f"{position.epoch} starts over"
            )
            position = Progress(position.epoch, best_loss=position.best_loss)
        self.progress = replace(position, plan=self.progress.plan)
        if self.progress.epoch <= self.last_epoch:
            self.report.say(f"going on with epoch {position.epoch}, sample {position.consumed}")

    def _keep_older_run(self) -> None:
        """Move an older run's model files aside before this run's first save takes their names."""
        if self.goes_on:
            return
        self.goes_on = True
        for path in (self.checkpoint, self.best_model):
            if path.exists():
                kept = path.with_name(f"{path.name.removesuffix('.pth')}.{self.started}{KEPT_SUFFIX}")
                with writing(kept):
                    path.replace(kept)
                self.report.say(f"{path.name} of the older run is kept as {kept.name}")

    def _check_weights(self) -> None:
        """Refuse to keep weights that are not numbers."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise TrainingError(
                f"epoch {self.progress.epoch}: the weights are no longer numbers, so they are not saved; resume from "
                "the last checkpoint, or start anew, with a smaller --learning-rate"
            )

    def _save(self) -> None:
        """Write the checkpoint without changing a bit of what the next step starts from."""
        self._check_weights()
        self._keep_older_run()
        in_training = is_schedule_free(self.optimizer) and self.model.training
        weights = (
            {name: p.detach().clone() for name, p in self.model.named_parameters()} if in_training else {}
        )
        set_training(self.optimizer, False)
        save_checkpoint(
            self.checkpoint,
            self.model,
            self.optimizer,
            train_kwargs=self.options.plain(),
            best_loss=self.progress.best_loss,
            last_epoch=self.progress.epoch - 1,
            progress={"progress": asdict(self.progress), _STEPPING: weights},
        )
        if in_training:
            self._take_stepping(weights)

    def _take_stepping(self, weights: dict[str, Tensor]) -> None:
        """Put back the weights that a schedule-free optimizer steps from: going there and back is not exact."""
        set_training(self.optimizer, True)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])

    def _log(self, epoch: int, train_loss: float, eval_loss: float | None, seconds: float) -> None:
        """Tell an epoch's losses and add them to the run's CSV."""
        evaluated = f", evaluation {eval_loss:.5f}" if eval_loss is not None else ""
        best = " (best)" if eval_loss is not None and eval_loss == self.progress.best_loss else ""
        left = timedelta(seconds=round(seconds * (self.last_epoch - epoch)))
        took = timedelta(seconds=round(seconds))
        self.report.say(
            f"epoch {epoch}: loss {train_loss:.5f}{evaluated}{best}; took {took}, all epochs: {left} left"
        )
        fresh = not self.losses.exists()
        with writing(self.losses), self.losses.open("a", newline="") as file:
            table = csv.writer(file)
            if fresh:
                table.writerow(["epoch", "train_loss", "eval_loss"])
            table.writerow([epoch, train_loss, "" if eval_loss is None else eval_loss])
