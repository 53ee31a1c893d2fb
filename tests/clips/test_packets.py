from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vshard.clips.decode import decode_frames
from vshard.clips.packets import H264Reader, Picture
from vshard.clips.probe import probe


class BitWriter:
    """Writes the codes of H.264's syntax (ITU-T H.264, section 7.2)."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, width: int, value: int) -> BitWriter:
        self.bits += format(value, f"0{width}b")
        return self

    def codes(self, *values: int) -> BitWriter:
        """Unsigned Exp-Golomb codes."""
        for value in values:
            code = format(value + 1, "b")
            self.bits += "0" * (len(code) - 1) + code
        return self

    def raw(self, data: bytes) -> BitWriter:
        """Whole bytes, on a byte's border."""
        self.bits += "0" * (-len(self.bits) % 8) + "".join(format(byte, "08b") for byte in data)
        return self

    def unit(self, header: int) -> bytes:
        """The NAL unit, with the bytes that keep start codes out of it."""
        bits = self.bits + "1"
        bits += "0" * (-len(bits) % 8)
        payload = b""
        for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
            payload += b"\3" if payload.endswith(b"\0\0") and byte <= 3 else b""
            payload += bytes([byte])
        return bytes([header]) + payload


def sequence(
    *, profile: int = 77, chroma: int = 1, separate: bool = False, lists: bool = False, order_type: int = 0,
    gaps: bool = False, frames_only: bool = True,
) -> bytes:  # fmt: skip
    """A sequence parameter set; frame_num has 4 bits."""
    bits = BitWriter().put(8, profile).put(16, 30).codes(0)
    if profile == 244:
        bits.codes(chroma)
        if chroma == 3:
            bits.put(1, separate)
        bits.codes(0, 0).put(1, 0).put(1, lists)
        if lists:
            for index in range(12 if chroma == 3 else 8):
                bits.put(1, index % 2)
                if index % 2:
                    # All values 8 (no difference), but the last list ends at once: -8 makes the next scale 0.
                    last = index == (11 if chroma == 3 else 7)
                    bits.codes(*([16] if last else [0] * (16 if index < 6 else 64)))
    bits.codes(0, order_type)
    if order_type == 0:
        bits.codes(0)
    elif order_type == 1:
        bits.put(1, 0).codes(2**30, 2**31 - 1, 2, 2**24, 2**26)  # long runs of zeros, then two offsets
    return bits.codes(1).put(1, gaps).codes(7, 5).put(1, frames_only).unit(0x67)


PICTURES = BitWriter().codes(0, 0).put(2, 0).codes(0, 0, 0).put(3, 0).codes(0, 0, 0).put(3, 0b100).unit(0x68)


def picture(
    number: int, *, header: int = 0x61, kind: int = 5, plane: int | None = None, bottom: int | None = None
) -> bytes:
    """A slice: kind 5 is P, 7 is I; header 0x65 is an IDR picture, 0x61 a reference, 0x01 none."""
    bits = BitWriter().codes(0, kind, 0)
    if plane is not None:
        bits.put(2, plane)
    bits.put(4, number)
    if bottom is not None:
        bits.put(1, int(bottom >= 0))
        if bottom >= 0:
            bits.put(1, bottom)
    return bits.codes(3, 3, 3).unit(header)


def packet(units: list[bytes], *, is_key: bool = False, lengths: bool = False) -> av.Packet:
    made = av.Packet(b"".join((len(u).to_bytes(4, "big") if lengths else b"\0\0\1") + u for u in units))
    made.is_keyframe = is_key
    return made


IDR = {"header": 0x65, "kind": 7}


@pytest.mark.parametrize("lengths", [False, True])
def test_numbers_tell_of_lost_references(lengths: bool) -> None:
    units = [sequence(), PICTURES]
    header = b"".join(b"\0\0\0\1" + unit for unit in units)
    if lengths:
        header = b"\1\x4d\0\x1e\xff\xe1" + len(units[0]).to_bytes(2, "big") + units[0]
        header += b"\1" + len(units[1]).to_bytes(2, "big") + units[1]
    reader = H264Reader(header)
    numbers = [
        (0, IDR),
        (1, {}),
        (2, {}),
        (3, {"header": 0x01}),
        (3, {"header": 0x01}),
        (3, {}),
        (5, {}),
        (6, {}),
    ]
    lost = [
        reader.read(packet([b"\x09\xf0", picture(number, **more)], lengths=lengths)).lost_before
        for number, more in numbers
    ]
    assert lost == [False, False, False, False, False, False, True, False]
    # The count goes on behind 15 with 0, and a new IDR picture begins it anew.
    assert [
        reader.read(packet([picture(number, **more)], lengths=lengths)).lost_before
        for number, more in [(7, {}), (15, {}), (0, {}), (0, IDR), (1, {}), (3, {})]
    ] == [False, True, False, False, False, True]


