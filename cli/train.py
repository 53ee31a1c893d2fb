"""`vshard train`: a dataset -> a model."""

from __future__ import annotations

from pathlib import Path

import click

from vshard.train.plan import TrainOptions

from .console import console
from .places import local_path, place

_DEFAULT = TrainOptions(Path(), Path(), video=True)


@click.command()
@click.option(
    "-i",
    "--data-dir",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Dataset folder with train/ and eval/.",
)
@click.option(
    "--model-dir",
    required=True,
    type=local_path,
    help="Folder for checkpoints and eval/ pictures.",
)
@click.option("--video", is_flag=True, help="Train the video model (needed: still images are not supported).")
@click.option(
    "--arch",
    help="small, medium or large; narrow for trying things, on a CPU say. Without it: the weight file's, or small.",
)
@click.option("--loss", default=_DEFAULT.loss, show_default=True, help="temporal_l1 or l1.")
@click.option(
    "--optimizer",
    default=_DEFAULT.optimizer,
    show_default=True,
    help="adamw (rate restarts) or adamw_schedulefree.",
)
@click.option(
    "--learning-rate",
    type=float,
    default=_DEFAULT.learning_rate,
    show_default=True,
    help="Highest learning rate.",
)
@click.option(
    "--weight-decay",
    type=float,
    default=_DEFAULT.weight_decay,
    show_default=True,
    help="Of convolution and linear weights.",
)
@click.option("--max-epoch", type=int, default=_DEFAULT.max_epoch, show_default=True, help="Epochs in all.")
@click.option(
    "--backward-step",
    type=int,
    default=_DEFAULT.backward_step,
    show_default=True,
    help="Samples whose gradients are added up before a step.",
)
@click.option(
    "--eval-step", type=int, default=_DEFAULT.eval_step, show_default=True, help="Epochs between evaluations."
)
@click.option(
    "--save-eval-step",
    type=int,
    default=_DEFAULT.save_eval_step,
    show_default=True,
    help="Every how many eval records a picture is saved.",
)
@click.option(
    "--num-samples",
    type=int,
    default=_DEFAULT.num_samples,
    show_default=True,
    help="Frames an epoch; 12 make a sample.",
)
@click.option(
    "--num-workers", type=int, help="Loader processes. Without it: one less than the processors, at most 8."
)
@click.option(
    "--gpu", type=int, help="CUDA device; -1 for the CPU. Without it: device 0, or the CPU if there is none."
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULT.seed,
    show_default=True,
    help="Decides weights, order and every draw.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --model-dir.")
@click.option("--reset-state", is_flag=True, help="With --resume: take the weights only, start at epoch 1.")
@click.option("--checkpoint-file", type=local_path, help="Model file (.pth) with the first weights.")
@click.option(
    "--checkpoint-minutes",
    type=float,
    default=_DEFAULT.checkpoint_minutes,
    show_default=True,
    help="Longest time between checkpoints.",
)
@click.option("--batch-size", type=int, expose_value=False, help="Taken and ignored: always 1 with --video.")
def command(**options: object) -> None:
    """Train a video-inpainting model on a dataset.

    Stopped at any moment, the same command with --resume goes on.

    \b
    Example:
      vshard train -i data/city --model-dir models/city --video --backward-step 8 --save-eval-step 1
    """
    checked = TrainOptions(**options)  # type: ignore[arg-type]
    from vshard.train.run import train

    with console() as report:
        result = train(checked, report)
    loss = f", training loss {result.train_loss:.5f}" if result.train_loss is not None else ""
    click.echo(f"{result.checkpoint}: epoch {result.epoch}{loss}")
    if result.best_model.exists():
        click.echo(f"{result.best_model}: best evaluation loss {result.best_loss:.5f}")
