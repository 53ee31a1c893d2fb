"""A record's files -> one training sample: 12 frames and masks of 256x256 pixels (facts of the original, section 7).

Masks are read first and choose the crop; only then are the colour frames read, and of those only the rows down
to the crop's end are inflated. A sample is uint8; floats, colour change and target are made on the training device
by :func:`finish`. Every draw comes from the sample's own generator, so a sample is reproducible alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..base.errors import RecordError
from ..base.seeds import generator
from ..records.png import decode_png
from .split import Split, read_files

if TYPE_CHECKING:
    import torch

FRAMES = 12
CROP_PX = 256
TARGET_BORDER_PX = 16
CROP_CANDIDATES = 4
EVAL_GRID_PX = 64
OUTER_DILATION_MAX_PX = 20
INNER_DILATION_MAX_PX = 4


@dataclass(frozen=True, repr=False)
class Sample:
    """What training sees, before floats.

    ``rgb``: (12, 256, 256, 3) uint8. ``hole``: (12, 256, 256) bool, True = to fill. ``gray``: whether the colours
    become gray. ``scale``, ``bias``: (3,) float32, colour = colour * scale + bias. ``position``: place in the epoch.
    """

    rgb: np.ndarray
    hole: np.ndarray
    gray: bool
    scale: np.ndarray
    bias: np.ndarray
    key: str
    position: int

    def __repr__(self) -> str:
        return f"Sample({self.key} at {self.position}, rgb {self.rgb.shape})"


def training_sample(split: Split, record: int, *, seed: int, epoch: int, position: int) -> Sample:
    """Draw a sample of ``record``: random 12 frames, colour, dilations, best of four crops by mask sum.

    Raises:
        RecordError: the record has fewer than 12 frames, is smaller than 256 pixels, or is damaged.
    """
    rng = generator(seed, "sample", epoch, position)
    first = int(rng.integers(0, _check_frames(split, record) - FRAMES + 1))
    chosen = list(range(first, first + FRAMES))
    if rng.random() < 0.5:
        chosen.reverse()
    gray, scale, bias = _draw_colour(rng)
    masks = _read_masks(split, record, chosen)
    if rng.random() < 0.5:
        masks = grow(masks, int(rng.integers(1, OUTER_DILATION_MAX_PX + 1)))
    if rng.random() < 0.25:
        steps = int(rng.integers(1, INNER_DILATION_MAX_PX + 1))
        masks = grow(masks[..., ::-1], steps)[..., ::-1]
    height, width = masks.shape[1:]
    rows = rng.integers(0, height - CROP_PX + 1, CROP_CANDIDATES)
    columns = rng.integers(0, width - CROP_PX + 1, CROP_CANDIDATES)
    row, column = _fullest(masks, list(zip(rows.tolist(), columns.tolist(), strict=True)))
    return _cut(split, record, chosen, masks, row, column, gray, scale, bias, position)


def evaluation_sample(split: Split, record: int, *, position: int) -> Sample:
    """Give the sample of ``record`` that evaluation uses: middle frames, fullest crop on a grid of 64 pixels.

    Raises:
        RecordError: as :func:`training_sample`.
    """
    first = (_check_frames(split, record) - FRAMES) // 2
    chosen = list(range(first, first + FRAMES))
    masks = _read_masks(split, record, chosen)
    height, width = masks.shape[1:]
    grid = [
        (row, column)
        for row in range(0, height - CROP_PX + 1, EVAL_GRID_PX)
        for column in range(0, width - CROP_PX + 1, EVAL_GRID_PX)
    ]
    row, column = _fullest(masks, grid)
    unchanged = (False, np.ones(3, np.float32), np.zeros(3, np.float32))
    return _cut(split, record, chosen, masks, row, column, *unchanged, position)


def finish(sample: Sample, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make the tensors of a training step on ``device``.

    Returns:
        x: (12, 3, 256, 256) float32 in [0, 1]; mask: (12, 1, 256, 256) float32 in {0, 1}, 1 = hole;
        y: (12, 3, 224, 224) float32, x without a 16-pixel border.
    """
    import torch

    rgb = torch.from_numpy(sample.rgb).to(device, non_blocking=True)
    mask = torch.from_numpy(sample.hole).to(device, non_blocking=True)[:, None].to(torch.float32)
    x = rgb.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if sample.gray:
        x = x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    elif sample.scale.min() < 1:
        scale = torch.from_numpy(sample.scale).to(device)[:, None, None]
        bias = torch.from_numpy(sample.bias).to(device)[:, None, None]
        x = (x * scale + bias).clamp_(0, 1)
    border = slice(TARGET_BORDER_PX, -TARGET_BORDER_PX)
    return x, mask, x[..., border, border]


