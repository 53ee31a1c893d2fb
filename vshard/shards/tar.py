"""Tar files, read strictly and in one pass, and written in one way only.

In: any file that can be read forwards, from anyone: nothing in it is believed before it is checked, and no more than
one member is in memory. Out: members that are plain files. Links, devices, folders, sparse files and whatever else a
tar may hold are refused. Written: POSIX ustar headers with fixed times, owners and modes.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from ..base.errors import ShardError
from ..records import names
from ..records.record import MAX_FILE_BYTES

BLOCK_BYTES = 512
END_MARK = bytes(2 * BLOCK_BYTES)
_NAME, _SIZE, _CHECKSUM, _TYPE = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157)
# Other writers pad a tar to their blocking factor; GNU tar's default is 10 kB.
MAX_TAIL_BYTES = 1 << 20
MAX_EXTENSION_BYTES = 1 << 16

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_LONG_NAME = tarfile.GNUTYPE_LONGNAME
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link with a long name",
}
_ADVICE = "fetch or pack it again"


class TarMember(NamedTuple):
    """A plain file in a tar: ``data`` starts at byte ``offset``, its headers at ``start``.

    Headers that are damaged are not part of it: then ``start`` is ``offset``.
    """

    name: str
    start: int
    offset: int
    data: bytes

    @property
    def stop(self) -> int:
        """Where the member ends, padding included."""
        return self.offset + padded(len(self.data))


class Torn(str):
    """What is told of a place where members may be lost or have other names; all is in order up to byte ``place``."""

    place: int

    def __new__(cls, text: str, place: int) -> Torn:
        """Add the place to the text."""
        torn = super().__new__(cls, text)
        torn.place = place
        return torn


class Readable(Protocol):
    """What a tar is read from."""

    def read(self, size: int, /) -> bytes: ...


class _DamageError(Exception):
    """What is wrong at some place of a tar, in words that follow the file's name.

    ``skip`` bytes belong to it; ``member`` is whole nonetheless.
    """

    def __init__(self, problem: str, skip: int = 0, member: TarMember | None = None) -> None:
        super().__init__(problem)
        self.skip = skip
        self.member = member


def padded(size: int) -> int:
    """Give ``size`` bytes rounded up to whole blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def header_bytes(name: str, size: int) -> bytes:
    """Write the header block of a member."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _NAME_BYTES or not 0 <= size < _SIZE_END:
        return _stock_header(name, size)
    # Only name, size and checksum differ from member to member: a tenth of the time that the library's way takes.
    digits = b"%011o" % size
    checksum = b"%06o" % (_EMPTY_SUM + sum(encoded) + sum(digits))
    block = bytearray(_EMPTY_HEADER)
    block[: len(encoded)] = encoded
    block[_SIZE.start : _SIZE.start + len(digits)] = digits
    block[_CHECKSUM.start : _CHECKSUM.start + len(checksum)] = checksum
    return bytes(block)


def _stock_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


_NAME_BYTES, _SIZE_END = 100, 8**11
_EMPTY_HEADER = _stock_header("", 0)
# Of the checksum's own place spaces count, and the digits of the size are counted anew.
_EMPTY_SUM = sum(_EMPTY_HEADER) - sum(_EMPTY_HEADER[_CHECKSUM]) + 8 * ord(" ") - sum(_EMPTY_HEADER[_SIZE])


def read_members(
    file: Readable,
    where: str,
    *,
    first: int = 0,
    stop: int | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[TarMember]:
    """Read the plain files of a tar, from its beginning to its end mark.

    Args:
        file: at its beginning.
        where: what to call it in an error.
        first: which byte of the tar the file's beginning is.
        stop: end at this byte in place of an end mark.
        on_damage: told what is wrong (:class:`Torn` where a header is); reading then goes on at the next whole header.
            A record's file of which only the header's checksum and unused bytes are wrong is told and given all the
            same. Without it damage is an error.

    Raises:
        ShardError: the tar is damaged, cut off, or has a member that is no plain file of at most 256 MiB.
    """
    source = Source(file, first)
    lost = False
    while stop is None or source.position < stop:
        place = source.position
        try:
            member = _next_member(source, lost)
        except _DamageError as damage:
            if on_damage is None:
                raise ShardError(f"{where}: {damage}; {_ADVICE}") from damage
            lost = damage.member is None
            has_headers = damage.member is not None and damage.member.start < damage.member.offset
            on_damage(str(damage) if has_headers else Torn(str(damage), place))
            source.skip(damage.skip)
            if damage.member is not None:
                yield damage.member
            continue
        if member is None:
            return
        lost = False
        yield member


def _next_member(source: Source, lost: bool) -> TarMember | None:
    """Read up to the next plain file; None at the end. ``lost``: what comes first need not be a header."""
    start = source.position
    name = size = problem = guessed = None
    while True:
        place = source.position
        block = source.take(BLOCK_BYTES)
        if not block and (lost or source.past_end):
            return None
        if len(block) < BLOCK_BYTES:
            raise _DamageError(f"is cut off (no end mark after {place + len(block)} bytes)")
        if block == END_MARK[:BLOCK_BYTES]:
            if lost or source.past_end:
                start = source.position
                continue
            if name is not None or size is not None:
                raise _DamageError(f"ends behind an extended header at byte {start}")
            _check_end(source)
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            if lost:
                start = source.position
                continue
            guessed = _guess(block)
            if guessed is None:
                raise _DamageError(f"has a damaged header at byte {place}") from error
            info = guessed
        if block[_CHECKSUM] not in _checksums(info.chksum):
            problem = f"has a damaged header at byte {place}"
        lost = False
        if info.type in _PAX:
            fields = _pax_fields(source.extension(info.size))
            if any(key.startswith("GNU.sparse") for key in fields):
                raise _DamageError(f"has a sparse file at byte {place}, only plain files are allowed")
            name, size = fields.get("path", name), _pax_size(fields, size)
            if info.type == tarfile.XGLTYPE and (name, size) != (None, None):
                raise _DamageError(f"names its members in a global header at byte {place}")
            continue
        if info.type == _LONG_NAME:
            name = source.extension(info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        break
    name = info.name if name is None else name
    size = info.size if size is None else size
    if info.type not in _PLAIN:
        kind = _KINDS.get(info.type, f"of an unknown kind (0x{info.type.hex()})")
        raise _DamageError(
            f"member {_short(name)} is {kind}, only plain files are allowed", padded(max(size, 0))
        )
    if not 0 <= size <= MAX_FILE_BYTES:
        raise _DamageError(
            f"member {_short(name)} has {size} bytes, at most {MAX_FILE_BYTES} are allowed",
            padded(max(size, 0)),
        )
    if guessed is not None and not _ends_there(source, size):
        raise _DamageError(f"has a damaged header at byte {place}")
    offset = source.position
    data = source.take(padded(size))
    if len(data) < padded(size):
        raise _DamageError(f"is cut off inside {_short(name)} (after {source.position} bytes)")
    member = TarMember(name, start if problem is None else offset, offset, data[:size])
    if data[size:].strip(b"\0"):
        problem = f"has something else than zeros behind {_short(name)}"
    if problem is not None:
        raise _DamageError(problem, member=member)
    return member


class Source:
    """A file read forwards, knowing where it is."""

    def __init__(self, file: Readable, position: int) -> None:
        self._file = file
        self._given_back = io.BytesIO()
        self.position = position
        self.past_end = False

    def go_on_past_end(self, tail: bytes) -> None:
        """Read ``tail``, the last that was taken, once more; zeros are no end mark from here on."""
        self._given_back = io.BytesIO(tail)
        self.position -= len(tail)
        self.past_end = True

    def give_back(self, data: bytes) -> None:
        """Read ``data``, the last that was taken, once more."""
        self._given_back = io.BytesIO(data + self._given_back.read())
        self.position -= len(data)

    def take(self, size: int) -> bytes:
        """Read ``size`` bytes; fewer only at the end."""
        data = self._given_back.read(size) or self._file.read(size)
        while 0 < len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Read over ``size`` bytes or to the end."""
        stop = self.position + size
        while self.position < stop and self.take(min(stop - self.position, MAX_TAIL_BYTES)):
            pass

    def extension(self, size: int) -> bytes:
        """Read the content of an extended header."""
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise _DamageError(
                f"has an extended header of {size} bytes, at most {MAX_EXTENSION_BYTES} are allowed"
            )
        data = self.take(padded(size))
        if len(data) < padded(size):
            raise _DamageError(f"is cut off inside an extended header (after {self.position} bytes)")
        return data[:size]


