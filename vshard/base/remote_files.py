"""Open files in stores: one kind for reading by ranges, one for writing that shows nothing before it is whole."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from .errors import StoreError
from .places import Entry, Remote
from .refusals import AbsentError, changed
from .remote import Store, ask, connect, result_of, submit, telling

# Reading on fetches blocks of this size, the next one while this one is used; other reads fetch at least the smaller.
BLOCK_BYTES = 8 << 20
SMALL_BYTES = 256 << 10
# S3 allows 10,000 parts in an object: up to 312 GiB at this size. Smaller objects are one request.
PART_BYTES = 32 << 20


class RemoteFile(io.RawIOBase):
    """A file in a store, open for reading; at most two blocks of it are in memory.

    The size is known from the beginning, and an object that is replaced meanwhile is an error, not a mixture. It may
    be used after a fork, but not by two threads at once.
    """

    def __init__(self, place: Remote) -> None:
        self._place = place
        self._facts: Entry = ask(place, lambda store: store.look(place, to_read=True))
        if self._facts.is_folder:
            raise StoreError(f"{place}: is a folder, not a file")
        self._position = 0
        self._block_start, self._block = 0, b""
        self._reading_on_at = -1
        self._ahead: tuple[int, int, int, Future[bytes]] | None = None  # process, start, stop, bytes

    @property
    def name(self) -> str:
        """The address for people."""
        return str(self._place)

    @property
    def size_bytes(self) -> int:
        return self._facts.size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        return self.read(max(self.size_bytes - self._position, 0)) or b""

    def readinto(self, buffer: Any, /) -> int:
        if self.closed:
            raise ValueError("read of a closed file")
        target = memoryview(buffer).cast("B")
        length = max(min(len(target), self.size_bytes - self._position), 0)
        reads_on = self._position == self._reading_on_at
        done = 0
        while done < length:
            self._hold(self._position + done, length - done, reads_on)
            offset = self._position + done - self._block_start
            piece = memoryview(self._block)[offset : offset + length - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
        self._position += done
        self._reading_on_at = self._position
        return done

    def close(self) -> None:
        self._drop_ahead()
        self._block = b""
        super().close()

    def _hold(self, position: int, wanted: int, reads_on: bool) -> None:
        """Have a block in memory that holds ``position``."""
        if self._block_start <= position < self._block_start + len(self._block):
            return
        if self._ahead is not None and self._ahead[0] == os.getpid() and self._ahead[1] == position:
            _, _, stop, coming = self._ahead
            self._ahead = None
            block = result_of(coming)
        else:
            self._drop_ahead()
            length = BLOCK_BYTES if reads_on else min(max(wanted, SMALL_BYTES), BLOCK_BYTES)
            stop = min(position + length, self.size_bytes)
            block = ask(self._place, lambda store: self._fetch(store, position, stop))
        self._block_start, self._block = position, block
        if stop < self.size_bytes and (reads_on or position + wanted > stop):
            end = min(stop + BLOCK_BYTES, self.size_bytes)
            coming = submit(self._place, lambda store: self._fetch(store, stop, end))
            self._ahead = (os.getpid(), stop, end, coming)

    def _drop_ahead(self) -> None:
        if self._ahead is not None and self._ahead[0] == os.getpid():
            self._ahead[3].cancel()
        self._ahead = None

    async def _fetch(self, store: Store, start: int, stop: int) -> bytes:
        answer = await store.fetch(self._place, start, stop)
        if (answer.stamp, answer.size_bytes) != (self._facts.stamp, self._facts.size_bytes):
            raise changed(self._place)
        return answer.data


class _S3Parts:
    """An upload to S3: nothing is asked before the first full part; below that, one request does all."""

    def __init__(self, place: Remote) -> None:
        self._place = place
        bucket, key, _ = connect(place).fs.split_path(place.url)
        self._object = {"Bucket": bucket, "Key": key}
        self._etags: list[str] = []

    def begin(self) -> None:
        self._object["UploadId"] = self._ask("create_multipart_upload")["UploadId"]

    def send(self, part: bytearray) -> None:
        if "UploadId" not in self._object:
            self.begin()
        # Of bytes botocore makes a file; a bytearray aiohttp would send in one go that holds up all other requests.
        sent = self._ask("upload_part", Body=bytes(part), PartNumber=len(self._etags) + 1)
        self._etags.append(sent["ETag"])

    def finish(self, rest: bytearray) -> None:
        if not self._etags:
            self._ask("put_object", Body=bytes(rest))
            return
        if rest:
            self.send(rest)
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, 1)]
        try:
            self._ask("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except AbsentError:
            # The answer to an earlier try was lost; its work was not.
            if ask(self._place, lambda store: store.look(self._place)).stamp != self._stamp():
                raise

    def abort(self) -> None:
        if "UploadId" in self._object:
            self._ask("abort_multipart_upload")

    def _stamp(self) -> str:
        # S3 names an object of N parts by the MD5 of their MD5s, "-" and N.
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in self._etags)
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._etags)}"

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        def step(store: Store) -> Awaitable[dict[str, Any]]:
            request: Awaitable[dict[str, Any]] = store.fs._call_s3(what, **self._object, **more)
            return request

        return ask(self._place, step)


class _GcsParts:
    """An upload to Google Cloud Storage (their "resumable" kind), which gcsfs drives."""

    def __init__(self, place: Remote) -> None:
        self._place = place
        path = place.url.partition("://")[2]
        with telling(place):
            self._file = connect(place).fs.open(path, "wb", block_size=PART_BYTES, consistency="md5")

    def begin(self) -> None:
        with telling(self._place):
            self._file._initiate_upload()

    def send(self, part: bytearray) -> None:
        with telling(self._place):
            self._file.write(part)

    def finish(self, rest: bytearray) -> None:
        with telling(self._place):
            self._file.write(rest)
            self._file.close()

    def abort(self) -> None:
        if self._file.closed:
            return
        # A file of fsspec that is only dropped would be completed by the garbage collector.
        try:
            with telling(self._place):
                self._file.discard()
        finally:
            self._file.closed = True


_PARTS: dict[str, type[_S3Parts] | type[_GcsParts]] = {"s3": _S3Parts, "gs": _GcsParts, "gcs": _GcsParts}


class _Upload(io.RawIOBase):
    """Bytes on their way into an object; only ``finish`` makes it, neither ``close`` nor the garbage collector."""

    def __init__(self, place: Remote) -> None:
        self._place = place
        self._held = bytearray()
        self._sent = 0
        self.parts = _PARTS[place.scheme](place)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._sent + len(self._held)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        taken = 0
        while taken < len(view):
            piece = view[taken : taken + PART_BYTES - len(self._held)]
            self._held += piece
            taken += len(piece)
            if len(self._held) == PART_BYTES:
                self.parts.send(self._held)
                self._sent += PART_BYTES
                self._held = bytearray()
        return taken

    def finish(self) -> None:
        self.parts.finish(self._held)
        stored = ask(self._place, lambda store: store.look(self._place)).size_bytes
        if stored != self.tell():
            found = f"holds {stored} of {self.tell()} written bytes"
            raise StoreError(f"{self._place}: {found}; run the same command again")


@contextmanager
def uploading(place: Remote) -> Iterator[BinaryIO]:
    """Write an object that appears, replacing what was there, only when the block ends without an error.

    Raises:
        StoreError: it cannot be written; what was there stays.
    """
    check_writable(place)
    upload = _Upload(place)
    try:
        yield cast(BinaryIO, upload)
        upload.finish()
    except BaseException:
        # What broke the upload is the error to tell; a store that is gone drops unfinished uploads by its own rules.
        with suppress(StoreError):
            upload.parts.abort()
        raise


def try_upload(place: Remote) -> None:
    """Begin an upload to ``place`` and abandon it: whether objects can be written there, without making one.

    Raises:
        StoreError: they cannot.
    """
    check_writable(place)
    parts = _PARTS[place.scheme](place)
    try:
        parts.begin()
    finally:
        parts.abort()


def check_writable(place: Remote) -> None:
    """Refuse the stores that can only be read, and whole buckets."""
    if place.scheme not in _PARTS:
        raise StoreError(
            f"{place}: http(s):// places can only be read; write to a local path, s3:// or gs://"
        )
    if place.parent == place:
        raise StoreError(f"{place}: is a bucket, not a file; name a file in it")
