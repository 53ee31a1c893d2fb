"""How long work tells what it is doing, without the library printing anything.

A stage takes a :class:`Report`; the commands pass one that draws progress bars, tests pass :class:`Silent`.
"""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Where progress goes. One task is under way at a time; ``start`` ends the one before."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Begin a task of ``total`` units (None: not known)."""

    def advance(self, done: int, figures: str = "") -> None:
        """Say that ``done`` units in all are finished; ``figures`` is a short text beside the bar."""

    def say(self, line: str) -> None:
        """Tell one fact worth keeping on the screen."""

    def warn(self, line: str) -> None:
        """Tell one thing that went wrong without stopping the work."""

    def finish(self) -> None:
        """End the task under way, if any."""


class Silent:
    """A report that nobody reads."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """See :class:`Report`."""

    def advance(self, done: int, figures: str = "") -> None:
        """See :class:`Report`."""

    def say(self, line: str) -> None:
        """See :class:`Report`."""

    def warn(self, line: str) -> None:
        """See :class:`Report`."""

    def finish(self) -> None:
        """See :class:`Report`."""


class Warnings(Silent):
    """What one of several processes has to say where another one speaks for all: its warnings."""

    def __init__(self, report: Report, rank: int) -> None:
        """Pass them on to ``report``, with the number of the process."""
        self._report, self._rank = report, rank

    def warn(self, line: str) -> None:
        """See :class:`Report`."""
        self._report.warn(f"process {self._rank}: {line}")
