"""Restart points: what we write, and files that lie about them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vshard.base.errors import RecordError
from vshard.records.png import BAND_ROWS, SIGNATURE, check_pixels, decode_png, encode_png, recode_png
from vshard.records.png_crop import decode_crop
from vshard.records.png_parts import Bands, chunk, parse, png_bytes
from vshard.records.png_rows import filter_bands

WIDTH = 12


def soft_picture(seed: int, height: int, width: int = WIDTH) -> np.ndarray:
    steps = np.random.default_rng(seed).integers(-3, 4, (height, width, 3))
    return np.cumsum(steps, axis=0).astype(np.uint8)


def banded(
    image: np.ndarray,
    cuts: list[int],
    rows: int,
    flush: int = zlib.Z_FULL_FLUSH,
    filtered: np.ndarray | None = None,
) -> bytes:
    """Deflate bands that begin at the rows ``cuts``; claim restart points every ``rows`` rows."""
    filtered = filter_bands(image, rows) if filtered is None else filtered
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    body, edges = b"\x78\x9c", [2]
    for start, stop in zip(cuts, [*cuts[1:], len(image)], strict=True):
        body += deflater.compress(filtered[start:stop].tobytes()) + deflater.flush(flush)
        edges.append(len(body))
    body += b"\x03\x00" + zlib.adler32(filtered.tobytes()).to_bytes(4, "big")
    return png_bytes(image.shape[1], len(image), 3, body, Bands(rows, tuple(edges)))


def crop_of(png: bytes, top: int, height: int) -> np.ndarray:
    out = np.empty((height, WIDTH - 3, 3), np.uint8)
    decode_crop(png, "x", top, 2, out)
    return out


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, payload) for kind, payload in parts)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (63, 7), (64, 7), (65, 7), (129, 31), (512, 512)])
def test_other_readers_see_a_plain_png(size: tuple[int, int]) -> None:
    colour, mask = soft_picture(1, *size), (soft_picture(2, *size)[..., 0] > 200).astype(np.uint8) * 255
    for image in (colour, mask):
        png = encode_png(image)
        read = Image.open(io.BytesIO(png))
        assert read.mode == ("RGB" if image.ndim == 3 else "L")
        assert (np.array(read) == image).all()
        by_opencv = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        assert by_opencv is not None and (by_opencv == (image[..., ::-1] if image.ndim == 3 else image)).all()
        assert (decode_png(png, "x") == image).all()
        assert check_pixels(png, "x") == size
    kinds = [kind for kind, _ in chunks(encode_png(colour))]
    assert kinds == [b"IHDR", b"vsRP", b"IDAT", b"IEND"]


def test_the_same_picture_is_the_same_bytes_in_every_process() -> None:
    lines = (
        "import hashlib, numpy as np; from vshard.records.png import encode_png\n"
        "image = np.cumsum(np.random.default_rng(1).integers(-3, 4, (200, 90, 3)), axis=0).astype(np.uint8)\n"
        "print(hashlib.sha256(encode_png(image) + encode_png(image[..., 0])).hexdigest())"
    )
    image = soft_picture(1, 200, 90)
    here = hashlib.sha256(encode_png(image) + encode_png(image[..., 0])).hexdigest()
    there = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    # Where the array lies in memory does not matter.
    wide = np.zeros((200, 180, 3), np.uint8)
    wide[:, ::2] = image
    assert encode_png(wide[:, ::2]) == encode_png(image)


@given(st.integers(0, 99), st.integers(1, 200), st.integers(1, 70), st.data())
def test_bands_of_any_number_of_rows_are_read(seed: int, height: int, rows: int, data: st.DataObject) -> None:
    image = soft_picture(seed, height)
    png = banded(image, list(range(0, height, rows)), rows)
    assert parse(png, "x").bands is not None
    top = data.draw(st.integers(0, height - 1))
    count = data.draw(st.integers(1, height - top))
    assert (crop_of(png, top, count) == image[top : top + count, 2:-1]).all()
    assert (decode_png(png, "x") == image).all()
    assert check_pixels(png, "x") == (height, WIDTH)


def test_bands_of_wrong_length_are_seen() -> None:
    image = soft_picture(4, 200)
    png = banded(image, [0, 63, 128, 192], 64)
    with pytest.raises(RecordError, match="x: damaged .wrong restart points"):
        check_pixels(png, "x")
    assert (decode_png(png, "x") == image).all()
    # The first band is a row short, the second a row long: who reads either reads from the start.
    for top, count in ((0, 200), (10, 20), (63, 2), (64, 2), (100, 90)):
        assert (crop_of(png, top, count) == image[top : top + count, 2:-1]).all()


def test_a_band_that_refers_back_is_seen() -> None:
    tile = np.random.default_rng(3).integers(0, 256, (8, WIDTH, 3), dtype=np.uint8)
    image = np.tile(tile, (16, 1, 1))
    png = banded(image, [0, 64], 64, zlib.Z_SYNC_FLUSH)
    with pytest.raises(RecordError, match="wrong restart points"):
        check_pixels(png, "x")
    assert (decode_png(png, "x") == image).all()
    assert (crop_of(png, 70, 40) == image[70:110, 2:-1]).all()


def test_a_band_whose_first_row_looks_up_is_seen() -> None:
    image = soft_picture(6, 128)
    filtered = filter_bands(image, 128)
    png = banded(image, [0, 64], 64, filtered=filtered)
    with pytest.raises(RecordError, match="wrong restart points"):
        check_pixels(png, "x")
    assert (crop_of(png, 70, 40) == image[70:110, 2:-1]).all()


def test_restart_points_that_cannot_be_meant_leave_a_plain_png() -> None:
    image = soft_picture(7, 130)
    head, (_, claim), body, end = chunks(encode_png(image))
    unmeant = [
        b"",
        claim[:6],
        claim[:-4],
        claim + bytes(4),
        b"\x02" + claim[1:],
        claim[:1] + b"\0\0" + claim[3:],
        claim[:1] + b"\0\x20" + claim[3:],
        claim[:3] + bytes([claim[3] ^ 1]) + claim[4:],
        claim[:7] + bytes(4) + claim[11:],
        claim[:11] + claim[15:] + claim[11:15],
        claim[:-4] + b"\xff" * 4,
    ]
    files = [joined([head, (b"vsRP", other), body, end]) for other in unmeant]
    files += [joined([head, (b"vsRP", claim), (b"vsRP", claim), body, end]), joined([head, body, end])]
    files.append(joined([head, (b"vsRP", claim), (b"IDAT", body[1][:40]), (b"IDAT", body[1][40:]), end]))
    for png in files:
        assert parse(png, "x").bands is None
        assert (crop_of(png, 66, 64) == image[66:130, 2:-1]).all()
        assert (decode_png(png, "x") == image).all()
        assert check_pixels(png, "x") == (130, WIDTH)
        assert parse(recode_png(png, "x"), "x").bands is not None
    gray = chunks(encode_png(image[..., 0]))
    assert (decode_png(joined([gray[0], (b"vsRP", claim), *gray[1:]]), "x") == image[..., 0]).all()


@given(st.integers(0, 300), st.integers(1, 255), st.integers(0, 100), st.integers(1, 30))
def test_a_changed_claim_under_right_checksums_gives_the_right_pixels(
    at: int, flip: int, top: int, count: int
) -> None:
    image = soft_picture(8, 130)
    head, (_, claim), body, end = chunks(encode_png(image))
    at %= len(claim)
    changed = claim[:at] + bytes([claim[at] ^ flip]) + claim[at + 1 :]
    png = joined([head, (b"vsRP", changed), body, end])
    assert (crop_of(png, top, count) == image[top : top + count, 2:-1]).all()
    assert (decode_png(png, "x") == image).all()


@given(st.integers(0, 2000), st.integers(1, 255), st.integers(0, 100), st.integers(1, 30), st.booleans())
def test_changed_pixels_under_right_checksums_are_an_error_or_what_pillow_reads(
    at: int, flip: int, top: int, count: int, claimed: bool
) -> None:
    def as_png(body: bytes) -> bytes:
        crc = zlib.crc32(b"IDAT" + body) if claimed else 0
        return joined([head, (b"vsRP", claim[:3] + crc.to_bytes(4, "big") + claim[7:]), (b"IDAT", body), end])

    head, (_, claim), (_, body), end = chunks(encode_png(soft_picture(8, 130)))
    at %= len(body)
    changed = body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :]
    try:
        rows = zlib.decompress(changed[2:], -15)
    except zlib.error:
        rows = b""
    if at >= 2 and changed[-4:] == body[-4:] and rows == zlib.decompress(body):
        # Only bits that pad a byte before a restart point have changed: the same picture, said otherwise.
        assert check_pixels(as_png(changed), "x") == (130, WIDTH)
    else:
        with pytest.raises(RecordError, match="x: "):
            check_pixels(as_png(changed), "x")
    if len(rows) != 130 * (1 + 3 * WIDTH) or at < 2:
        # No reader can give the whole picture; what comes before the damage, or in other bands, may be given.
        with contextlib.suppress(RecordError):
            crop_of(as_png(changed), top, count)
        return
    png = as_png(changed[:-4] + zlib.adler32(rows).to_bytes(4, "big"))
    try:
        want = np.array(Image.open(io.BytesIO(png)))
    except OSError:  # an unknown filter
        with pytest.raises(RecordError, match="unknown filter"):
            check_pixels(png, "x")
        return
    assert (decode_png(png, "x") == want).all()
    assert (crop_of(png, top, count) == want[top : top + count, 2:-1]).all()


def test_recode_turns_every_other_form_into_ours_and_leaves_ours_alone() -> None:
    image = soft_picture(9, 100)
    for one in (image, image[..., 0]):
        ours = encode_png(one)
        assert recode_png(ours, "x") is ours
        saved = io.BytesIO()
        Image.fromarray(one).save(saved, "PNG")
        up = np.vstack([one[:1], one[1:] - one[:-1]]).reshape(100, -1)
        old = zlib.compress(np.hstack([np.full((100, 1), 2, np.uint8), up]).tobytes())
        of_old = png_bytes(WIDTH, 100, 3 if one.ndim == 3 else 1, old)
        for other in (saved.getvalue(), of_old):
            assert (decode_png(other, "x") == one).all()
            assert recode_png(other, "x") == ours
    wrong = banded(image, [0, 50], BAND_ROWS)
    assert recode_png(wrong, "x") == encode_png(image)
