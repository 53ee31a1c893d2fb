"""Reads a record's frames and masks into memory that is used again: one by one, or consecutive ones as a window.

A window is one read of a shard, as a record's members lie together. Shards of stores are read from copies in the
cache. What was read stays valid until something else is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np

from ..base.errors import RecordError, VshardError
from ..base.files import open_plain
from ..base.remote_files import RemoteFile
from ..base.stores import Place, Remote, read_file
from ..records import names
from ..records.record import MAX_FILE_BYTES, read_plain_file
from ..shards.tar import BLOCK_BYTES
from .cache import OpenShards
from .split import IN_FOLDER, Split

# Where the bytes from a window's first file to its last are more than so often its files', they are read one by one.
_SPARE = 1.5
# Of a record's files in a split's ranges: the frames come before the masks.
_FRAME, _MASK = 0, 1
_NAMES = (names.frame_file, names.mask_file)


class ReadInto(Protocol):
    """What windows are read from: a file here, a copy, or one in a store."""

    def seek(self, offset: int, /) -> int: ...

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class File(NamedTuple):
    """A file of a record: what to call it in an error, and its bytes."""

    name: str
    data: bytes | memoryview


class Window(NamedTuple):
    """The PNG files of consecutive frames, and of their masks."""

    frames: list[File]
    masks: list[File]


class Records(Protocol):
    """Where windows of numbered records come from: a split's :class:`Reader`, or what passes by in a stream."""

    def key(self, record: int) -> str: ...

    def where(self, record: int) -> str:
        """What to call the record in an error."""

    def frame_count(self, record: int) -> int: ...

    def frames(self, record: int, wanted: range) -> Iterator[File]:
        """Give the colour frames ``wanted``, in that order; each is valid until the next is asked for."""

    def masks(self, record: int, wanted: range) -> Iterator[File]:
        """Give the masks of the frames ``wanted`` likewise."""


class _Listed(NamedTuple):
    """A file of a record, and where its bytes are in the shard."""

    file: str
    offset: int
    length: int


