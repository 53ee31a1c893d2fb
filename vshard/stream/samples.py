"""A record's files -> one training sample: 12 frames and masks of 256x256 pixels (facts of the original, section 7).

Masks are read first and choose the crop; only then are the colour frames read, and of those only the rows down
to the crop's end are inflated. A sample is uint8; floats, colour change and target are made on the training device
by :func:`finish`. Every draw comes from the sample's own generator, so a sample is reproducible alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..base.errors import RecordError
from ..base.seeds import generator
from ..records.png import png_size
from ..records.png_crop import decode_crop, decode_mask
from .holes import count_frames, grow, to_frames, to_planes, to_planes_and_sum
from .reader import File, Records

if TYPE_CHECKING:
    import torch

FRAMES = 12
CROP_PX = 256
TARGET_BORDER_PX = 16
CROP_CANDIDATES = 4
EVAL_GRID_PX = 64
OUTER_DILATION_MAX_PX = 20
INNER_DILATION_MAX_PX = 4


class Colour(NamedTuple):
    """How a sample's colours change; see :class:`Sample`."""

    gray: bool
    scale: np.ndarray
    bias: np.ndarray


class Pictures(NamedTuple):
    """Where a sample's pictures go: ``rgb`` and ``hole`` of a :class:`Sample`."""

    rgb: np.ndarray
    hole: np.ndarray


_UNCHANGED = Colour(False, np.ones(3, np.float32), np.zeros(3, np.float32))


@dataclass(frozen=True, repr=False)
class Sample:
    """What training sees, before floats.

    ``rgb``: (12, 256, 256, 3) uint8. ``hole``: (12, 256, 256) bool, True = to fill. ``gray``: whether the colours
    become gray. ``scale``, ``bias``: (3,) float32, colour = colour * scale + bias. ``position``: place in the epoch.
    ``weight``: 0 for one that only keeps ranks in step, else 1. The pictures of loader processes lie in memory that is
    used again once the arrays are gone: who holds on to many makes the loader slower.
    """

    rgb: np.ndarray
    hole: np.ndarray
    gray: bool
    scale: np.ndarray
    bias: np.ndarray
    key: str
    position: int
    weight: float = 1.0

    def __repr__(self) -> str:
        return f"Sample({self.key} at {self.position}, rgb {self.rgb.shape})"


def new_pictures() -> Pictures:
    """Give memory for one sample's pictures."""
    shape = (FRAMES, CROP_PX, CROP_PX)
    return Pictures(np.empty((*shape, 3), np.uint8), np.empty(shape, bool))


def training_sample(
    reader: Records, record: int, *, seed: int, epoch: int, position: int, into: Pictures | None = None
) -> Sample:
    """Draw a sample of ``record``: random 12 frames, colour, dilations, best of four crops by mask sum.

    ``into``: where its pictures go; None for new memory.

    Raises:
        RecordError: the record has fewer than 12 frames, is smaller than 256 pixels, or is damaged.
    """
    rng = generator(seed, "sample", epoch, position)
    first = int(rng.integers(0, _check_frames(reader, record) - FRAMES + 1))
    backwards = rng.random() < 0.5
    colour = _draw_colour(rng)
    right = int(rng.integers(1, OUTER_DILATION_MAX_PX + 1)) if rng.random() < 0.5 else 0
    left = int(rng.integers(1, INNER_DILATION_MAX_PX + 1)) if rng.random() < 0.25 else 0

    def choose(height: int, width: int) -> list[tuple[int, int]]:
        rows = rng.integers(0, height - CROP_PX + 1, CROP_CANDIDATES)
        columns = rng.integers(0, width - CROP_PX + 1, CROP_CANDIDATES)
        return list(zip(rows.tolist(), columns.tolist(), strict=True))

    frames = range(first, first + FRAMES)
    order = frames[::-1] if backwards else frames
    return _cut(reader, record, order, (right, left), choose, colour, position, into or new_pictures())


def evaluation_sample(reader: Records, record: int, *, position: int, into: Pictures | None = None) -> Sample:
    """Give the sample of ``record`` that evaluation uses: middle frames, fullest crop on a grid of 64 pixels.

    Raises:
        RecordError: as :func:`training_sample`.
    """
    first = (_check_frames(reader, record) - FRAMES) // 2

    def choose(height: int, width: int) -> list[tuple[int, int]]:
        rows = range(0, height - CROP_PX + 1, EVAL_GRID_PX)
        return [(row, column) for row in rows for column in range(0, width - CROP_PX + 1, EVAL_GRID_PX)]

    frames = range(first, first + FRAMES)
    return _cut(reader, record, frames, (0, 0), choose, _UNCHANGED, position, into or new_pictures())


