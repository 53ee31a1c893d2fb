"""Plain PNG, written so that it is read fastest.

RGB rows are filtered *Up*, except that every 64 rows a band begins (filtered *Sub*) which zlib-ng deflates without
looking back, and a private chunk says where (:mod:`.png_parts`): any PNG reader opens the file, and ours inflates
only the bands a crop touches and undoes the filter with a few vectorised additions (:mod:`.png_rows`,
:mod:`.png_crop`). Gray pictures are masks: mostly empty, smallest and fastest with no filter at all, deflated by
libdeflate. PNGs written by others are read too, those that are not 8-bit gray or RGB by Pillow. All ways check the
CRC of every chunk and bound the picture's size before memory is taken. Both deflaters give the same bytes on every
processor. On real records this writes 9 times faster than Pillow's default at 1.07 times its size, and a training
sample's 12 crops and 12 masks are read in 9 ms of CPU, Pillow's PNGs in 26, by Pillow in 76 (``benchmarks/png.py``).
"""

from __future__ import annotations

import io
import struct

import numpy as np
from deflate import DeflateError, zlib_compress, zlib_decompress
from isal import isal_zlib
from zlib_ng import zlib_ng

from ..base.errors import RecordError
from .png_parts import (
    EMPTY_FINAL_BLOCK,
    GRAY,
    MAX_PIXELS,
    MAX_SIDE_PX,
    RGB,
    SIGNATURE,
    ZLIB_HEADER_BYTES,
    Bands,
    Parts,
    parse,
    parse_header,
    png_bytes,
)
from .png_rows import NONE, check_filters, filter_bands, inflate_bands, inflate_rows, undo_filters

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE_PX",
    "SIGNATURE",
    "check_pixels",
    "check_png",
    "decode_png",
    "decode_with_pillow",
    "encode_png",
    "png_size",
    "recode_png",
]

# 32 rows are 1.3 % larger and read a twentieth faster, 128 0.8 % smaller and a sixth slower (benchmarks/LOG.md).
BAND_ROWS = 64
# zlib-ng's level: 4 writes a fifth slower, 2 % smaller and reads a tenth faster; 2 is 5 % larger.
COLOUR_LEVEL = 3
# libdeflate's level: 2 makes masks a quarter larger, no faster; 9 an eighth smaller, three times slower.
MASK_LEVEL = 6
_ZLIB_HEADER = b"\x78\x5e"
_PALETTE = 3


def encode_png(image: np.ndarray) -> bytes:
    """Write an image as PNG bytes.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 gray, coded as a mask: few values, mostly empty.
    """
    height, width = image.shape[:2]
    if image.ndim == 2:
        filtered = np.full((height, 1 + width), NONE, np.uint8)
        filtered[:, 1:] = image
        return png_bytes(width, height, 1, zlib_compress(filtered.reshape(-1), MASK_LEVEL))
    filtered = filter_bands(image, BAND_ROWS)
    deflater = zlib_ng.compressobj(COLOUR_LEVEL, zlib_ng.DEFLATED, -zlib_ng.MAX_WBITS, 9)
    pieces, edges = [_ZLIB_HEADER], [ZLIB_HEADER_BYTES]
    for start in range(0, height, BAND_ROWS):
        band = deflater.compress(filtered[start : start + BAND_ROWS].reshape(-1))
        # A full flush ends on a whole byte, and what follows refers to nothing before it.
        rest = deflater.flush(zlib_ng.Z_FULL_FLUSH)
        pieces += (band, rest)
        edges.append(edges[-1] + len(band) + len(rest))
    pieces += (EMPTY_FINAL_BLOCK, struct.pack(">I", isal_zlib.adler32(filtered.reshape(-1))))
    return png_bytes(width, height, 3, b"".join(pieces), Bands(BAND_ROWS, tuple(edges)))


