"""Progress on the screen: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

LOG_EVERY_SECONDS = 10.0
# A task counted in this unit is shown in kB, MB, GB and their speed.
BYTES = "bytes"


class Console:
    """A :class:`vshard.base.report.Report` on standard error."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID
        self._what = self._unit = ""
        self._figures = ""
        self._total: int | None = None
        self._started = self._logged = 0.0
        self._done = self._told = 0
        # What was done when the task first told, and when that was.
        self._first: tuple[int, float] | None = None

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.finish()
        self._what, self._unit = what, unit
        self._total = total
        self._started = self._logged = time.monotonic()
        self._done = self._told = 0
        self._first = None
        if total == 0:
            return
        if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
            self.say(what if total is None else f"{what}: {self._amount(total)}")
            return
        from rich import console, progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[told]}"),
            *([progress.TransferSpeedColumn()] if unit == BYTES else []),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeElapsedColumn(),
            *([progress.TextColumn("left"), progress.TimeRemainingColumn()] if total is not None else []),
            console=console.Console(stderr=True),
        )
        self._task = bar.add_task(plain(what), total=total, told=self._progress(0), figures="")
        self._bar = bar
        bar.start()

    def advance(self, done: int, figures: str = "") -> None:
        self._done, self._figures = done, figures
        # Work that goes on begins with what was done before.
        self._first = self._first or (done, time.monotonic())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, told=self._progress(done), figures=figures)
            return
        ended = done == self._total and done != self._told
        if self._total != 0 and (time.monotonic() - self._logged >= LOG_EVERY_SECONDS or ended):
            self._tell()

    def _tell(self) -> None:
        self._logged, self._told = time.monotonic(), self._done
        left = ""
        if self._total is not None and 0 < self._done < self._total:
            before, since = self._first or (0, self._started)
            before, since = (before, since) if self._done > before else (0, self._started)
            left = f", {_clock((self._logged - since) / (self._done - before) * (self._total - self._done))} left"
        self.say(f"{self._what}: {self._progress(self._done)}{left}  {self._figures}".rstrip())

    def _progress(self, done: int) -> str:
        if self._total is None:
            return self._amount(done)
        if self._unit == BYTES:
            return f"{size_text(done)} of {size_text(self._total)}"
        return f"{done}/{self._amount(self._total)}"

    def _amount(self, count: int) -> str:
        return size_text(count) if self._unit == BYTES else counted(count, self._unit.removesuffix("s"))

    def say(self, line: str) -> None:
        line = plain(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
            return
        # A closed or full standard error must not stop the work.
        with suppress(OSError, ValueError, AttributeError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._total is None and self._done != self._told:
            # Nobody knew that this was the end.
            self._tell()
        self._told = self._done


@contextmanager
def console() -> Iterator[Console]:
    """Give a console that lets go of the terminal however the work ends."""
    report = Console()
    try:
        yield report
    finally:
        report.finish()


def plain(line: str) -> str:
    """Escape what steers a terminal or cannot be written, as the names of files may.

    Word by word, for only a part of what is long is kept, and a line's end tells what to do.
    """
    from vshard.records.names import printable

    return " ".join(map(printable, line.split(" ")))


def size_text(size_bytes: int) -> str:
    """Write a number of bytes for people: 12.3 MB."""
    if size_bytes < 1000:
        return counted(size_bytes, "byte")
    power, unit = next(((p, u) for p, u in ((1, "kB"), (2, "MB")) if size_bytes < 1000 ** (p + 1)), (3, "GB"))
    return f"{size_bytes / 1000**power:.1f} {unit}"


def counted(count: int, thing: str) -> str:
    """Write how many there are: 1 record, 2 records."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
