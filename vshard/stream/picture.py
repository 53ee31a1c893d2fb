"""One training sample as a picture: what the network is given at one place of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..base.errors import DatasetError, OptionError
from ..base.files import write_file
from ..base.report import Silent
from ..base.stores import Place, facts
from ..records.png import encode_png
from .reader import Reader
from .samples import CROP_PX, FRAMES, Sample, finish, training_sample
from .sheet import tinted
from .split import Split, open_dataset, open_split
from .training import StreamOptions, TrainingStream

_COLUMNS = 6
_TITLE_PX = 34


def write_sample(
    data: Place,
    output: Path,
    options: StreamOptions,
    *,
    epoch: int,
    position: int,
    state: dict[str, Any] | None,
) -> Sample:
    """Draw the sample at a position of an epoch as training does, and write its picture as the PNG ``output``.

    Args:
        data: a dataset, whose ``train/`` is taken without what ``eval/`` has too, or a split.
        output: where to.
        options: what training asks of its stream.
        epoch: from 1.
        position: from 0.
        state: of the stream in a checkpoint: the losses that decide the order; None where they are not needed.

    Raises:
        OptionError: there is no such position, or the epoch's order depends on losses that are not given.
        CheckpointError: ``state`` is none.
        DatasetError, RecordError: the data cannot be read.
        OutputError: the picture cannot be written.
    """
    split = _training_split(data)
    stream = TrainingStream(split, options, Silent())
    if state is not None:
        stream.load_state_dict(state)
        if stream.epoch != epoch:
            raise OptionError(
                f"--epoch {epoch}: the checkpoint is of epoch {stream.epoch}, and each epoch's order depends on the "
                "losses before it; give that epoch"
            )
    elif epoch > 1 and options.hard_examples:
        raise OptionError(
            f"--epoch {epoch}: its order depends on the losses before; give --checkpoint with a run's last, or "
            "--disable-hard-example"
        )
    else:
        stream.go_to(epoch)
    if position >= len(stream.plan):
        raise OptionError(f"--sample {position}: the epoch has samples 0 to {len(stream.plan) - 1}")
    reader = Reader(split)
    sample = training_sample(
        reader, stream.record_at(position), seed=options.seed, epoch=epoch, position=position
    )
    write_file(output, encode_png(np.asarray(sample_picture(sample, epoch))))
    return sample


def sample_picture(sample: Sample, epoch: int) -> Image.Image:
    """Set a sample's frames, as the network is given them, above the same with their holes coloured."""
    x, _, _ = finish(sample, torch.device("cpu"))
    frames = x.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    holes = sample.hole.astype(np.uint8)
    shown = [*frames, *(tinted(frame, hole) for frame, hole in zip(frames, holes, strict=True))]
    rows = len(shown) // _COLUMNS
    picture = Image.new("RGB", (_COLUMNS * CROP_PX, _TITLE_PX + rows * CROP_PX), "white")
    for number, tile in enumerate(shown):
        row, column = divmod(number, _COLUMNS)
        picture.paste(Image.fromarray(tile), (column * CROP_PX, _TITLE_PX + row * CROP_PX))
    ImageDraw.Draw(picture).text((4, 3), describe(sample, epoch), fill="black")
    return picture


def describe(sample: Sample, epoch: int) -> str:
    """Say in two lines what was drawn."""
    if sample.gray:
        colour = "gray"
    elif sample.scale.min() < 1:
        scale, bias = (
            ", ".join(f"{value:.2f}" for value in values) for values in (sample.scale, sample.bias)
        )
        colour = f"times {scale} plus {bias}"
    else:
        colour = "as it is"
    area = sample.hole.mean()
    return (
        f"{sample.key}   epoch {epoch}, sample {sample.position}\n"
        f"{FRAMES} frames of {CROP_PX}x{CROP_PX}; colour {colour}; holes {area:.1%}"
    )


def _training_split(data: Place) -> Split:
    if facts(data / "train") is None:
        return open_split(data)
    try:
        return open_dataset(data)[0]
    except DatasetError:
        if facts(data / "eval") is not None:
            raise
        return open_split(data / "train")