def grow(masks: np.ndarray, steps: int) -> np.ndarray:
    """Grow holes to the right by ``steps`` pixels; every value above 0 counts as hole and becomes 255.

    Args:
        masks: (T, H, W) uint8.
        steps: pixels; 0 leaves the masks as they are.

    Returns:
        (T, H, W) uint8.
    """
    if steps <= 0:
        return masks
    hole = masks > 0
    # After k rounds the hole has grown by 2^k - 1 pixels; the last round goes the rest of the way.
    reach = 0
    while reach < steps:
        step = min(reach + 1, steps - reach)
        grown = hole.copy()
        grown[..., step:] |= hole[..., :-step]
        hole, reach = grown, reach + step
    return hole.astype(np.uint8) * np.uint8(255)


def _draw_colour(rng: np.random.Generator) -> tuple[bool, np.ndarray, np.ndarray]:
    """Draw a colour change: half unchanged; else 5 % gray, the rest scaled and lifted per channel."""
    scale, bias = np.ones(3), np.zeros(3)
    if rng.random() < 0.5:
        return False, scale.astype(np.float32), bias.astype(np.float32)
    if rng.random() < 0.05:
        return True, scale.astype(np.float32), bias.astype(np.float32)
    scale = rng.uniform(0.7, 0.9, 3)
    bias = rng.uniform(0, 1, 3) * (1 - scale)
    return False, scale.astype(np.float32), bias.astype(np.float32)


def _fullest(masks: np.ndarray, places: list[tuple[int, int]]) -> tuple[int, int]:
    """Give the (row, column) whose crop holds the largest mask sum, the first on a tie."""
    # Sums of every crop in four look-ups: a summed-area table of the masks added over time.
    table = np.zeros((masks.shape[1] + 1, masks.shape[2] + 1), np.int64)
    table[1:, 1:] = masks.sum(axis=0, dtype=np.int64).cumsum(axis=0).cumsum(axis=1)
    sums = [
        table[row + CROP_PX, column + CROP_PX]
        - table[row, column + CROP_PX]
        - table[row + CROP_PX, column]
        + table[row, column]
        for row, column in places
    ]
    return places[int(np.argmax(sums))]


def _cut(
    split: Split,
    record: int,
    chosen: list[int],
    masks: np.ndarray,
    row: int,
    column: int,
    gray: bool,
    scale: np.ndarray,
    bias: np.ndarray,
    position: int,
) -> Sample:
    rows, columns = slice(row, row + CROP_PX), slice(column, column + CROP_PX)
    rgb = np.empty((FRAMES, CROP_PX, CROP_PX, 3), np.uint8)
    for place, (frame, data) in enumerate(read_files(split, record, [(i, "C") for i in chosen])):
        image = decode_png(data, frame, stop_row=row + CROP_PX)
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.shape[0] < row + CROP_PX or image.shape[1] < column + CROP_PX:
            raise RecordError(
                f"{frame}: is {image.shape[1]}x{image.shape[0]} or more pixels, its mask "
                f"{masks.shape[2]}x{masks.shape[1]}; make the record again"
            )
        rgb[place] = image[rows, columns]
    hole = np.ascontiguousarray(masks[:, rows, columns] > 0)
    return Sample(rgb, hole, gray, scale, bias, str(split.keys[record]), position)


def _check_frames(split: Split, record: int) -> int:
    """Give the record's frame count if 12 can be taken of it."""
    count = split.frame_count(record)
    if count < FRAMES:
        raise RecordError(
            f"{split.root}/{split.keys[record]}: has {count} frames, training takes {FRAMES}; remove it"
        )
    return count


def _read_masks(split: Split, record: int, chosen: list[int]) -> np.ndarray:
    """Read the masks of the frames ``chosen``: (12, H, W) uint8."""
    images: list[np.ndarray] = []
    for name, data in read_files(split, record, [(i, "M") for i in chosen]):
        image = decode_png(data, name)
        image = image if image.ndim == 2 else image[..., 0]
        if image.shape != (images[0] if images else image).shape or min(image.shape) < CROP_PX:
            raise RecordError(
                f"{name}: is {image.shape[1]}x{image.shape[0]} pixels; all of a record must be of one size, at "
                f"least {CROP_PX}x{CROP_PX}; remove the record"
            )
        images.append(image)
    return np.stack(images)
