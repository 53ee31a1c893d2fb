"""What a training run is asked to do: options, checked before anything is loaded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import OptionError
from ..base.stores import Place
from .schedule import Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..stream.cache import ShardCache
    from ..stream.loader import Rank
    from ..stream.training import StreamOptions
    from .adversarial import AdversaryOptions

DEFAULT_ARCH = "small"
# Names of --amp-float, and torch's.
AMP_FLOATS = {"fp16": "float16", "bf16": "bfloat16"}
WORKERS_MAX = 8
FRAMES_A_SAMPLE = 12


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; names and defaults are those of the command line (facts of the original, section 10).

    ``arch`` None: that of the file the weights come from, small for fresh ones. ``perceptual_weights``: of the network
    that some losses compare by; None: what can be had (:mod:`.perceptual`, :mod:`.dinov2`). ``discriminator``: one to
    train against (:mod:`.discriminators`); after ``generator_warmup_iteration`` steps it counts
    ``discriminator_weight`` times as much as the loss. ``num_samples`` counts frames: an epoch draws ``num_samples //
    12`` samples, hard records more often unless ``disable_hard_example``. ``on_error``: "raise", or "skip" records that
    cannot be read. ``cache_limit``: bytes of copies of a store's shards, None: 50 GB or 80 % of the free disk.
    ``num_workers`` None: one less than the processors, at most 8. ``ema_model``: evaluate and keep an average of the
    weights. ``skip_eval``: the model file is the last epoch's. ``save_epoch``: keep all. Rates:
    :class:`.schedule.Schedule`; schedule-free optimizers take none, but warm up. ``disable_backup``: remove what an
    older run left in ``model_dir``.
    """

    data_dir: Place
    model_dir: Path
    video: bool = False
    arch: str | None = None
    loss: str = "temporal_l1lpips"
    perceptual_weights: Path | None = None
    discriminator: str | None = None
    discriminator_weight: float = 0.2
    generator_warmup_iteration: int = 500
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    weight_decay_end: float | None = None
    adam_beta1: float = 0.9
    momentum: float = 0.9
    scheduler: str = "cosine_wd"
    learning_rate_cycles: int = 5
    learning_rate_cosine_min: float = 1e-8
    learning_rate_decay: float = 0.99
    learning_rate_decay_step: tuple[int, ...] = (1,)
    warmup_epoch: int = 0
    warmup_learning_rate: float = 1e-6
    max_epoch: int = 200
    backward_step: int = 4
    eval_step: int = 4
    save_eval_step: int = 10
    num_samples: int = 20000
    disable_hard_example: bool = False
    on_error: str = "raise"
    cache_limit: int | None = None
    num_workers: int | None = None
    gpu: int | None = None
    seed: int = 71
    resume: bool = False
    reset_state: bool = False
    checkpoint_file: Path | None = None
    checkpoint_minutes: float = 10.0
    disable_amp: bool = False
    amp_float: str = "fp16"
    compile: bool = False
    clip_grad_norm: float = -1.0
    ema_model: bool = False
    ema_decay: float = 0.999
    ema_step: int = 1
    skip_eval: bool = False
    save_epoch: bool = False
    disable_backup: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check every option by itself.

        Raises:
            OptionError: the first option that is out of its range.
        """
        if not self.video:
            raise OptionError("training on still images is not supported: add --video")
        for option, value, least, most in (
            ("--max-epoch", self.max_epoch, 1, 10**6),
            ("--backward-step", self.backward_step, 1, 10**6),
            ("--eval-step", self.eval_step, 1, 10**6),
            ("--save-eval-step", self.save_eval_step, 1, 10**9),
            ("--num-samples", self.num_samples, FRAMES_A_SAMPLE, 10**9),
            ("--num-workers", self.workers, 0, 256),
            ("--checkpoint-minutes", self.checkpoint_minutes, 0, 10**6),
            ("--discriminator-weight", self.discriminator_weight, 0, 1000),
            ("--generator-warmup-iteration", self.generator_warmup_iteration, 0, 10**9),
            ("--weight-decay", self.weight_decay, 0, 1000),
            ("--weight-decay-end", self.weight_decay_end or 0, 0, 1000),
            ("--ema-decay", self.ema_decay, 0, 1),
            ("--ema-step", self.ema_step, 1, 10**6),
        ):
            if not least <= value <= most:
                raise OptionError(f"{option} {value}: allowed is {least} to {most}")
        if math.isnan(self.clip_grad_norm):
            raise OptionError(
                f"--clip-grad-norm {self.clip_grad_norm}: allowed is a number, 0 or less for any"
            )
        for option, kept in (("--adam-beta1", self.adam_beta1), ("--momentum", self.momentum)):
            if not 0 <= kept < 1:
                raise OptionError(f"{option} {kept}: allowed is 0 or more and less than 1")
        self.schedule()
        if self.amp_float not in AMP_FLOATS:
            raise OptionError(f"--amp-float {self.amp_float}: allowed are {', '.join(AMP_FLOATS)}")
        if self.compile and self.discriminator is not None:
            raise OptionError(
                "--compile: does not go with --discriminator, which needs the plain network; leave one out"
            )
        if self.reset_state and not self.resume:
            raise OptionError(
                "--reset-state: goes with --resume (its weights, but a new optimizer and epoch 1)"
            )

    @property
    def draws(self) -> int:
        """Samples an epoch."""
        return self.num_samples // FRAMES_A_SAMPLE

    @property
    def workers(self) -> int:
        """Loader processes."""
        if self.num_workers is not None:
            return self.num_workers
        return min(max((os.cpu_count() or 1) - 1, 1), WORKERS_MAX)

    def stream(self, rank: Rank | None = None, cache: ShardCache | None = None) -> StreamOptions:
        """Say what is asked of the stream of samples."""
        from ..stream.loader import Rank
        from ..stream.training import StreamOptions

        return StreamOptions(
            seed=self.seed,
            draws=self.draws,
            hard_examples=not self.disable_hard_example,
            workers=self.workers,
            rank=rank or Rank(),
            on_error=self.on_error,
            cache=cache,
        )

    def schedule(self) -> Schedule:
        """Say how the rates go over the epochs."""
        return Schedule(**{field.name: getattr(self, field.name) for field in fields(Schedule)})

    def optimizer_for(self, model: nn.Module, ranks: int = 1) -> torch.optim.Optimizer:
        """Make the optimizer of ``model``, which is on its device; each of ``ranks`` processes makes its own.

        Raises:
            OptionError: there is no such optimizer, or an option does not fit it.
        """
        from .optimize import create_optimizer, warmup_steps

        return create_optimizer(
            self.optimizer,
            model,
            self.learning_rate,
            self.weight_decay,
            adam_beta1=self.adam_beta1,
            momentum=self.momentum,
            warmup_steps=warmup_steps(self.warmup_epoch, self.num_samples, self.backward_step * ranks),
        )

    def adversary(self, device: torch.device) -> AdversaryOptions | None:
        """Say which discriminator is trained against on ``device``, None for none."""
        from .adversarial import AdversaryOptions

        if self.discriminator is None:
            return None
        return AdversaryOptions(
            self.discriminator,
            weight=self.discriminator_weight,
            warmup_steps=self.generator_warmup_iteration,
            backward_step=self.backward_step,
            amp=self.amp(device),
            seed=self.seed,
        )

    @property
    def clip_norm(self) -> float | None:
        """The largest norm of a step's gradients, None for any."""
        return self.clip_grad_norm if self.clip_grad_norm > 0 else None

    def amp(self, device: torch.device) -> torch.dtype | None:
        """The type of mixed precision on ``device``, None for float32; a CPU takes bf16 where that is asked for."""
        if self.disable_amp or (device.type != "cuda" and AMP_FLOATS[self.amp_float] != "bfloat16"):
            return None
        import torch

        amp: torch.dtype = getattr(torch, AMP_FLOATS[self.amp_float])
        return amp

    def plain(self) -> dict[str, Any]:
        """Give the options as plain values, for model files, which are shared: no URL's signature is among them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Place) else value for name, value in values.items()}
