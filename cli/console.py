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
        self._total: int | None = None
        self._started = self._logged = 0.0
        self._told = -1

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.finish()
        self._what, self._unit = what, unit
        self._total = total
        self._started = self._logged = time.monotonic()
        self._told = -1
        if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
            self.say(f"{what}: {self._amount(total)}")
            return
        from rich import console, progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            *(
                [progress.DownloadColumn(), progress.TransferSpeedColumn()]
                if unit == BYTES
                else [progress.MofNCompleteColumn(), progress.TextColumn(unit)]
            ),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
        )
        self._task = bar.add_task(what, total=total, figures="")
        self._bar = bar
        bar.start()

    def advance(self, done: int, figures: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        ended = done == self._total and done != self._told
        if now - self._logged >= LOG_EVERY_SECONDS or ended:
            self._logged, self._told = now, done
            left = ""
            if self._total is not None and 0 < done < self._total:
                left = f", {_clock((now - self._started) / done * (self._total - done))} left"
            told = f"{done}/{self._total or '?'} {self._unit}"
            if self._unit == BYTES:
                told = f"{size_text(done)} of {self._amount(self._total)}"
            self.say(f"{self._what}: {told}{left}  {figures}".rstrip())

    def _amount(self, total: int | None) -> str:
        if self._unit == BYTES and total is not None:
            return size_text(total)
        return f"{'?' if total is None else total} {self._unit}"

    def say(self, line: str) -> None:
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


@contextmanager
def console() -> Iterator[Console]:
    """Give a console that lets go of the terminal however the work ends."""
    report = Console()
    try:
        yield report
    finally:
        report.finish()


def size_text(size_bytes: int) -> str:
    """Write a number of bytes for people: 12.3 MB."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def counted(count: int, thing: str) -> str:
    """Write how many there are: 1 record, 2 records."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
