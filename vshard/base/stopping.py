"""Ctrl-C and SIGTERM as a question that is asked between steps, so that work can be saved before it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import VshardError

# A signal so soon after another is the same one: launchers as torchrun pass on what the terminal sent already.
ECHO_SECONDS = 2.0


class StoppedError(VshardError):
    """The work was stopped by the user or the system; the message says what was kept and how to go on."""


class StopRequest:
    """Whether somebody asked the work to stop; a second Ctrl-C, no echo of the first, ends it at once."""

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        """``tell`` answers the first wish, in a thread of its own."""
        self.asked = False
        self._asked_at = 0.0
        self._tell = tell

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Note the wish (a signal handler)."""
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            # What the signal interrupted may be in the middle of a line itself.
            threading.Thread(target=self._tell, daemon=True).start()
        elif time.monotonic() - self._asked_at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def stop_request(tell: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Listen to SIGINT and SIGTERM for the length of a block; outside the main thread nothing is heard.

    ``tell``: answers the first of them.
    """
    request = StopRequest(tell)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
