"""Crops and masks equal slices of the whole picture, whoever wrote the file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vshard.base.errors import RecordError
from vshard.records.png import SIGNATURE, decode_png, encode_png
from vshard.records.png_crop import decode_crop, decode_mask
from vshard.records.png_parts import chunk, parse

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 210), st.integers(1, 30))


def soft_picture(seed: int, size: tuple[int, ...]) -> np.ndarray:
    """Give an image that changes little from row to row, as photographs do: size, uint8."""
    steps = np.random.default_rng(seed).integers(-3, 4, size)
    return np.cumsum(steps, axis=0).astype(np.uint8)


def with_pillow(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def of_old(image: np.ndarray) -> bytes:
    """Write as vshard did before restart points: every row Up."""
    rows = image.reshape(len(image), -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    return of_filtered(np.hstack([np.full((len(rows), 1), 2, np.uint8), rows - above]), image)


def of_filtered(rows: np.ndarray, image: np.ndarray) -> bytes:
    """Write rows, a filter's byte before each, as a PNG of the size and kind of ``image``."""
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def crop_of(data: bytes | memoryview, top: int, left: int, height: int, width: int) -> np.ndarray:
    # What lies beside the crop must stay as it was.
    frame = np.full((3, height, width, 3), 77, np.uint8)
    decode_crop(data, "x", top, left, frame[1])
    assert (frame[[0, 2]] == 77).all()
    return frame[1]


def draw_crop(data: st.DataObject, height: int, width: int) -> tuple[int, int, int, int]:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    return (
        top,
        left,
        data.draw(st.integers(1, height - top)),
        data.draw(st.integers(1, width - left)),
    )


@given(SEEDS, SIZES, st.booleans(), st.sampled_from([encode_png, of_old, with_pillow]), st.data())
def test_a_crop_is_a_slice_of_the_picture(
    seed: int,
    size: tuple[int, int],
    colour: bool,
    write: Callable[[np.ndarray], bytes],
    data: st.DataObject,
) -> None:
    image = soft_picture(seed, (*size, 3) if colour else size)
    png = write(image)
    top, left, height, width = draw_crop(data, *size)
    slices = slice(top, top + height), slice(left, left + width)
    want = image if colour else np.repeat(image[..., None], 3, axis=2)
    assert (crop_of(png, top, left, height, width) == want[slices]).all()
    assert (crop_of(memoryview(png), top, left, height, width) == want[slices]).all()
    assert (decode_mask(png, "x") == (image[..., 0] if colour else image)).all()
    assert (decode_mask(memoryview(png), "x") == decode_mask(png, "x")).all()
    assert (decode_png(memoryview(png), "x", stop_row=top + height) == image[: top + height]).all()


@given(SEEDS, st.tuples(st.integers(1, 40), st.integers(1, 12)), st.booleans(), st.data())
def test_rows_of_any_filters_are_read_as_pillow_does(
    seed: int, size: tuple[int, int], colour: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    shape = (*size, 3) if colour else size
    rows = rng.integers(0, 256, (size[0], 1 + int(np.prod(shape[1:]))), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, data.draw(st.integers(1, 5)), size[0])
    png = of_filtered(rows, np.empty(shape, np.uint8))
    want = np.array(Image.open(io.BytesIO(png)))
    assert (decode_png(png, "x") == want).all()
    top, left, height, width = draw_crop(data, *size)
    got = crop_of(png, top, left, height, width)
    whole = want if colour else np.repeat(want[..., None], 3, axis=2)
    assert (got == whole[top : top + height, left : left + width]).all()


DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind in DEPTHS for depth in DEPTHS[kind]])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_all_colour_types_and_depths_are_read_as_pillow_does(
    kind: int, depth: int, transparent: bool
) -> None:
    rng = np.random.default_rng(depth)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    height, width = 9, 8
    rows = rng.integers(0, 256, (height, 1 + width * channels * depth // 8), dtype=np.uint8)
    rows[:, 0] = 0 if kind == 3 else rng.integers(0, 5, height)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if kind == 3:
        parts.append(chunk(b"PLTE", rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes()))
    if transparent and kind in (0, 2, 3):
        parts.append(chunk(b"tRNS", bytes({0: 2, 2: 6, 3: 2}[kind])))
    png = b"".join((SIGNATURE, *parts, chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b"")))
    with Image.open(io.BytesIO(png)) as image:
        want = np.array(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"))
    assert (decode_png(png, "x") == want).all()
    colour = want if want.ndim == 3 else np.repeat(want[..., None], 3, axis=2)
    assert (crop_of(png, 2, 3, 6, 4) == colour[2:8, 3:7]).all()
    assert (decode_mask(png, "x") == (want if want.ndim == 2 else want[..., 0])).all()


def test_a_crop_inflates_only_the_bands_it_touches() -> None:
    image = soft_picture(5, (200, 20, 3))
    parts = parse(encode_png(image), "x")
    assert parts.bands is not None
    body = bytearray(parts.body)
    first, second, last = (parts.bands.edges[place] for place in (0, 1, 3))
    body[first:second] = bytes(second - first)
    body[last:] = bytes(len(body) - last)
    claim = struct.pack(">BHI4I", 1, 64, zlib.crc32(b"IDAT" + body), *parts.bands.edges[:-1])
    png = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 200, 8, 2, 0, 0, 0))
    png += chunk(b"vsRP", claim) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert (crop_of(png, 64, 4, 128, 9) == image[64:192, 4:13]).all()
    for top in (63, 65):
        with pytest.raises(RecordError, match="x: damaged"):
            crop_of(png, top, 4, 128, 9)


@pytest.mark.parametrize(("top", "left"), [(5, 0), (0, 7), (1 << 40, 0)])
def test_a_crop_that_reaches_out_is_an_error(top: int, left: int) -> None:
    for png in (encode_png(soft_picture(1, (20, 16, 3))), with_pillow(soft_picture(1, (20, 16)))):
        with pytest.raises(
            RecordError, match=rf"f\.png: is 16x20 pixels, .* to {left + 10}x{top + 16}; make"
        ):
            decode_crop(png, "f.png", top, left, np.empty((16, 10, 3), np.uint8))


@pytest.mark.parametrize("image", [soft_picture(2, (70, 5, 3)), soft_picture(2, (9, 7))], ids=["rgb", "mask"])
def test_no_flipped_byte_and_no_cut_passes(image: np.ndarray) -> None:
    png = encode_png(image)
    assert len(png) < 1500
    out = np.empty((3, 4, 3), np.uint8)
    for at in range(len(png)):
        flipped = png[:at] + bytes([png[at] ^ (1 << at % 8)]) + png[at + 1 :]
        for damaged in (flipped, png[:at]):
            with pytest.raises(RecordError, match=r"f\.png: ") as caught:
                decode_crop(damaged, "f.png", 1, 1, out)
            assert "\n" not in str(caught.value)
            with pytest.raises(RecordError, match=r"f\.png: "):
                decode_mask(damaged, "f.png")


def test_errors_name_the_part_in_plain_words() -> None:
    png = encode_png(soft_picture(3, (70, 5, 3)))
    # The byte after a chunk's kind; of the header the last, so that its size stays allowed.
    for kind, after, part in (
        (b"IDAT", 4, "pixels"),
        (b"IHDR", 19, "header"),
        (b"vsRP", 4, "restart points"),
    ):
        at = png.index(kind) + after
        with pytest.raises(RecordError, match=rf"wrong checksum of its {part}\)"):
            decode_png(png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :], "x")
