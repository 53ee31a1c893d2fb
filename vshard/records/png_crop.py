"""A record's PNG -> what a training sample takes of it, at the least cost: a crop of a frame, or a whole mask."""

from __future__ import annotations

import numpy as np

from ..base.errors import RecordError
from .png import decode_png, decode_with_pillow
from .png_parts import parse
from .png_rows import inflate_bands, inflate_rows, undo_filters


def decode_crop(data: bytes | memoryview, name: str, top: int, left: int, out: np.ndarray) -> None:
    """Read a crop of a PNG whose every chunk's CRC is right.

    Of our own PNGs only the bands are inflated that the crop touches; of others, the rows down to its end. The
    pixels are those of :func:`.png.decode_png`, but for a file made to deceive: restart points that hold for the
    bands read and lie about others are seen by :func:`.png.check_pixels` alone.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        top: the crop's first row, at least 0.
        left: its first column, at least 0.
        out: (height, width, 3) uint8, contiguous, takes the crop; a gray picture three times.

    Raises:
        RecordError: as :func:`.png.decode_png`, or the crop reaches out of the picture.
    """
    assert top >= 0 and left >= 0 and out.shape[2] == 3 and out.flags.c_contiguous
    parts = parse(data, name)
    header = parts.header
    bottom, right = top + out.shape[0], left + out.shape[1]
    if bottom > header.height or right > header.width:
        raise RecordError(
            f"{name}: is {header.width}x{header.height} pixels, its crop reaches to {right}x{bottom}; "
            "make the record again"
        )
    if header.is_plain:
        rows, above = inflate_bands(parts, top, bottom), 0
        if rows is None:
            rows = inflate_rows(parts, bottom, name)
        elif parts.bands is not None:
            above = top // parts.bands.rows * parts.bands.rows
        wanted = range(top - above, bottom - above)
        if header.channels == 1:
            out[...] = undo_filters(header, rows, wanted, left, right, name)[..., None]
        else:
            undo_filters(header, rows, wanted, left, right, name, out)
        return
    image = decode_with_pillow(data, name)[top:bottom, left:right]
    out[...] = image if image.ndim == 3 else image[..., None]


def decode_mask(data: bytes | memoryview, name: str) -> np.ndarray:
    """Read a mask from a PNG whose every chunk's CRC is right.

    Args:
        data: the file's bytes.
        name: what to call it in an error.

    Returns:
        (H, W) uint8, of a colour picture its first channel; perhaps read-only, perhaps a view.

    Raises:
        RecordError: as :func:`.png.decode_png`.
    """
    parts = parse(data, name)
    header = parts.header
    if header.is_plain and header.channels == 1:
        rows = inflate_rows(parts, header.height, name)
        return undo_filters(header, rows, range(header.height), 0, header.width, name)
    image = decode_png(data, name)
    return image if image.ndim == 2 else image[..., 0]