def test_nothing_is_known_of_what_was_before_the_first_packet() -> None:
    reader = H264Reader(None)
    start = packet([sequence(), PICTURES, picture(9, kind=7)], is_key=True)
    assert reader.read(start) == Picture(is_key=True, gives_frame=True, lost_before=False)
    assert reader.read(packet([picture(11)])).lost_before


def test_a_key_frame_is_intra() -> None:
    reader = H264Reader(None)
    assert reader.read(packet([sequence(), PICTURES, picture(0, **IDR)], is_key=True)).is_key
    assert not reader.read(packet([picture(1, kind=5)], is_key=True)).is_key
    assert not reader.read(packet([picture(2, kind=7)])).is_key


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"order_type": 1},
        {"order_type": 2},
        {"profile": 244},
        {"profile": 244, "lists": True},
        {"profile": 244, "chroma": 3, "lists": True},
    ],
)
def test_fields_are_paired_behind_any_parameters(more: dict[str, int]) -> None:
    reader = H264Reader(None)
    reader.read(packet([sequence(frames_only=False, **more), PICTURES, picture(0, bottom=0, **IDR)]))
    fields = [(0, 1), (1, 1), (1, 0), (2, -1), (3, 0), (4, 0), (4, 1)]  # -1: a frame; a field of 3 is missing
    read = [reader.read(packet([picture(number, bottom=bottom)])) for number, bottom in fields]
    assert [picture.gives_frame for picture in read] == [False, True, False, True, True, True, False]
    assert not any(picture.lost_before for picture in read)


def test_planes_of_their_own_and_allowed_gaps() -> None:
    reader = H264Reader(None)
    begin = [sequence(profile=244, chroma=3, separate=True), PICTURES, picture(0, plane=0, **IDR)]
    reader.read(packet(begin))
    assert not reader.read(packet([picture(1, plane=2)])).lost_before
    assert reader.read(packet([picture(3, plane=1)])).lost_before
    for order_type in (0, 1, 2):
        for gaps in (False, True):
            reader.read(packet([sequence(gaps=gaps, order_type=order_type), PICTURES, picture(0, **IDR)]))
            assert reader.read(packet([picture(5)])).lost_before != gaps


@pytest.mark.parametrize("data", [b"\0\0\1\x61", b"\0\0\1\x61\0\0\0", b"\0\0\1\x67\x4d", b"\0\0\1", b"junk"])
def test_what_cannot_be_read_is_left_to_the_decoder(data: bytes) -> None:
    reader = H264Reader(None)
    reader.read(packet([sequence(), PICTURES, picture(0, **IDR)]))
    damaged = av.Packet(data)
    damaged.is_keyframe = True
    assert reader.read(damaged) == Picture(is_key=True, gives_frame=True, lost_before=False)


def write_field_pictures(path: Path, count: int, group: int) -> Path:
    """Write 32x64 H.264 of which every field is a picture and packet of its own, in raw macroblocks (I_PCM).

    The top field of frame k is 40 + 5k everywhere, the bottom field 100 more. No encoder at hand writes these;
    broadcasters do.
    """
    fields = BitWriter().put(8, 77).put(16, 30).codes(0, 0, 0, 4, 1).put(1, 0).codes(1, 1).put(5, 0b00100)
    parameters = [fields.unit(0x67), PICTURES]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 64, "yuv420p"
        for field in range(2 * count):
            frame, bottom = divmod(field, 2)
            number = frame % group
            starts = number == 0 and not bottom
            bits = BitWriter().codes(0, 7, 0).put(4, number).put(1, 1).put(1, bottom)
            if starts:
                bits.codes(frame // group % 2)
            bits.put(8, field % (2 * group)).put(2 if starts else 1, 0).codes(0, 1)
            for _ in range(4):
                bits.codes(25).raw(bytes([40 + 5 * frame + 100 * bottom]) * 256 + bytes([128]) * 128)
            units = [*(parameters if starts else []), bits.unit(0x65 if starts else 0x61)]
            made = packet([b"\x09\xf0", *units], is_key=starts)
            made.pts = made.dts = field
            made.time_base, made.stream = Fraction(1, 50), stream
            container.mux(made)
    return path


def test_two_fields_of_their_own_make_one_frame(tmp_path: Path) -> None:
    info = probe(write_field_pictures(tmp_path / "fields.ts", 16, group=8))
    assert info.interlaced
    assert (len(info.pts), info.fps, info.damage) == (16, 25, None)
    frames = list(decode_frames(info))
    assert [(frame.pts, frame.damaged) for frame in frames] == [(pts, False) for pts in info.pts]
    for number, frame in enumerate(frames):
        top = np.frombuffer(frame.picture.planes[0], np.uint8).reshape(64, -1)[0, :32]
        assert (top == 40 + 5 * number).all()
