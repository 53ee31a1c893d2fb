"""A picture of a split's records, for the eye: a row a record, four frames with their holes coloured, one mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..base.errors import DatasetError
from ..base.files import write_file
from ..base.stores import Place
from ..records.png import decode_png, encode_png
from ..shards.holdings import refuse_dataset
from .reader import Reader
from .split import Split, open_split

TILE_PX = 256
FRAMES_SHOWN = 4
HOLE_COLOUR = (255, 0, 200)
HOLE_OPACITY = 0.6
_CAPTION_PX = 18


def write_sheet(root: Place, output: Path, count: int) -> int:
    """Write the sheet of the split at ``root`` as the PNG ``output``; give how many records it shows.

    Raises:
        DatasetError: no records there, or it is a dataset and no split.
        OutputError: the picture cannot be written.
    """
    try:
        split = open_split(root)
    except DatasetError:
        refuse_dataset(root)
        raise
    sheet = record_sheet(split, count)
    write_file(output, encode_png(np.asarray(sheet)))
    return min(count, len(split))


def record_sheet(split: Split, count: int) -> Image.Image:
    """Draw at most ``count`` records, evenly spread over the split.

    Raises:
        RecordError: a record's picture cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)).tolist()
    reader = Reader(split)
    row_px = TILE_PX + _CAPTION_PX
    sheet = Image.new("RGB", ((FRAMES_SHOWN + 1) * TILE_PX, len(chosen) * row_px), "white")
    draw = ImageDraw.Draw(sheet)
    for row, record in enumerate(chosen):
        frames = np.linspace(0, split.frame_count(record) - 1, FRAMES_SHOWN).round().astype(int).tolist()
        masks, tiles = [], []
        for frame in frames:
            (colour,), (mask,) = reader.read(record, frame, 1)
            masks.append(_gray(decode_png(bytes(mask.data), mask.name)))
            tiles.append(tinted(decode_png(bytes(colour.data), colour.name), masks[-1]))
        area = np.mean([np.count_nonzero(mask) / mask.size for mask in masks])
        caption = (
            f"{split.keys[record]}   frames {', '.join(map(str, frames))} and the mask of frame {frames[-1]}   "
            f"holes {area:.1%} of these frames"
        )
        draw.text((4, row * row_px + 3), caption, fill="black")
        for column, tile in enumerate([*tiles, masks[-1]]):
            image = Image.fromarray(tile).convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.BOX)
            sheet.paste(image, (column * TILE_PX, row * row_px + _CAPTION_PX))
    return sheet


def tinted(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour the holes of a frame.

    Args:
        rgb: (H, W, 3) or gray (H, W) uint8.
        mask: (H, W) uint8, above 0 = hole.

    Returns:
        (H, W, 3) uint8.
    """
    colour = rgb if rgb.ndim == 3 else np.repeat(rgb[..., None], 3, axis=2)
    mixed = colour * (1 - HOLE_OPACITY) + np.array(HOLE_COLOUR) * HOLE_OPACITY
    return np.where((mask > 0)[..., None], mixed, colour).round().astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else image[..., 0]