class Reader:
    """Reads windows of one split's records; not for two threads at once."""

    def __init__(self, split: Split, copies: OpenShards | None = None) -> None:
        """Read ``split``; ``copies`` gives its shards where they are in a store, without it each read is a request."""
        self.split = split
        self._copies = copies
        self._memory = bytearray()

    def key(self, record: int) -> str:
        """Give the key of ``record``."""
        return str(self.split.keys[record])

    def where(self, record: int) -> str:
        """Say where ``record`` is."""
        return f"{self.split.root}/{self.key(record)}"

    def frame_count(self, record: int) -> int:
        """Give how many frames ``record`` has."""
        return self.split.frame_count(record)

    def read(self, record: int, first: int, count: int) -> Window:
        """Read ``count`` frames of ``record`` from ``first`` on, with their masks.

        Raises:
            RecordError: a file is not there, cut off, larger than 256 MiB, or cannot be read.
            StoreError: its store cannot be reached.
        """
        wanted = range(first, first + count)
        frames, masks = self._listed(record, wanted, _FRAME), self._listed(record, wanted, _MASK)
        shard = int(self.split.shard[record])
        if shard == IN_FOLDER:
            found = [
                _read_whole(self.split.root / self.key(record) / entry.file) for entry in (*frames, *masks)
            ]
        else:
            found = self._read_members(record, [*frames, *masks])
        return Window(found[:count], found[count:])

    def frames(self, record: int, wanted: range) -> Iterator[File]:
        """Give the colour frames ``wanted``, in that order; each is valid until the next is asked for.

        Files read one by one are still in the processor's cache when they are decoded.

        Raises:
            RecordError, StoreError: as :meth:`read`.
        """
        return self._files(record, wanted, _FRAME)

    def masks(self, record: int, wanted: range) -> Iterator[File]:
        """Give the masks of the frames ``wanted`` likewise."""
        return self._files(record, wanted, _MASK)

    def forget(self, record: int) -> bool:
        """Remove the copy that ``record`` was read from, for it is damaged; tell whether there is one to fetch anew."""
        shard = int(self.split.shard[record])
        if shard == IN_FOLDER or self._copies is None:
            return False
        place = self.split.shards[shard]
        if not isinstance(place, Remote):
            return False
        self._copies.forget(place, self.split.facts[shard])
        return True

    def close(self) -> None:
        """Give back what is open."""
        if self._copies is not None:
            self._copies.close()

    def _files(self, record: int, wanted: range, kind: int) -> Iterator[File]:
        """Read files one by one."""
        listed = self._listed(record, wanted, kind)
        shard = int(self.split.shard[record])
        if shard == IN_FOLDER:
            for entry in listed:
                yield _read_whole(self.split.root / self.key(record) / entry.file)
            return
        place = self.split.shards[shard]
        if isinstance(place, Remote) and self._copies is None:
            # Each read is a request: one for all.
            yield from self._read_members(record, listed)
            return
        with self._reading(shard) as file:
            for entry in listed:
                span = (entry.offset - BLOCK_BYTES, entry.offset + entry.length)
                yield self._checked(record, entry, self._read_spans(file, place, [span]))

    def _listed(self, record: int, wanted: range, kind: int) -> list[_Listed]:
        """Say what the record's files of a kind are called, and where the index of its shard says they are."""
        first = int(self.split.first[record]) + kind * self.frame_count(record)
        ranges = self.split.ranges[first + np.array(wanted)].tolist()
        return [_Listed(_NAMES[kind](index), *place) for index, place in zip(wanted, ranges, strict=True)]

    def _read_members(self, record: int, listed: list[_Listed]) -> list[File]:
        """Read members of a shard at once."""
        spans = [(entry.offset - BLOCK_BYTES, entry.offset + entry.length) for entry in listed]
        lengths = [stop - start for start, stop in spans]
        first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
        shard = int(self.split.shard[record])
        apart = last - first > _SPARE * sum(lengths)
        with self._reading(shard) as file:
            memory = self._read_spans(file, self.split.shards[shard], spans if apart else [(first, last)])
        starts = [0, *np.cumsum(lengths).tolist()] if apart else [start - first for start, _ in spans]
        return [
            self._checked(record, entry, memory[start : start + length])
            for entry, start, length in zip(listed, starts, lengths, strict=False)
        ]

    def _checked(self, record: int, entry: _Listed, member: memoryview) -> File:
        """Check that a member is the one looked for, as an index may lie; ``member``: its header, then its bytes."""
        place = self.split.shards[int(self.split.shard[record])]
        name = names.member_name(self.key(record), entry.file)
        start = f"{name}\0".encode()
        if member[: len(start)] != start:
            raise RecordError(
                f"{place}:{name}: is not at byte {entry.offset}, where its index says; find out what is whole with: "
                f"vshard verify {place}"
            )
        return File(f"{place}:{name}", member[BLOCK_BYTES:])

    def _read_spans(self, file: ReadInto, place: Place, spans: list[tuple[int, int]]) -> memoryview:
        """Read [start, stop) of a shard's file, one after the other into one piece of memory."""
        size = sum(stop - start for start, stop in spans)
        if len(self._memory) < size:
            self._memory = bytearray(size)
        whole = memoryview(self._memory)[:size]
        left = whole
        for start, stop in spans:
            file.seek(start)
            while start < stop:
                read = file.readinto(left[: stop - start])
                if not read:
                    raise RecordError(
                        f"{place}: ends at byte {start}, its index knows more; make the index again: "
                        f"vshard index {place}"
                    )
                start, left = start + read, left[read:]
        return whole

    @contextmanager
    def _reading(self, shard: int) -> Iterator[ReadInto]:
        """Open a shard; what the system refuses is a RecordError."""
        try:
            with self._open(shard) as file:
                yield file
        except VshardError:
            raise
        except OSError as error:
            place = self.split.shards[shard]
            raise RecordError(f"{place}: cannot be read ({error.strerror}); check the dataset") from error

    def _open(self, shard: int) -> AbstractContextManager[ReadInto]:
        place = self.split.shards[shard]
        if not isinstance(place, Remote):
            return open_plain(place)
        if self._copies is None:
            return RemoteFile(place)
        return nullcontext(self._copies.get(place, self.split.facts[shard]))


def _read_whole(place: Place) -> File:
    if isinstance(place, Remote):
        return File(str(place), read_file(place, MAX_FILE_BYTES))
    try:
        return File(str(place), read_plain_file(place))
    except OSError as error:
        raise RecordError(f"{place}: cannot be read ({error.strerror}); check the dataset") from error
