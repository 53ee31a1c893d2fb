"""A PNG file's bytes -> its header, pixel stream and restart points, every chunk's CRC checked on the way.

Nothing is inflated here, and the picture's size is bounded before anyone takes memory for it.

Restart points are ours: the private chunk ``vsRP`` of an RGB picture says that every so many rows begin a *band*
whose bytes can be inflated, and whose rows can be unfiltered, without those before. To every other reader the
file is a plain PNG. The chunk holds (big endian) a version (uint8, 1), the rows of a band (uint16), the CRC of
the IDAT chunk it speaks of (uint32; a tool that packs the pixels anew and keeps the chunk is so found out), and
for each band where it begins in that chunk's payload (uint32).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from isal import isal_zlib

from ..base.errors import RecordError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE_PX = 16384
MAX_PIXELS = 1 << 26
GRAY, RGB = 0, 2
ZLIB_HEADER_BYTES = 2
EMPTY_FINAL_BLOCK = b"\x03\x00"
# After the last band: that block, the Adler sum of 4 bytes.
STREAM_END_BYTES = len(EMPTY_FINAL_BLOCK) + 4
_CHANNELS = {GRAY: 1, RGB: 3}
_RESTART = b"vsRP"
_RESTART_HEAD = ">BHI"
_RESTART_VERSION = 1


class Header(NamedTuple):
    """The header chunk; ``width`` and ``height`` in pixels."""

    width: int
    height: int
    bit_depth: int
    colour_type: int
    compression: int
    filtering: int
    interlace: int

    @property
    def is_plain(self) -> bool:
        """Whether pixels are whole bytes, row by row: 8-bit gray or RGB."""
        return self[2:] in ((8, GRAY, 0, 0, 0), (8, RGB, 0, 0, 0))

    @property
    def channels(self) -> int:
        """Bytes a pixel of a plain picture."""
        return _CHANNELS[self.colour_type]

    @property
    def stride(self) -> int:
        """Bytes a row of a plain picture, the filter's byte first."""
        return self.width * self.channels + 1


class Bands(NamedTuple):
    """Restart points as a file claims them: ``rows`` a band; ``edges`` in the IDAT payload, one more than bands."""

    rows: int
    edges: tuple[int, ...]


class Parts(NamedTuple):
    """What a PNG consists of: ``body`` is its zlib stream."""

    header: Header
    body: bytes | memoryview
    transparent: bool
    bands: Bands | None


def chunk(kind: bytes, payload: bytes | bytearray) -> bytes:
    """Give a chunk's bytes: length, kind, payload, CRC."""
    return b"".join((struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", _crc(kind, payload))))


def png_bytes(
    width: int, height: int, channels: int, body: bytes | bytearray, bands: Bands | None = None
) -> bytes:
    """Give the bytes of a plain PNG whose zlib stream is ``body``."""
    colour_type = RGB if channels == 3 else GRAY
    parts = [
        SIGNATURE,
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
        chunk(b"IDAT", body),
        chunk(b"IEND", b""),
    ]
    if bands is not None:
        head = struct.pack(_RESTART_HEAD, _RESTART_VERSION, bands.rows, _crc(b"IDAT", body))
        parts.insert(2, chunk(_RESTART, head + struct.pack(f">{len(bands.edges) - 1}I", *bands.edges[:-1])))
    return b"".join(parts)


def parse_header(data: bytes | memoryview, name: str) -> Header:
    """Read the header from a PNG's first 33 bytes.

    Raises:
        RecordError: no PNG, or larger than 16384 a side or 2^26 pixels.
    """
    if data[:8] != SIGNATURE or data[8:16] != b"\x00\x00\x00\rIHDR" or len(data) < 33:
        raise RecordError(f"{name}: not a PNG file ({len(data)} bytes); make or fetch the record again")
    header = Header(*struct.unpack_from(">IIBBBBB", data, 16))
    if not (
        1 <= header.width <= MAX_SIDE_PX
        and 1 <= header.height <= MAX_SIDE_PX
        and header.width * header.height <= MAX_PIXELS
    ):
        raise RecordError(
            f"{name}: is {header.width}x{header.height} pixels; allowed are 1 to {MAX_SIDE_PX} a side "
            f"and {MAX_PIXELS} in all"
        )
    return header


def parse(data: bytes | memoryview, name: str) -> Parts:
    """Walk a PNG's chunks up to its end, checking each CRC.

    Raises:
        RecordError: as :func:`parse_header`, or damaged or cut off.
    """
    header = parse_header(data, name)
    view = memoryview(data)
    size = len(view)
    position = len(SIGNATURE)
    body: list[memoryview] = []
    claims: list[memoryview] = []
    transparent = False
    body_crc = 0
    while position + 12 <= size:
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 12 + length
        if end > size:
            break
        crc = int.from_bytes(view[end - 4 : end], "big")
        if isal_zlib.crc32(view[position + 4 : end - 4]) != crc:
            raise RecordError(f"{name}: damaged (wrong checksum of its {_part(kind)}); fetch it again")
        if (kind == b"IHDR") != (position == len(SIGNATURE)):
            raise RecordError(f"{name}: damaged (a second header); make or fetch the record again")
        if kind == b"IDAT":
            body.append(view[position + 8 : end - 4])
            body_crc = crc
        elif kind == _RESTART:
            claims.append(view[position + 8 : end - 4])
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"IEND":
            if len(body) != 1:
                return Parts(header, b"".join(body), transparent, None)
            bands = _bands(header, claims, len(body[0]), body_crc) if claims else None
            return Parts(header, body[0], transparent, bands)
        position = end
    raise RecordError(f"{name}: cut off after {size} bytes; make or fetch the record again")


def _bands(header: Header, claims: list[memoryview], body_bytes: int, body_crc: int) -> Bands | None:
    """Give the restart points if they can be meant for these pixels; None leaves the file a PNG without."""
    claim = claims[0]
    head_bytes = struct.calcsize(_RESTART_HEAD)
    if len(claims) > 1 or len(claim) < head_bytes or not header.is_plain:
        return None
    version, rows, crc = struct.unpack_from(_RESTART_HEAD, claim)
    if version != _RESTART_VERSION or rows == 0 or crc != body_crc:
        return None
    count = -(-header.height // rows)
    if len(claim) != head_bytes + 4 * count:
        return None
    edges = (*struct.unpack_from(f">{count}I", claim, head_bytes), body_bytes - STREAM_END_BYTES)
    if edges[0] != ZLIB_HEADER_BYTES or any(a >= b for a, b in pairwise(edges)):
        return None
    return Bands(rows, edges)


def _crc(kind: bytes, payload: bytes | bytearray) -> int:
    return isal_zlib.crc32(payload, isal_zlib.crc32(kind))


def _part(kind: bytes) -> str:
    """Name a chunk for an error."""
    known = {b"IHDR": "header", b"IDAT": "pixels", b"IEND": "end", _RESTART: "restart points"}
    return known.get(kind, "additions")
