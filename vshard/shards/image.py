"""A record as the bytes that it takes in a tar: headers, files, padding, put together in one piece.

The memory is used again for the next record: fresh memory costs a page fault for each 4 KiB, as much time as reading
the files does.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ..records import names
from ..records.record import metadata_digest
from .index import Member
from .tar import BLOCK_BYTES, header_bytes, padded


@dataclass(frozen=True, eq=False, repr=False)
class RecordImage:
    """What a record takes in a tar.

    ``members``: its files, counted from the image's first byte. ``digest``: that of its metadata, "" without any.
    ``data``: the bytes, until ``release``.
    """

    key: str
    members: tuple[Member, ...]
    digest: str
    data: memoryview
    _memory: io.BytesIO
    _lender: Images

    def release(self) -> None:
        """Give the memory back; ``data`` is no more."""
        self.data.release()
        self._lender.take_back(self._memory)


class Images:
    """Makes images, in memory that comes back; any thread may make and release them."""

    def __init__(self) -> None:
        self._free: deque[io.BytesIO] = deque()

    def make(self, key: str, files: Iterable[tuple[str, bytes]]) -> RecordImage:
        """Put a record's files together as they are, in this order."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = io.BytesIO()
        memory.seek(0)
        members, digest = [], ""
        for file, data in files:
            memory.write(header_bytes(names.member_name(key, file), len(data)))
            members.append(Member(file, memory.tell(), len(data)))
            memory.write(data)
            memory.write(bytes(padded(len(data)) - len(data)))
            if file == names.METADATA_FILE:
                digest = metadata_digest(data)
        return RecordImage(key, tuple(members), digest, memory.getbuffer()[: memory.tell()], memory, self)

    def take_back(self, memory: io.BytesIO) -> None:
        """Keep memory for a later image."""
        self._free.append(memory)


def member_bytes(size: int) -> int:
    """Give the bytes that a file of ``size`` bytes takes in a shard."""
    return BLOCK_BYTES + padded(size)
