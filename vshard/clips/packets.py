"""What compressed packets say of themselves, read from their headers without decoding.

In: packets in decoding order. Out: whether one needs no other picture, whether it gives a frame of its own, and
whether a picture that it may be built from was lost before it. FFmpeg tells none of these: it fills the gap of a lost
H.264 picture with a copy of another and goes on without a sign (all frames until the next key frame are wrong), it
calls periodic intra refresh a key frame, and passes second fields and hidden pictures as packets like others.
Formulas: ITU-T H.264, sections 7.3.2.1, 7.3.3 and 7.4.3 (frame_num); RFC 6386, section 9.1 (VP8).
Costs about 5 µs a packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
_INTRA_SLICES = (2, 4)  # I and SI, of slice_type modulo 5
_PROFILES_WITH_CHROMA = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)
# A slice's header up to its field flags is shorter than this, emulation prevention included.
_HEADER_BYTES = 32


@dataclass(frozen=True)
class Picture:
    """One packet: ``is_key`` if decoding can start at it, ``gives_frame`` unless it is hidden or completes the
    frame of the packet before, ``lost_before`` if a picture is missing between the packet before and this one.
    """

    is_key: bool
    gives_frame: bool
    lost_before: bool


class AnyReader:
    """Takes packets at the container's word."""

    def read(self, packet: Any) -> Picture:
        """Give the facts of a packet (av.Packet)."""
        return Picture(packet.is_keyframe, gives_frame=True, lost_before=False)


class Vp8Reader:
    """Knows the pictures that are never shown (alternate references)."""

    def read(self, packet: Any) -> Picture:
        """Give the facts of a packet (av.Packet)."""
        return Picture(packet.is_keyframe, gives_frame=bool(memoryview(packet)[0] & 0x10), lost_before=False)


def picture_reader(codec: Any) -> AnyReader | Vp8Reader | H264Reader:
    """Give the reader for the packets of one decoding (codec: av.CodecContext)."""
    if codec.name == "h264":
        return H264Reader(codec.extradata)
    return Vp8Reader() if codec.name == "vp8" else AnyReader()


@dataclass(frozen=True)
class _Sequence:
    """What slices need of their sequence parameter set."""

    frame_num_bits: int
    gaps_allowed: bool
    frames_only: bool
    separate_planes: bool


class H264Reader:
    """Reads packets in decoding order; remembers parameter sets and the last reference picture's number."""

    def __init__(self, extradata: bytes | None) -> None:
        self._length_bytes = 0  # 0: start codes
        self._sequences: dict[int, _Sequence] = {}
        self._picture_sets: dict[int, int] = {}
        self._last_reference: int | None = None
        self._open_field: tuple[int, int] | None = None  # frame_num and parity of a first field
        if extradata and extradata[0] == 1:
            self._length_bytes = (extradata[4] & 3) + 1
            for unit in _configuration_units(extradata):
                self._keep_parameters(unit)
        elif extradata:
            for unit in _units(extradata, 0):
                self._keep_parameters(unit)

    def read(self, packet: Any) -> Picture:
        """Give the facts of a packet (av.Packet)."""
        try:
            for unit in _units(bytes(packet), self._length_bytes):
                if unit and unit[0] & 31 in (_SLICE, _IDR_SLICE):
                    return self._slice(unit[:_HEADER_BYTES], packet.is_keyframe)
                self._keep_parameters(unit)
        except (ValueError, KeyError, IndexError):
            pass  # damaged: the decoder meets the same bytes and finds its error
        return Picture(packet.is_keyframe, gives_frame=True, lost_before=False)

    def _keep_parameters(self, unit: bytes) -> None:
        if unit and unit[0] & 31 == _SPS:
            number, sequence = _sequence(_Bits(unit[1:]))
            self._sequences[number] = sequence
        elif unit and unit[0] & 31 == _PPS:
            bits = _Bits(unit[1:])
            self._picture_sets[bits.unsigned()] = bits.unsigned()

    def _slice(self, unit: bytes, is_key: bool) -> Picture:
        is_idr, is_reference = unit[0] & 31 == _IDR_SLICE, bool(unit[0] & 0x60)
        bits = _Bits(unit[1:])
        bits.unsigned()  # first_mb_in_slice
        is_intra = bits.unsigned() % 5 in _INTRA_SLICES
        sequence = self._sequences[self._picture_sets[bits.unsigned()]]
        if sequence.separate_planes:
            bits.take(2)
        number = bits.take(sequence.frame_num_bits)
        field = None
        if not sequence.frames_only and bits.take(1):
            field = (number, bits.take(1))
        second = field is not None and self._open_field == (number, 1 - field[1])
        self._open_field = None if second else field
        lost = False
        if self._last_reference is not None and not (is_idr or second or sequence.gaps_allowed):
            following = (self._last_reference + 1) % (1 << sequence.frame_num_bits)
            # A picture that resets the count midway (memory_management_control_operation 5, which no common
            # encoder uses) would look like a loss too; letting number 1 pass would hide the loss of an IDR picture.
            lost = number not in (self._last_reference, following)
        if is_reference:
            self._last_reference = number
        return Picture(is_key and is_intra, not second, lost)


class _Bits:
    """Reads bits from the front of a NAL unit's payload; at its end a ValueError comes (negative shift)."""

    def __init__(self, payload: bytes) -> None:
        raw = payload.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(raw, "big"), 8 * len(raw)

    def take(self, count: int) -> int:
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def unsigned(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Cut a packet into NAL units: by length prefixes, or by start codes where ``length_bytes`` is 0."""
    if length_bytes:
        at = 0
        while at + length_bytes < len(data):
            size = int.from_bytes(data[at : at + length_bytes], "big")
            at += length_bytes
            yield data[at : at + size]
            at += size
        return
    start = data.find(b"\0\0\1")
    while start >= 0:
        following = data.find(b"\0\0\1", start + 3)
        yield data[start + 3 : following if following >= 0 else len(data)]
        start = following


def _configuration_units(extradata: bytes) -> Iterator[bytes]:
    """Give the parameter sets of an MP4 or Matroska header (ISO/IEC 14496-15, avcC)."""
    at = 5
    for mask in (0x1F, 0xFF):  # the number of sequence sets shares its byte with reserved bits
        count = extradata[at] & mask
        at += 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def _sequence(bits: _Bits) -> tuple[int, _Sequence]:
    profile = bits.take(8)
    bits.take(16)  # constraint flags and level
    number = bits.unsigned()
    separate = False
    if profile in _PROFILES_WITH_CHROMA:
        chroma = bits.unsigned()
        separate = chroma == 3 and bool(bits.take(1))
        bits.unsigned()  # bit depths
        bits.unsigned()
        bits.take(1)
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    frame_num_bits = bits.unsigned() + 4
    order_type = bits.unsigned()
    if order_type == 0:
        bits.unsigned()
    elif order_type == 1:
        bits.take(1)
        bits.signed()
        bits.signed()
        for _ in range(bits.unsigned()):
            bits.signed()
    bits.unsigned()  # reference frames
    gaps_allowed = bool(bits.take(1))
    bits.unsigned()  # width and height in macroblocks
    bits.unsigned()
    return number, _Sequence(frame_num_bits, gaps_allowed, bool(bits.take(1)), separate)


def _skip_scaling_list(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
