"""One process at a time: a lock that the system lets go of when its process dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import OutputError


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the length of a block.

    Raises:
        OutputError: another process holds it (``what`` says what it is doing), or it cannot be made.
    """
    # Whichever thread takes it, another may let go of it.
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{path.parent}: another vshard is {what} now; wait for it") from error
    except OSError as error:
        raise OutputError(
            f"cannot lock {path}: {error.strerror or error}; see what is there, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