def decode_png(data: bytes | memoryview, name: str, *, stop_row: int | None = None) -> np.ndarray:
    """Read a PNG whose every chunk's CRC is right.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        stop_row: rows from here on are not wanted (fewer are inflated); at least 1.

    Returns:
        (rows, W, 3) uint8 RGB or (rows, W) uint8 gray, rows = min(H, stop_row).

    Raises:
        RecordError: not a PNG, damaged, cut off, or larger than 16384 a side or 2^26 pixels.
    """
    parts = parse(data, name)
    header = parts.header
    stop = header.height if stop_row is None else min(stop_row, header.height)
    assert stop >= 1
    if not header.is_plain:
        return decode_with_pillow(data, name)[:stop]
    rows = inflate_rows(parts, stop, name)
    image = undo_filters(header, rows, range(stop), 0, header.width, name)
    return np.require(image, requirements=["C", "W"])


def check_png(data: bytes, name: str) -> None:
    """Check that a PNG is whole and every chunk's CRC is right, without decoding it.

    Raises:
        RecordError: as :func:`decode_png`.
    """
    parse(data, name)


def recode_png(data: bytes, name: str) -> bytes:
    """Write a PNG anew in our form; one that has it, or that our form cannot hold (16 bits, alpha), stays as it is.

    Raises:
        RecordError: as :func:`decode_png`.
    """
    parts = parse(data, name)
    kind = parts.header.colour_type
    if parts.header.bit_depth > 8 or kind not in (GRAY, RGB, _PALETTE) or parts.transparent:
        return data
    if _is_current(parts, name):
        return data
    image = decode_png(data, name)
    recoded = encode_png(image)
    if not np.array_equal(decode_png(recoded, name), image):
        raise RecordError(f"{name}: came out with other pixels when coded anew; please report it")
    return recoded


def check_pixels(data: bytes, name: str) -> tuple[int, int]:
    """Check that a PNG decodes, all of it and from each restart point, without making the picture.

    Returns:
        (height, width) in pixels.

    Raises:
        RecordError: as :func:`decode_png`.
    """
    parts = parse(data, name)
    if not parts.header.is_plain:
        return decode_with_pillow(data, name).shape[:2]
    wanted = parts.header.height * parts.header.stride
    try:
        raw = zlib_decompress(parts.body, wanted)
    except DeflateError as error:
        raise RecordError(
            f"{name}: damaged (its pixels do not inflate); make or fetch the record again"
        ) from error
    if len(raw) != wanted:
        raise RecordError(f"{name}: holds {len(raw)} of {wanted} bytes; make or fetch the record again")
    rows = np.frombuffer(raw, np.uint8).reshape(parts.header.height, -1)
    check_filters(rows, name)
    if parts.bands is not None and not _bands_hold(parts, rows):
        raise RecordError(f"{name}: damaged (wrong restart points); make or fetch the record again")
    return parts.header.height, parts.header.width


def png_size(data: bytes | memoryview, name: str) -> tuple[int, int]:
    """Give (height, width) in pixels from a PNG's first bytes (33 are enough).

    Raises:
        RecordError: as :func:`decode_png`.
    """
    header = parse_header(data, name)
    return header.height, header.width


def decode_with_pillow(data: bytes | memoryview, name: str) -> np.ndarray:
    """Decode any PNG with Pillow: palette and alpha become RGB, 1-bit and gray become 8-bit gray.

    Returns:
        (H, W, 3) uint8 RGB or (H, W) uint8 gray.

    Raises:
        RecordError: damaged.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode = "L" if image.mode in ("1", "L", "I;16", "I") else "RGB"
            return np.array(image.convert(mode))
    except Exception as error:  # damaged files make Pillow raise a dozen kinds
        raise RecordError(f"{name}: damaged ({error}); make or fetch the record again") from error


def _is_current(parts: Parts, name: str) -> bool:
    """Tell whether a PNG is as :func:`encode_png` lays it out; its pixels need not be as well deflated."""
    if not parts.header.is_plain:
        return False
    rows = inflate_rows(parts, parts.header.height, name)
    if parts.header.colour_type == GRAY:
        return not rows[:, 0].any()
    return parts.bands is not None and parts.bands.rows == BAND_ROWS and _bands_hold(parts, rows)


def _bands_hold(parts: Parts, rows: np.ndarray) -> bool:
    """Tell whether every band, inflated alone, gives the rows that reading from the start gives."""
    assert parts.bands is not None
    for start in range(0, parts.header.height, parts.bands.rows):
        alone = inflate_bands(parts, start, start + 1)
        if alone is None or not np.array_equal(alone, rows[start : start + parts.bands.rows]):
            return False
    return True
