"""`vshard show`: a split -> a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import counted, plain
from .places import local_path, place

if TYPE_CHECKING:
    from vshard.base.stores import Place


@click.command()
@click.argument("split", type=place)
@click.option(
    "-o",
    "--output",
    type=local_path,
    default="records.png",
    show_default=True,
    help="Picture to write.",
)
@click.option(
    "--records",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="How many records, spread over the split.",
)
@click.option(
    "--sample",
    type=click.IntRange(0),
    metavar="K",
    help="Draw the sample that training takes as number K (from 0) of an epoch instead.",
)
@click.option(
    "--epoch", type=click.IntRange(1), default=1, show_default=True, help="With --sample: which epoch."
)
@click.option(
    "--seed", type=int, help="With --sample: that of the training.  [default: the checkpoint's, or 71]"
)
@click.option(
    "--num-samples",
    type=int,
    help="With --sample: that of the training.  [default: the checkpoint's, or 20000]",
)
@click.option("--disable-hard-example", is_flag=True, help="With --sample: as the training was told.")
@click.option(
    "--checkpoint",
    type=local_path,
    help="With --sample: the training's checkpoint, which later epochs' order depends on.",
)
def command(
    split: Place,
    output: Path,
    records: int,
    sample: int | None,
    epoch: int,
    seed: int | None,
    num_samples: int | None,
    disable_hard_example: bool,
    checkpoint: Path | None,
) -> None:
    """Draw a sheet of a split's records, or one sample of a training.

    \b
    Example:
      vshard show data/city/train -o records.png
      vshard show data/city --sample 40 --epoch 1 -o sample.png
    """
    if sample is None:
        from vshard.stream.sheet import write_sheet

        shown = write_sheet(split, output, records)
        click.echo(plain(f"{output}: {counted(shown, 'record')} of {split}"))
        return
    from vshard.base.errors import CheckpointError
    from vshard.stream.picture import describe, write_sample
    from vshard.train.plan import TrainOptions

    asked: dict[str, Any] = {"seed": seed, "num_samples": num_samples}
    if disable_hard_example:
        asked["disable_hard_example"] = True
    state, told = (None, {}) if checkpoint is None else _of_checkpoint(checkpoint)
    asked = {**told, **{name: value for name, value in asked.items() if value is not None}}
    training = TrainOptions(split, Path(), video=True, **asked)
    try:
        drawn = write_sample(split, output, training.stream(), epoch=epoch, position=sample, state=state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}; give a checkpoint of vshard's") from error
    click.echo(plain(f"{output}: " + describe(drawn, epoch).replace("\n", "; ")))


def _of_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the stream's state in a checkpoint, and what the training was told of its samples."""
    from vshard.base.errors import CheckpointError
    from vshard.train.checkpoint import OURS, STREAM, load_checkpoint

    content = load_checkpoint(path)
    kinds = {"seed": int, "num_samples": int, "disable_hard_example": bool}
    try:
        stored, kwargs = content[OURS], content["train_kwargs"]
        if not isinstance(stored, dict) or not isinstance(kwargs, dict):
            raise TypeError("no names in it")
        state, told = stored[STREAM], {name: kwargs[name] for name in kinds}
        if any(type(told[name]) is not kind for name, kind in kinds.items()):
            raise TypeError(f"odd options {told}")
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: holds no position of a stream; give a checkpoint of vshard's"
        ) from error
    return state, told
