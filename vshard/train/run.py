"""The training run: epochs of accumulated steps, evaluation with pictures, checkpoints to go on from.

Everything that decides a step comes from the options, the epoch and the position in it, so a run that was stopped
and resumed from a checkpoint makes the same steps as an unbroken one. Several processes that ``torchrun`` started train
as one: each takes its share of the samples, the first one speaks and writes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..base.errors import DatasetError, VshardError
from ..base.files import make_folder
from ..base.locks import only_one
from ..base.memory import keep_freed_memory
from ..base.report import Report, Warnings
from ..base.seeds import generator
from ..base.stopping import StoppedError, StopRequest, stop_request
from ..stream.cache import cache_for
from ..stream.loader import Rank, evaluation_loader, telling_dead_workers
from ..stream.samples import finish
from ..stream.split import open_dataset
from ..stream.training import TrainingStream
from .adversarial import adversary_for
from .clock import Clock
from .ema import Average
from .history import Epoch, History, Moment, check_tensorboard
from .judge import judge
from .keeping import Keeper, load_last
from .network import CPU_ARCH, SIZES
from .optimize import is_schedule_free, rate_of, set_rates, set_training
from .plan import TrainOptions
from .progress import Progress, Trained
from .ranks import Ranks, join_ranks
from .run_state import RunState
from .schedule import adjusted_max_epoch
from .sources import SOURCES, sources_of_run
from .steps import StepOptions, Steps
from .weights import first_weights, loss_of_run, wanted_name

NOT_FINITE_MAX = 100
EVAL_FOLDER = "eval"
LOCK_FILE = ".vshard.lock"
_REPORT_EVERY_SECONDS = 1.0
_METRICS_EVERY_SECONDS = 5.0
_STOPPING = (
    "stopping: the step under way is finished and saved first; a second Ctrl-C loses what is not saved"
)


class TrainingError(VshardError, ArithmeticError):
    """Training cannot go on: the loss is not a number too often."""


def train(options: TrainOptions, report: Report) -> Trained | None:
    """Train on ``options.data_dir`` and keep everything in ``options.model_dir``.

    Of several processes that train as one, the first gives what came of it, the others None.

    Raises:
        VshardError: the dataset, an option, a checkpoint or the model folder is not as it must be, or a loader process
            died.
        StoppedError: Ctrl-C or SIGTERM; everything up to the last step is saved.
    """
    keep_freed_memory()
    with (
        join_ranks(options.gpu) as ranks,
        stop_request(lambda: report.warn(_STOPPING) if ranks.is_first else None) as request,
        telling_dead_workers(),
        ExitStack() as locked,
    ):
        trained = _train(
            options, report if ranks.is_first else Warnings(report, ranks.number), request, ranks, locked
        )
        return trained if ranks.is_first else None


def _train(
    options: TrainOptions, report: Report, request: StopRequest, ranks: Ranks, locked: ExitStack
) -> Trained:
    """Train as one of ``ranks``; on return nothing is held of the network that is spread over them."""
    # A checkpoint is read under the lock: else another run may write the next one meanwhile.
    there = options.resume and options.model_dir.is_dir()
    if there:
        _lock(options.model_dir, ranks, locked)
    run = _Run(options, report, request, ranks)
    if not there:
        _lock(make_folder(options.model_dir), ranks, locked)
    run.begin()
    return run.train()


def _lock(model_dir: Path, ranks: Ranks, locked: ExitStack) -> None:
    """Keep other runs out of a folder; on return the first rank has done so."""
    if ranks.is_first:
        locked.enter_context(only_one(model_dir / LOCK_FILE, "training here"))
    ranks.wait()


class _Run:
    """What a run holds open: the network, its optimizer, the data and how far it has come."""

    def __init__(self, options: TrainOptions, report: Report, request: StopRequest, ranks: Ranks) -> None:
        self.options, self.report, self.request, self.ranks = options, report, request, ranks
        self.train_split, self.eval_split, self.left_out = open_dataset(options.data_dir)
        self.last = load_last(options.model_dir, wanted_name(options), report) if options.resume else None
        self.goes_on = options.resume and not options.reset_state
        self.model = first_weights(options, self.last).to(ranks.device)
        self.optimizer = options.optimizer_for(self.model, ranks.count)
        self.schedule = options.schedule()
        free = is_schedule_free(self.optimizer)
        self.last_epoch = options.max_epoch if free else adjusted_max_epoch(self.schedule)
        if options.tensorboard:
            check_tensorboard()
        self.average = Average(self.model, options.ema_decay, options.ema_step) if options.ema_model else None
        self.adversary = adversary_for(self.model, ranks, options.adversary(ranks.device))
        # Behind what is refused at once: its network may have to be downloaded.
        self.loss = loss_of_run(options, self.last if self.goes_on else None, report.say).to(ranks.device)
        self.steps = Steps(
            self.model,
            self.optimizer,
            self._training_loss,
            ranks,
            StepOptions(options.backward_step, options.amp(ranks.device), options.clip_norm, options.compile),
            self.average.after_step if self.average is not None else lambda: None,
            self.adversary,
            report.warn,
        )
        self.rank = Rank(ranks.number, ranks.count)
        self.cache = cache_for(options.data_dir, options.cache_limit)
        self.stream = TrainingStream(self.train_split, options.stream(self.rank, self.cache), report)
        self.state = RunState(options, self.steps, self.stream, self.average, self.loss, self.eval_split)
        self.progress = Progress()
        self.keeper = Keeper(
            options.model_dir,
            self.model.name,
            report,
            goes_on=self.goes_on,
            backup=not options.disable_backup,
            last=self.last[0] if self.last is not None else None,
        )
        self.history: History | None = None
        self.sources: list[str] = []

    def begin(self) -> None:
        """Take up the position of the run that is resumed, and tell what is about to happen."""
        options, report = self.options, self.report
        if not options.skip_eval:
            make_folder(options.model_dir / EVAL_FOLDER)
        if self.ranks.is_first:
            self.history = History(options.model_dir, tensorboard=options.tensorboard)
        if self.goes_on and self.last is not None:
            self.progress = self.state.take(*self.last, self.keeper.best_model, report.warn)
            if self.progress.epoch <= self.last_epoch:
                report.say(f"going on with epoch {self.progress.epoch}, sample {self.stream.position}")
        elif not options.resume:
            self.keeper.warn_of_older_run()
        source = self.last[0] if self.last is not None else options.checkpoint_file
        if source is not None and not self.goes_on:
            report.say(f"first weights: those of {source}")
        if self.ranks.is_first:
            content = self.last[1] if self.last is not None else None
            self.sources = sources_of_run(self.train_split, report, content, options.checkpoint_file)
        self.last = None
        left = f" ({self.left_out} left out: eval/ has them)" if self.left_out else ""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        against = f", against {options.discriminator}" if self.adversary is not None else ""
        among = f", {self.ranks.count} processes" if self.ranks.count > 1 else ""
        amp = options.amp(self.ranks.device)
        mixed = f" in mixed precision ({options.amp_float})" if amp is not None else ""
        width = next((f" ({size})" for size, kwargs in SIZES.items() if kwargs == self.model.kwargs), "")
        report.say(
            f"{len(self.train_split)} records to train on{left}, {len(self.eval_split)} to evaluate on; "
            f"{self.model.name}{width}, {parameters:.2f} M parameters{against}, on {self.ranks.device}{mixed}{among}"
        )
        if self.ranks.device.type == "cpu" and self.model.kwargs["base_dim"] > SIZES[CPU_ARCH]["base_dim"]:
            report.say(
                "on a CPU a sample of this network takes seconds; for trying things there are "
                f"--arch {CPU_ARCH} and --loss psnr"
            )
        if self.loss.source is not None:
            report.say(f"--loss {self.loss.name} compares by {self.loss.source}")
        if self.last_epoch != options.max_epoch:
            report.say(f"epochs: {self.last_epoch}, so that the last one has the lowest rate")

    def train(self) -> Trained:
        """Go through the epochs that are left."""
        train_loss = None
        if self.progress.epoch > self.last_epoch:
            self.report.say(
                f"all {self.last_epoch} epochs are done; raise --max-epoch, or train these "
                "weights anew, from epoch 1, with --reset-state"
            )
        while self.progress.epoch <= self.last_epoch:
            started = time.monotonic()
            epoch, left_of_it = self.progress.epoch, 1 - self.stream.position / len(self.stream.plan)
            self._train_epoch()
            trained_seconds = time.monotonic() - started
            eval_loss = self._end_of_epoch(epoch)
            self.progress = Progress(epoch + 1, best_loss=self.progress.best_loss)
            train_loss = self.stream.end_epoch(self.ranks.gather)
            seconds = time.monotonic() - started
            whole = seconds + trained_seconds * (1 / left_of_it - 1) if left_of_it else seconds
            # Told first: a kill between the two loses no epoch's line. And saved though it cannot be told.
            try:
                self._log(epoch, train_loss, eval_loss, seconds, whole)
            finally:
                self._save()
        self.report.finish()
        if self.history is not None:
            self.history.close()
        best = self.progress.best_loss
        return Trained(
            self.keeper.checkpoint, self.keeper.best_model, self.progress.epoch - 1, train_loss, best
        )

    def _end_of_epoch(self, epoch: int) -> float | None:
        """Evaluate if it is time, and keep what is to be kept; give the evaluation's loss."""
        options, eval_loss = self.options, None
        due = epoch % options.eval_step == 0 or epoch == self.last_epoch
        if due or options.skip_eval or options.save_epoch:
            self._save()
        self._mode(training=False)
        with self.average.in_place() if self.average is not None else nullcontext():
            if due and not options.skip_eval:
                eval_loss = self._evaluate()
                self._keep_best(eval_loss)
            elif options.skip_eval and self.ranks.is_first:
                self.keeper.save_best(self.model, self._train_kwargs())
            if options.save_epoch and self.ranks.is_first:
                self.keeper.save_epoch(self.model, self._train_kwargs(), epoch)
        return eval_loss

    def _training_loss(self, output: Tensor, target: Tensor, position: int) -> Tensor:
        """Compare after the moves that belong to this place of the epoch."""
        rng = generator(self.options.seed, "loss", self.progress.epoch, position)
        loss: Tensor = self.loss(output, target, rng)
        return loss

    def _train_epoch(self) -> None:
        """Train from the position in this epoch to its end."""
        self._mode(training=True)
        self._set_rates()
        self.report.start(f"epoch {self.progress.epoch}/{self.last_epoch}", len(self.stream.plan), "samples")
        clock = Clock(self.stream.position)
        # Of an epoch that is resumed there may be holes in what is behind.
        holes = self.stream.position > 0
        for sample in clock.waiting(self.stream):
            holes = holes or bool(sample.hole.any())
            x, mask, y = finish(sample, self.ranks.device)
            if self.steps.add(x, mask, y, position=sample.position, weight=sample.weight):
                self._set_rates()
                self._after_step(clock)
            else:
                self._tell(clock)
        if self.steps.finish():
            self._after_step(clock)
        self._note_losses()
        bad = self.progress.not_finite
        failed, spoilt, some, holes = self.ranks.any(
            [bad > NOT_FINITE_MAX, bad > 0, self.stream.has_losses, holes]
        )
        if not some and not spoilt:
            raise DatasetError(
                f"{self.train_split.root}: of epoch {self.progress.epoch} not one sample could be read; see what is "
                f"wrong with: vshard verify {self.train_split.root}"
            )
        if failed or not some:
            raise self._hopeless()
        if not holes:
            self.report.warn(
                f"{self.train_split.root}: no sample of epoch {self.progress.epoch} had a hole to fill; check its masks"
            )
        self.report.advance(len(self.stream.plan), f"loss {self.stream.mean_loss:.5f}")

    def _after_step(self, clock: Clock) -> None:
        """Tell how it goes, save when it is time, stop when somebody asked for it."""
        self._tell(clock)
        now, options, progress = time.monotonic(), self.options, self.progress
        save, stop, failed = self.ranks.any(
            [
                now - clock.saved >= options.checkpoint_minutes * 60,
                self.request.asked,
                progress.not_finite > NOT_FINITE_MAX,
            ]
        )
        if failed:
            raise self._hopeless()
        if save or stop:
            self._save()
            clock.saved = now
        if stop:
            raise StoppedError(
                f"stopped in epoch {progress.epoch} after {self.stream.position} of {len(self.stream.plan)} samples, "
                "all saved; the same command with --resume goes on from there"
            )

    def _tell(self, clock: Clock) -> None:
        """Tell how far the epoch is, if that was not told just now."""
        now = time.monotonic()
        if now - clock.reported < _REPORT_EVERY_SECONDS:
            return
        clock.reported = now
        self._note_losses()
        epoch, position, rate = self.progress.epoch, self.stream.position, rate_of(self.optimizer)
        speed, waited, loss = clock.speed(position), clock.wait_share, self.stream.mean_loss
        figures = f"rate {rate:.1e}, {speed:.3g}/s, {waited:.0%} waiting for data"
        if not self.stream.has_losses:  # before the first step
            self.report.advance(position, figures)
            return
        self.report.advance(position, f"loss {loss:.5f}, {figures}")
        if self.history is not None and now - clock.noted >= _METRICS_EVERY_SECONDS:
            clock.noted = now
            moment = Moment(epoch, position, loss, rate, speed, waited, self.steps.discriminator_loss)
            self.history.note(moment, (epoch - 1) * len(self.stream.plan) + position)

    def _hopeless(self) -> TrainingError:
        bad = sum(self.ranks.gather(self.progress.not_finite))
        return TrainingError(
            f"epoch {self.progress.epoch}: the loss was not a number {bad} times; resume from the last checkpoint with "
            "a smaller --learning-rate"
        )

    def _note_losses(self) -> None:
        """Take the losses off the device."""
        bad = 0
        for loss in self.steps.drain():
            bad += bool(loss.weight) and not np.isfinite([loss.value, loss.discriminator or 0]).all()
            if loss.weight:
                self.stream.note_loss(loss.position, loss.value)
        if bad:
            self.progress = replace(self.progress, not_finite=self.progress.not_finite + bad)
            self.report.warn(
                f"epoch {self.progress.epoch}: the loss is not a number, such steps are left out "
                f"({self.progress.not_finite} so far)"
            )

    def _evaluate(self) -> float:
        """Give the mean loss over ``eval/``, saving the pictures asked for."""
        options, epoch = self.options, self.progress.epoch
        self.report.start(f"evaluating epoch {epoch}", len(self.eval_split), "records")

        found = judge(
            self.model,
            self.loss,
            evaluation_loader(
                self.eval_split,
                workers=options.workers,
                cache=self.cache,
                rank=self.rank,
                on_error=options.on_error,
            ),
            len(self.eval_split),
            self.ranks,
            amp=options.amp(self.ranks.device),
            pictures=options.model_dir / EVAL_FOLDER,
            every=options.save_eval_step,
            report=self.report,
            asked_to_stop=lambda: self.request.asked,
        )
        if found is None:
            raise StoppedError(
                f"stopped while evaluating epoch {epoch}, whose training is saved; the same command with --resume goes "
                "on from there"
            )
        return found

    def _keep_best(self, eval_loss: float) -> None:
        """Keep the weights if they are the best so far."""
        if not np.isfinite(eval_loss):
            raise TrainingError(
                f"epoch {self.progress.epoch}: the evaluation loss is not a number, the weights are spoilt; start "
                "anew, or from an older *.pth.bk, with a smaller --learning-rate"
            )
        if eval_loss < self.progress.best_loss:
            self.progress = replace(self.progress, best_loss=eval_loss)
            if self.ranks.is_first:
                self.keeper.save_best(self.model, self._train_kwargs())

    def _set_rates(self) -> None:
        """Give the next step its rates."""
        trained = self.stream.position / len(self.stream.plan)
        set_rates(self.optimizer, self.schedule, self.progress.epoch, trained)
        if self.adversary is not None:
            self.adversary.set_rate(self.optimizer.param_groups[0]["lr"] / self.options.learning_rate)

    def _mode(self, *, training: bool) -> None:
        """Switch network and optimizer between taking steps and being evaluated or saved."""
        self.model.train(training)
        set_training(self.optimizer, training)

    def _save(self) -> None:
        """Write a checkpoint, of weights that are numbers."""
        self._note_losses()
        if not self.steps.are_numbers():
            raise TrainingError(
                f"epoch {self.progress.epoch}: the weights are no longer numbers, so they are not saved; resume from "
                "the last checkpoint, or start anew, with a smaller --learning-rate"
            )
        ours = self.state.entry(self.progress, self.ranks.gather)
        if self.ranks.is_first:
            self.keeper.save(
                self.model,
                self.optimizer,
                self.steps.scaler,
                train_kwargs=self._train_kwargs(),
                progress=self.progress,
                ours=ours,
            )

    def _train_kwargs(self) -> dict[str, Any]:
        """Say what this run is, for the record."""
        return {**self.options.plain(), SOURCES: self.sources}

    def _log(
        self, epoch: int, train_loss: float, eval_loss: float | None, seconds: float, whole_seconds: float
    ) -> None:
        """Tell an epoch's losses and keep them in the run's history; ``whole_seconds``: had it all been trained now."""
        evaluated = f", evaluation {eval_loss:.5f}" if eval_loss is not None else ""
        best = " (best)" if eval_loss is not None and eval_loss == self.progress.best_loss else ""
        left = timedelta(seconds=round(whole_seconds * (self.last_epoch - epoch)))
        took = timedelta(seconds=round(seconds))
        self.report.say(
            f"epoch {epoch}: loss {train_loss:.5f}{evaluated}{best}; took {took}, all epochs: {left} left"
        )
        if self.history is not None:
            rate = rate_of(self.optimizer)
            self.history.end_epoch(Epoch(epoch, train_loss, eval_loss, rate, seconds))
