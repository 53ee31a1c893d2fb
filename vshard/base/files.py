"""Files that appear whole or not at all.

Everything is written beside its final place under a name ending in ``.part``, flushed to the disk and
renamed; a crash leaves at most a ``.part``, which the next run of the same command overwrites or removes.
Operating-system refusals (disk full, read-only folder, a file where a folder should be) become a
one-line :class:`~vshard.base.errors.OutputError`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .ahead import THREAD_NAME
from .errors import OutputError, VshardError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PART_SUFFIX = ".part"
# A content fingerprint reads this many blocks of this size, evenly spread over the file: enough to tell
# two videos apart, and quick on a 50 GB file on a slow disk.
FINGERPRINT_BLOCKS = 16
FINGERPRINT_BLOCK_BYTES = 1 << 16

# Large files go to the disk in steps of this size.
SYNC_BYTES = 1 << 23

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again (train: with --resume)",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again (train: with --resume)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.ENOENT: "its folder is not there; make it, or choose another",
    errno.ENOTDIR: "a part of this path is a file; choose another folder",
    errno.EEXIST: "a file of this name is in the way; remove it or choose another folder",
    errno.EISDIR: "a folder or device of this name is in the way; choose another name",
    errno.EFBIG: "it is larger than files may be here (ulimit -f, or the file system); choose another folder",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an :class:`OutputError` that names ``path``."""
    try:
        yield
    except VshardError:
        raise
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"cannot write {path}: {reason}") from error


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents and check that files can be made in it; return ``path``."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        _try_file(path)
    return path


def _try_file(folder: Path) -> None:
    # A file without a name, or, where the system has none, of a new one: nothing that is there, a link say, is
    # written to or removed, and a crash leaves nothing.
    tempfile.TemporaryFile(prefix=".vshard-write-test-", dir=folder).close()


def make_own_folder(path: Path) -> Path:
    """Create a folder that only vshard uses; return ``path``.

    Raises:
        OutputError: it cannot be made, or is a link: what is in somebody else's folder is not ours to replace.
    """
    with writing(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, "is a link to another folder; remove the link")
    return make_folder(path)


def open_plain(path: Path) -> io.FileIO:
    """Open a plain file for reading; a pipe or device is refused without waiting for it.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    # Asked of the open file, which nobody can exchange meanwhile; a pipe would keep a plain open waiting.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return io.FileIO(handle, "rb")


def check_folder(path: Path) -> None:
    """Check, without leaving anything, that nothing but a folder is at ``path`` or above it, and can be written to.

    Raises:
        OutputError: a file is in the way, or the system lets nobody write there.
    """
    with writing(path):
        nearest = next((place for place in (path, *path.parents) if place.exists()), path)
        if nearest.exists() and not nearest.is_dir():
            raise FileExistsError(errno.EEXIST, "", str(nearest))
        _try_file(nearest)


def check_output(path: Path) -> None:
    """Check, without leaving anything, that a file can be written at ``path``, whose folder is there.

    Raises:
        OutputError: it cannot.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "not a plain file")
        _try_file(path.parent)


def part_of(path: Path) -> Path:
    """Give the place beside ``path`` where it is written before it is whole."""
    return path.with_name(path.name + PART_SUFFIX)


def sync_file(path: Path) -> None:
    """Flush a closed file's bytes to the disk."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk (a no-op on Windows, which has no such call)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class SteadyFile(io.FileIO):
    """A new file whose bytes go to the disk while it grows: there is little left to wait for when it is finished."""

    def __init__(self, path: Path) -> None:
        # Whatever is there is left by a crash, or a link that leads elsewhere: it is not written through.
        path.unlink(missing_ok=True)
        super().__init__(path, "xb")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{THREAD_NAME}sync")
        self._syncing: Future[None] | None = None
        self._unsynced_bytes = 0

    def write(self, data: Buffer, /) -> int:
        written = super().write(data)
        self._unsynced_bytes += written
        if self._unsynced_bytes >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._check_synced()
            self._syncing = self._pool.submit(os.fsync, self.fileno())
            self._unsynced_bytes = 0
        return written

    def close(self) -> None:
        self._pool.shutdown()
        try:
            self._check_synced()
        finally:
            super().close()

    def _check_synced(self) -> None:
        # The system tells a failure once: who asks again hears that all is well.
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()


def finish_file(path: Path) -> None:
    """Flush ``part_of(path)`` and give it its final name, replacing what was there."""
    with writing(path):
        sync_file(part_of(path))
        part_of(path).replace(path)
        sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all; a link is followed, a folder or device is refused."""
    path = Path(os.path.realpath(path))  # which, unlike resolve, takes links that lead in a circle
    with writing(path):
        if path.exists() and not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "not a plain file")
        try:
            part_of(path).unlink(missing_ok=True)
            part_of(path).write_bytes(data)
            finish_file(path)
        except OSError:
            part_of(path).unlink(missing_ok=True)
            raise


def write_folder(path: Path, files: dict[str, bytes], *, scratch: Path) -> None:
    """Write a folder of files whole or not at all; ``scratch`` is a folder on the same file system.

    Raises:
        OutputError: the files cannot be written; nothing of them is left.
    """
    part = scratch / (path.name + PART_SUFFIX)
    with writing(path):
        try:
            make_own_folder(scratch)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name, data in files.items():
                (part / name).write_bytes(data)
            for name in files:
                sync_file(part / name)
            sync_folder(part)
            part.rename(path)
            sync_folder(path.parent)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise


def fingerprint(path: Path) -> str:
    """Give 16 hex digits that tell files apart by content: BLAKE2 over the size and 16 spread blocks."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    last_start = max(size - FINGERPRINT_BLOCK_BYTES, 0)
    with path.open("rb") as file:
        for block in range(FINGERPRINT_BLOCKS):
            file.seek(last_start * block // (FINGERPRINT_BLOCKS - 1))
            digest.update(file.read(FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
