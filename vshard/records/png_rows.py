"""The zlib stream of a plain PNG (8-bit gray or RGB) -> rows of pixels.

Rows filtered None need nothing. Rows filtered Up are sums down the columns: done 16 rows at a time for all bands
and blocks at once, a few dozen vectorised additions a picture. Rows that others filtered (Paeth, mixed) are given
to FFmpeg as a PNG that is not compressed: its machine code is needed for them (1.1 ms a crop; OpenCV takes 1.7,
Pillow 2.6), its inflate, twice as slow as ours, is not, nor what lies below or right of the wanted part.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from deflate import DeflateError, deflate_decompress, zlib_compress, zlib_decompress
from isal import isal_zlib

from ..base.errors import RecordError
from .png_parts import EMPTY_FINAL_BLOCK, Header, Parts, png_bytes

NONE, SUB, UP = 0, 1, 2
_FILTERS_LAST = 4
# Rows summed one after the other; the sums of blocks are then added. 8 and 32 are slower by a tenth.
_BLOCK_ROWS = 16


def inflate_rows(parts: Parts, stop: int, name: str) -> np.ndarray:
    """Inflate the rows [0, stop) of a plain picture, from its first byte on.

    Returns:
        (stop, stride) uint8, a row's filter first; read-only.

    Raises:
        RecordError: the stream is damaged or too short.
    """
    header = parts.header
    wanted, whole = stop * header.stride, header.height * header.stride
    raw: bytes | bytearray = b""
    # libdeflate cannot stop early, and is an eighth faster than ISA-L.
    if stop * 8 >= header.height * 7:
        try:
            raw = zlib_decompress(parts.body, whole)
        except DeflateError:  # ISA-L takes streams that run on after the last row, and tells what is wrong
            raw = b""
    if len(raw) < wanted:
        try:
            raw = isal_zlib.decompressobj().decompress(parts.body, wanted)
        except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise RecordError(
                f"{name}: damaged (its pixels do not inflate); make or fetch the record again"
            ) from error
    if len(raw) < wanted:
        raise RecordError(f"{name}: holds {len(raw)} of {wanted} bytes; make or fetch the record again")
    return np.frombuffer(raw, np.uint8, wanted).reshape(stop, header.stride)


def inflate_bands(parts: Parts, start: int, stop: int) -> np.ndarray | None:
    """Inflate only the bands that hold the rows [start, stop).

    Returns:
        (rows, stride) uint8 from the first of these bands on, read-only; None if the file has no restart points,
        or they are wrong as far as can be seen here: then :func:`inflate_rows` is right.
    """
    if parts.bands is None:
        return None
    band_rows, edges = parts.bands
    first, last = start // band_rows, (stop - 1) // band_rows
    rows = min((last + 1) * band_rows, parts.header.height) - first * band_rows
    packed = b"".join((parts.body[edges[first] : edges[last + 1]], EMPTY_FINAL_BLOCK))
    try:
        raw = deflate_decompress(packed, rows * parts.header.stride)
    except DeflateError:
        return None
    if len(raw) != rows * parts.header.stride:
        return None
    inflated = np.frombuffer(raw, np.uint8).reshape(rows, parts.header.stride)
    return inflated if inflated[:, 0].tobytes() == band_filters(rows, band_rows) else None


def undo_filters(
    header: Header,
    rows: np.ndarray,
    wanted: range,
    left: int,
    right: int,
    name: str,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Undo the filters of rows that need none before them.

    Args:
        header: of the picture; its height is not used.
        rows: (n, stride) uint8.
        wanted: the rows to give, of [0, n).
        left: first column wanted, in pixels.
        right: one after the last column wanted.
        name: what to call it in an error.
        out: contiguous uint8 of the result's shape, takes it; None for memory that may be read-only, or a view.

    Returns:
        (len(wanted), right - left) or (len(wanted), right - left, 3) uint8.

    Raises:
        RecordError: a row has a filter that PNG does not know.
    """
    channels = header.channels
    shape = (len(wanted), right - left, channels) if channels > 1 else (len(wanted), right - left)
    columns = slice(1 + left * channels, 1 + right * channels)
    filters = rows[:, 0].tobytes()
    if filters.count(NONE) == len(filters):
        pixels = rows[wanted.start : wanted.stop, columns]
    elif (band_rows := _band_rows(filters)) is None:
        pixels = _undo_any(rows[: wanted.stop], channels, wanted.start, left, right, name)
    else:
        taking = None if out is None else out.reshape(len(wanted), -1)
        pixels = _undo_up(rows, band_rows, channels, columns, wanted, taking)
        if out is not None:
            return out
    if out is None:
        return pixels.reshape(shape)
    out[...] = pixels.reshape(shape)
    return out


