"""What a training run is asked to do: options, checked before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base.errors import OptionError
from ..base.stores import Place

DEFAULT_ARCH = "small"
WORKERS_MAX = 8
FRAMES_A_SAMPLE = 12


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; names and defaults are those of the command line (facts of the original, section 10).

    ``arch`` None: that of the file the weights come from, small for fresh ones. ``num_samples`` counts frames: an
    epoch draws ``num_samples // 12`` samples. ``num_workers`` None: one less than the processors, at most 8.
    """

    data_dir: Place
    model_dir: Path
    video: bool = False
    arch: str | None = None
    loss: str = "temporal_l1"
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    max_epoch: int = 200
    backward_step: int = 4
    eval_step: int = 4
    save_eval_step: int = 10
    num_samples: int = 20000
    num_workers: int | None = None
    gpu: int | None = None
    seed: int = 71
    resume: bool = False
    reset_state: bool = False
    checkpoint_file: Path | None = None
    checkpoint_minutes: float = 10.0

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
            ("--weight-decay", self.weight_decay, 0, 1000),
        ):
            if not least <= value <= most:
                raise OptionError(f"{option} {value}: allowed is {least} to {most}")
        if not 0 < self.learning_rate < float("inf"):
            raise OptionError(f"--learning-rate {self.learning_rate}: allowed is a number above 0")
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

    def plain(self) -> dict[str, Any]:
        """Give the options as plain values, for the checkpoint."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
