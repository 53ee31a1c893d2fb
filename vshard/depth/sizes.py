"""The sizes at which depth networks look at a frame: whole numbers in, whole numbers out (golden tables, section 13).

A network sees the frame shrunk until one side is the resolution, every side a multiple of the network's patch.
All roundings are the original's, floating-point quirks included.
"""

from __future__ import annotations

import math
from typing import NamedTuple

ASPECT_MAX = 4  # Depth Anything sees longer frames squeezed to this
DEPTH_PRO_SIDE = 1536


class View(NamedTuple):
    """A network's input in pixels: the frame itself fills what the padding on all four sides leaves."""

    height: int
    width: int
    pad_height: int = 0
    pad_width: int = 0


def depth_anything_view(height: int, width: int, resolution: int | None) -> View:
    """Size a frame for Depth Anything.

    The short side is ``resolution`` (None: 392) rounded up to 14, also where that enlarges the frame; the long side
    follows the aspect, 4:1 at most, and is cut down to 14, but not below the short side.
    """
    multiple = 14
    short = _up(resolution or 392, multiple)
    shorter, longer = sorted((height, width))
    long = max(short, _down(int(min(longer, ASPECT_MAX * shorter) * (short / shorter)), multiple))
    return View(short, long) if height < width else View(long, short)


def zoe_view(
    height: int,
    width: int,
    resolution: int | None,
    *,
    landscape_height: int = 384,
    portrait_height: int = 512,
    multiple: int = 32,
) -> View:
    """Size a frame for ZoeDepth, with room for a reflected border.

    The height is ``resolution`` rounded up to ``multiple``, or one of the two defaults (square counts as portrait);
    the width follows the aspect and is rounded up. A frame of that height or less is not enlarged: its sides are
    cut down to ``multiple``. Portrait frames are padded to a square.
    """
    landscape = width > height
    tall = _up(resolution or (landscape_height if landscape else portrait_height), multiple)
    if tall < height:
        wide = _up(math.ceil(width * tall / height), multiple)
    else:
        tall, wide = _down(height, multiple), _down(width, multiple)
    pad_height = _padding(tall, height)
    if landscape:
        return View(tall, wide, pad_height, _padding(wide, width))
    inner_width = width * (tall - 2 * pad_height) / height
    return View(tall, tall, pad_height, round((tall - inner_width) / 2))


def depth_pro_view(_height: int, _width: int, _resolution: int | None) -> View:
    """Give the one size that Depth Pro is made for; the frame is squeezed into the square."""
    return View(DEPTH_PRO_SIDE, DEPTH_PRO_SIDE)


def _padding(side: int, source: int) -> int:
    """Give the border at each end of ``side`` for a frame of ``source`` pixels."""
    border = math.floor(3 * math.sqrt(source / 2))
    return round(side * border / (source + 2 * border))


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _down(side: int, multiple: int) -> int:
    return side // multiple * multiple
