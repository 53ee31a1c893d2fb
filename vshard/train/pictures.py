"""Evaluation pictures: masked input, output and target side by side, frames downwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.files import write_file
from ..records.png import decode_png, encode_png
from ..stream.samples import CROP_PX, FRAMES, evaluation_sample
from ..stream.sheet import tinted
from ..stream.split import open_split

if TYPE_CHECKING:
    import torch


def side_by_side(columns: list[torch.Tensor]) -> np.ndarray:
    """Set clips side by side, each clip's frames downwards.

    Args:
        columns: (T, 3, H, W) float tensors in [0, 1], all of one size.

    Returns:
        (T * H, len(columns) * W, 3) uint8.
    """
    images = [clip.detach().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu() for clip in columns]
    return np.concatenate([clip.flatten(0, 1).numpy() for clip in images], axis=1)


def demo_picture(split: Path, pictures: Path, output: Path) -> None:
    """Set a split's records beside what the network made of them, as the PNG ``output``.

    A row a record: a frame with its holes coloured, its mask, then the network's input, output and target of the
    middle frame of the evaluation picture.

    Args:
        split: the split that was evaluated.
        pictures: the folder of its evaluation pictures, ``{record}.png``.
        output: PNG to write.

    Raises:
        DatasetError, RecordError: the split or a picture cannot be read.
        OutputError: the picture cannot be written.
    """
    records = open_split(split)
    rows = []
    for record in range(len(records)):
        path = pictures / f"{record}.png"
        strip = decode_png(path.read_bytes(), str(path))
        side = strip.shape[1] // 3
        middle = FRAMES // 2
        sample = evaluation_sample(records, record, position=record)
        border = (CROP_PX - side) // 2
        inner = slice(border, border + side)
        rgb = sample.rgb[middle, inner, inner]
        hole = sample.hole[middle, inner, inner].astype(np.uint8) * np.uint8(255)
        mask = np.repeat(hole[..., None], 3, axis=2)
        rows.append(
            np.concatenate([tinted(rgb, hole), mask, strip[middle * side : (middle + 1) * side]], axis=1)
        )
    write_file(output, encode_png(np.concatenate(rows)))
