"""Evaluation pictures: masked input, output and target side by side, frames downwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.files import write_file
from ..records.png import decode_png, encode_png
from ..stream.reader import Reader
from ..stream.samples import CROP_PX, FRAMES, evaluation_sample
from ..stream.sheet import tinted
from ..stream.split import open_split

if TYPE_CHECKING:
    import torch

DEMO_RECORDS = 3
_TITLE_PX = 20


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

    Two rows a record, an early and a late frame: the frame with its holes coloured, its mask, then the network's
    input, output and target out of the evaluation picture.

    Args:
        split: the split that was evaluated.
        pictures: the folder of its evaluation pictures, ``{record}.png``.
        output: PNG to write.

    Raises:
        DatasetError, RecordError: the split or a picture cannot be read.
        OutputError: the picture cannot be written.
    """
    from PIL import Image, ImageDraw

    reader = Reader(open_split(split))
    fullest = sorted(
        (evaluation_sample(reader, i, position=i) for i in range(len(reader.split))),
        key=lambda sample: -np.count_nonzero(sample.hole),
    )[:DEMO_RECORDS]
    rows = []
    for sample in fullest:
        path = pictures / f"{sample.position}.png"
        strip = decode_png(path.read_bytes(), str(path))
        side = strip.shape[1] // 3
        border = (CROP_PX - side) // 2
        inner = slice(border, border + side)
        for frame in (1, FRAMES - 2):
            hole = sample.hole[frame, inner, inner].astype(np.uint8) * np.uint8(255)
            shown = tinted(sample.rgb[frame, inner, inner], hole)
            mask = np.repeat(hole[..., None], 3, axis=2)
            rows.append(np.concatenate([shown, mask, strip[frame * side : (frame + 1) * side]], axis=1))
    picture = Image.new("RGB", (rows[0].shape[1], _TITLE_PX + side * len(rows)), "white")
    picture.paste(Image.fromarray(np.concatenate(rows)), (0, _TITLE_PX))
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(
        ("frame, holes coloured", "mask", "network: input", "output, barely trained", "target")
    ):
        draw.text((column * side + 4, 5), title, fill="black")
    write_file(output, encode_png(np.asarray(picture)))