def _checksums(value: int) -> tuple[bytes, ...]:
    """Give how writers of today put a header's checksum; a byte of one of these that is flipped gives none of them."""
    return b"%06o\0 " % value, b"%06o \0" % value, b"%07o\0" % value


def _guess(block: bytes) -> tarfile.TarInfo | None:
    """Read a header whose checksum is wrong; None where it does not name a record's file and a size."""
    info = tarfile.TarInfo(block[_NAME].rstrip(b"\0").decode("utf-8", "surrogateescape"))
    digits = block[_SIZE].strip(b" \0")
    if (
        names.split_member(info.name) is None
        or block[_TYPE] not in _PLAIN
        or not re.fullmatch(rb"[0-7]+", digits)
        or int(digits, 8) > MAX_FILE_BYTES
    ):
        return None
    info.size = int(digits, 8)
    return info


def _ends_there(source: Source, size: int) -> bool:
    """Tell whether what comes next looks like ``size`` bytes of a member, with a header or zeros behind it.

    A size that is damaged would swallow what follows. Neither a PNG nor JSON ends with a zero.
    """
    data = source.take(padded(size) + BLOCK_BYTES)
    source.give_back(data)
    behind = data[padded(size) :]
    if (
        len(data) < padded(size)
        or not data[:size][-1:].strip(b"\0")
        or data[size : padded(size)].strip(b"\0")
    ):
        return False
    try:
        return not behind.strip(b"\0") or bool(tarfile.TarInfo.frombuf(behind, "utf-8", "surrogateescape"))
    except (tarfile.HeaderError, ValueError, OverflowError):
        return False


def _check_end(source: Source) -> None:
    """Check that behind the first block of the end mark there are only zeros, the second one and not too many."""
    tail = source.take(MAX_TAIL_BYTES + 1)
    if len(tail) < BLOCK_BYTES:
        raise _DamageError(f"is cut off inside its end mark (after {source.position} bytes)")
    if tail.strip(b"\0"):
        source.go_on_past_end(tail)
        raise _DamageError("has data behind its end mark (two tars in one?)")
    if len(tail) > MAX_TAIL_BYTES:
        raise _DamageError(f"has more than {MAX_TAIL_BYTES} zeros behind its end mark")


def _pax_fields(data: bytes) -> dict[str, str]:
    """Read the fields of an extended header: lines ``LENGTH KEY=VALUE`` where LENGTH counts the whole line."""
    fields = {}
    while data:
        digits, _, _ = data[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = data[len(digits) + 1 : length]
        key, equals, value = line.partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data):
            raise _DamageError("has a damaged extended header")
        fields[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return fields


def _pax_size(fields: dict[str, str], size: int | None) -> int | None:
    text = fields.get("size")
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _DamageError(f"has a member of size {_short(text)}")
    return int(text)


def _short(text: str) -> str:
    return ascii(text[:100])