def finish(sample: Sample, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make the tensors of a training step on ``device``.

    Returns:
        x: (12, 3, 256, 256) float32 in [0, 1]; mask: (12, 1, 256, 256) float32 in {0, 1}, 1 = hole;
        y: (12, 3, 224, 224) float32, x without a 16-pixel border.
    """
    import torch

    # By way of bytes: torch takes eight times as long for bool.
    hole = _moved(torch.from_numpy(sample.hole), device).view(torch.uint8)
    mask = hole[:, None].to(torch.float32)
    if device.type == "cpu":
        planes = _split(sample.rgb)
    else:
        planes = _moved(torch.from_numpy(sample.rgb), device).permute(0, 3, 1, 2)
    x = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if sample.gray:
        x = x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    elif sample.scale.min() < 1:
        change = _moved(torch.from_numpy(np.stack([sample.scale, sample.bias])), device)[..., None, None]
        scale, bias = change
        x = x.mul_(scale).add_(bias).clamp_(0, 1)
    border = slice(TARGET_BORDER_PX, -TARGET_BORDER_PX)
    return x, mask, x[..., border, border]


def _split(rgb: np.ndarray) -> torch.Tensor:
    """Give (T, H, W, 3) uint8 frames as (T, 3, H, W); OpenCV does it in half the time that torch takes."""
    import cv2
    import torch

    planes = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.uint8)
    for frame, out in zip(rgb, planes, strict=True):
        cv2.split(frame, list(out))
    return torch.from_numpy(planes)


def _moved(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device; to a GPU from pinned memory, without waiting: torch keeps that memory until it is copied."""
    if device.type != "cuda":
        return pictures.to(device)
    return pictures.pin_memory().to(device, non_blocking=True)


def _draw_colour(rng: np.random.Generator) -> Colour:
    """Draw a colour change: half unchanged; else 5 % gray, the rest scaled and lifted per channel."""
    if rng.random() < 0.5:
        return _UNCHANGED
    if rng.random() < 0.05:
        return _UNCHANGED._replace(gray=True)
    scale = rng.uniform(0.7, 0.9, 3)
    bias = rng.uniform(0, 1, 3) * (1 - scale)
    return Colour(False, scale.astype(np.float32), bias.astype(np.float32))


def _cut(
    reader: Records,
    record: int,
    frames: range,
    growth: tuple[int, int],
    choose: Callable[[int, int], list[tuple[int, int]]],
    colour: Colour,
    position: int,
    into: Pictures,
) -> Sample:
    """Read the sample's frames and masks, in the order of ``frames``, and cut the fullest of the chosen crops out.

    ``growth``: pixels that holes grow to the right and to the left. ``choose``: (row, column) of crops for a picture
    of (height, width).
    """
    masks = _decode_masks(reader.masks(record, frames))
    right, left = growth
    if right or left:
        # Grown holes are all 255: only their number counts.
        planes = grow(grow(to_planes(masks), right), left, leftwards=True)
        fullness = count_frames(planes)
    else:
        planes, fullness = to_planes_and_sum(masks)
    row, column = _fullest(fullness, choose(*fullness.shape))
    for out, file in zip(into.rgb, reader.frames(record, frames), strict=True):
        _check_size(file, *fullness.shape)
        decode_crop(file.data, file.name, row, column, out)
    to_frames(planes[:, row : row + CROP_PX, column : column + CROP_PX], into.hole)
    return Sample(into.rgb, into.hole, *colour, reader.key(record), position)


def _fullest(fullness: np.ndarray, places: list[tuple[int, int]]) -> tuple[int, int]:
    """Give the (row, column) whose crop holds the largest sum, the first on a tie."""
    crops = [fullness[row : row + CROP_PX, column : column + CROP_PX] for row, column in places]
    # Of uint32, which no sum of a crop reaches the end of: half the time that int64 takes.
    sums = [np.add.reduce(crop, axis=None, dtype=np.uint32) for crop in crops]
    return places[int(np.argmax(sums))]


def _check_frames(reader: Records, record: int) -> int:
    """Give the record's frame count if 12 can be taken of it."""
    count = reader.frame_count(record)
    if count < FRAMES:
        raise RecordError(f"{reader.where(record)}: has {count} frames, training takes {FRAMES}; remove it")
    return count


def _check_size(frame: File, height: int, width: int) -> None:
    """Check that a frame is as large as its mask, else the holes would be elsewhere in it."""
    found = png_size(frame.data, frame.name)
    if found != (height, width):
        raise RecordError(
            f"{frame.name}: is {found[1]}x{found[0]} pixels, its mask {width}x{height}; make the record again"
        )


def _decode_masks(files: Iterator[File]) -> Iterator[np.ndarray]:
    """Decode masks of one size, (H, W) uint8 each; whoever takes one is done with it before the next."""
    shape: tuple[int, ...] = ()
    for file in files:
        image = decode_mask(file.data, file.name)
        shape = shape or image.shape
        if image.shape != shape or min(shape) < CROP_PX:
            raise RecordError(
                f"{file.name}: is {image.shape[1]}x{image.shape[0]} pixels; all of a record must be of one size, at "
                f"least {CROP_PX}x{CROP_PX}; remove the record"
            )
        yield image
