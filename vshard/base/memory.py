"""Memory that a process frees and takes again at every step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next step to take; tell whether that can be said here.

    glibc hands blocks of 32 MiB or more back at once, and the kernel clears them page by page when they are taken
    again: a fifth to a quarter of a training step on a CPU. Memory grows to the peak of one step and stays there.
    Only where the C library is glibc; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
