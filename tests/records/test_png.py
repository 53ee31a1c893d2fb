from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vshard.base.errors import RecordError
from vshard.records.png import SIGNATURE, decode_png, encode_png, png_size

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
images = st.one_of(
    shapes.flatmap(lambda hw: arrays(np.uint8, hw)), shapes.flatmap(lambda hw: arrays(np.uint8, (*hw, 3)))
)


def with_pillow(image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", **options)
    return out.getvalue()


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


@given(images, st.integers(1, 45))
def test_pillow_reads_what_we_write_and_so_do_we(image: np.ndarray, stop: int) -> None:
    data = encode_png(image)
    assert (np.array(Image.open(io.BytesIO(data))) == image).all()
    assert (decode_png(data, "x") == image).all()
    assert (decode_png(data, "x", stop_row=stop) == image[:stop]).all()
    assert png_size(data[:33], "x") == image.shape[:2]
    assert encode_png(image) == data


@given(images)
def test_we_read_what_pillow_writes(image: np.ndarray) -> None:
    assert (decode_png(with_pillow(image), "x") == image).all()


def test_other_kinds_of_png() -> None:
    gray = (np.arange(64 * 48) % 251).astype(np.uint8).reshape(48, 64)
    rgb = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1)
    alpha = np.dstack([rgb, np.full_like(gray, 255)])
    assert (decode_png(with_pillow(alpha), "x") == rgb).all()
    palette = Image.fromarray(gray).convert("P")
    out = io.BytesIO()
    palette.save(out, "PNG")
    assert (decode_png(out.getvalue(), "x") == np.array(palette.convert("RGB"))).all()
    bits = io.BytesIO()
    Image.fromarray(gray > 100).save(bits, "PNG")
    assert (decode_png(bits.getvalue(), "x") == np.where(gray > 100, 255, 0)).all()
    assert (decode_png(with_pillow(rgb), "x", stop_row=5) == rgb[:5]).all()


def test_many_data_chunks_are_joined() -> None:
    image = np.arange(3000, dtype=np.uint32).astype(np.uint8).reshape(50, 60)
    data = encode_png(image)
    body = data[data.index(b"IDAT") + 4 : -16]
    joined = data[:33] + chunk(b"IDAT", body[:100]) + chunk(b"IDAT", body[100:]) + chunk(b"IEND", b"")
    assert (decode_png(joined, "x") == image).all()


@given(st.data())
def test_a_flipped_byte_or_a_cut_is_an_error_never_wrong_pixels(data: st.DataObject) -> None:
    rng = np.random.default_rng(3)
    png = bytearray(encode_png(rng.integers(0, 50, (24, 24, 3), dtype=np.uint8)))
    if data.draw(st.booleans()):
        png[data.draw(st.integers(0, len(png) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del png[data.draw(st.integers(0, len(png) - 1)) :]
    with pytest.raises(RecordError, match=r"frame\.png") as caught:
        decode_png(bytes(png), "frame.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1 << 30, 1 << 30), (16385, 1), (16384, 16384)])
def test_a_bomb_is_refused_before_memory_is_taken(size: tuple[int, int]) -> None:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = (
        SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    with pytest.raises(RecordError, match="pixels; allowed"):
        decode_png(data, "bomb.png")


def test_too_little_data_is_an_error() -> None:
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    rows = b"\x02" + bytes(192)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows * 10)) + chunk(b"IEND", b"")
    with pytest.raises(RecordError, match="holds 1930 of 12352 bytes"):
        decode_png(data, "short.png")
