"""The CPU time that this process and its workers have used so far, while they run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from ..base.errors import OptionError

# Of the clock of another process, by its id: <linux/posix-timers.h>, which glibc's clock_getcpuclockid uses too.
_CLOCK_OF_PROCESS = 2


def check_system() -> None:
    """Check that CPU times of other processes can be had.

    Raises:
        OptionError: they cannot.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OptionError(
            f"bench: measures on Linux and macOS, this is {sys.platform}, where one process is not told the CPU time "
            "of others; run it there"
        )


def cpu_seconds(workers: Sequence[BaseProcess]) -> float:
    """Give the user and system time, in seconds, of this process and of worker processes that have not ended."""
    pids = [worker.pid for worker in workers if worker.pid is not None]
    return time.process_time() + sum(_seconds_of(pids))


def _seconds_of(pids: Sequence[int]) -> list[float]:
    if sys.platform == "darwin":
        wanted = ["/bin/ps", "-o", "time=", "-p", ",".join(map(str, pids))]
        told = subprocess.run(wanted, capture_output=True, text=True, check=True)
        return [clock_seconds(line) for line in told.stdout.split()]
    return [time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS) for pid in pids]


def clock_seconds(text: str) -> float:
    """Read a time of ``ps``: [[days-]hours:]minutes:seconds, of hundredths on macOS."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)
