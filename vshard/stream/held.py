"""Open files that other processes see are in use, for as long as the process lives that opened them.

On Linux and macOS by a lock of the system (flock) on the file itself, shared by readers; on Windows an open file cannot
be removed anyway. Both end with their process, however it dies, and leave nothing behind. This is where the systems
differ; ``cache.py`` does not know.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class HeldFile(io.FileIO):
    """An open file whose lock goes with it.

    The lock belongs to the process that opened it. A forked child shares it, and would keep it held after its parent
    closed the file: so it is given back by name, and only by the parent.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._process = os.getpid()

    def close(self) -> None:
        if not self.closed and self._process == os.getpid() and sys.platform != "win32":
            fcntl.flock(self.fileno(), fcntl.LOCK_UN)
        super().close()


class PartFile(HeldFile):
    """A new file that one process writes; to be opened while nobody else may (under the folder's lock).

    It has its final size from the start.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        super().__init__(path, "xb")
        self.path = path
        try:
            if sys.platform != "win32":
                fcntl.flock(self.fileno(), fcntl.LOCK_EX)
            self.truncate(size_bytes)
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Close and remove it (under the folder's lock)."""
        self.close()
        self.path.unlink(missing_ok=True)


class CachedShard(HeldFile):
    """A copy of a shard, open for reading; no process removes it before it is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.path = path
        if sys.platform != "win32":
            fcntl.flock(self.fileno(), fcntl.LOCK_SH)
        self._use()

    def read_at(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on, fewer at the file's end; any number of threads may."""
        if sys.platform == "win32":
            with self.path.open("rb", buffering=0) as own:
                own.seek(offset)
                return own.read(length)
        return os.pread(self.fileno(), length, offset)

    def close(self) -> None:
        if not self.closed and self._process == os.getpid():
            self._use()
        super().close()

    def _use(self) -> None:
        now = time.time_ns()
        # The file itself where that can be done: its name may be gone, or that of a newer copy.
        os.utime(self.fileno() if os.utime in os.supports_fd else self.path, ns=(now, now))


def remove_unused(path: Path) -> bool:
    """Remove a file that nobody has open (under the folder's lock); tell whether it is gone."""
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            return False
        return True
    try:
        file = HeldFile(path, "rb")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
        return True