def filter_bands(image: np.ndarray, band_rows: int) -> np.ndarray:
    """Filter an RGB image Up, the first row of every band Sub.

    Args:
        image: (H, W, 3) uint8.
        band_rows: rows of a band.

    Returns:
        (H, 1 + 3 W) uint8.
    """
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image).reshape(height, -1)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = np.frombuffer(band_filters(height, band_rows), np.uint8)
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    starts = rows[::band_rows]
    filtered[::band_rows, 1 : 1 + channels] = starts[:, :channels]
    filtered[::band_rows, 1 + channels :] = starts[:, channels:] - starts[:, :-channels]
    return filtered


def check_filters(rows: np.ndarray, name: str) -> None:
    """Check that every row has a filter that PNG knows.

    Raises:
        RecordError: one has not.
    """
    if rows[:, 0].max() > _FILTERS_LAST:
        raise RecordError(f"{name}: damaged (unknown filter); make or fetch the record again")


@lru_cache(maxsize=256)
def band_filters(rows: int, band_rows: int) -> bytes:
    """Give the filters of ``rows`` rows from a band's first on."""
    band = bytes([SUB]) + bytes([UP]) * (band_rows - 1)
    return (band * -(-rows // band_rows))[:rows]


def _band_rows(filters: bytes) -> int | None:
    """Find the rows of a band from the filters alone; None if they are not ours, today's or of old (all Up)."""
    count = len(filters)
    if filters[0] == UP:
        return count if filters.count(UP) == count else None
    second = filters.find(SUB, 1)
    band_rows = second if second > 0 else count
    return band_rows if filters == band_filters(count, band_rows) else None


def _undo_up(
    rows: np.ndarray, band_rows: int, channels: int, columns: slice, wanted: range, out: np.ndarray | None
) -> np.ndarray:
    """Sum the columns of every band, ``columns`` in bytes of a row: (len(wanted), columns) uint8.

    In memory the same row of every block lies side by side, so that one addition goes over all of them.
    """
    bands = -(-len(rows) // band_rows)
    block = _BLOCK_ROWS if band_rows % _BLOCK_ROWS == 0 or bands == 1 else band_rows
    blocks = -(-band_rows // block)
    if len(rows) < bands * blocks * block:
        # What the rows after the last become is never looked at.
        whole = np.empty((bands * blocks * block, rows.shape[1]), np.uint8)
        whole[: len(rows)] = rows
        rows = whole
    width = columns.stop - columns.start
    sums = np.empty((block, blocks, bands, width), np.uint8)
    sums.transpose(2, 1, 0, 3)[...] = rows.reshape(bands, blocks, block, -1)[..., columns]
    if rows[0, 0] == SUB:
        starts = rows[:: blocks * block, 1 : columns.stop].reshape(bands, -1, channels)
        summed = np.add.accumulate(starts, axis=1, dtype=np.uint8).reshape(bands, -1)
        sums[0, 0] = summed[:, columns.start - 1 :]
    lines = sums.reshape(block, -1)
    for row in range(1, block):
        np.add(lines[row], lines[row - 1], lines[row])
    by_block = sums.reshape(block, blocks, -1)
    for place in range(1, blocks):
        np.add(by_block[:, place], by_block[-1, place - 1], by_block[:, place])
    order = _lines_in_order(bands, blocks, block)[wanted.start : wanted.stop]
    # Without a mode NumPy would take a copy first.
    return np.take(sums.reshape(-1, width), order, axis=0, out=out, mode="clip")


@lru_cache(maxsize=64)
def _lines_in_order(bands: int, blocks: int, block: int) -> np.ndarray:
    """Give where each row lies among the lines of (block, blocks, bands): (rows,) int64."""
    lines = np.arange(block * blocks * bands).reshape(block, blocks, bands)
    return lines.transpose(2, 1, 0).reshape(-1)


def _undo_any(rows: np.ndarray, channels: int, top: int, left: int, right: int, name: str) -> np.ndarray:
    """Undo any filters, with FFmpeg: (n - top, (right - left) * channels) uint8."""
    import av

    check_filters(rows, name)
    # No filter looks right or down: columns after the last wanted one can go.
    kept = np.ascontiguousarray(rows[:, : 1 + right * channels])
    decoder = av.CodecContext.create("png", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    (frame,) = decoder.decode(av.Packet(png_bytes(right, len(rows), channels, zlib_compress(kept, 0))))
    plane = frame.planes[0]
    pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(len(rows), plane.line_size)
    return pixels[top:, left * channels : right * channels]
