"""Commands whose output is read as a file: only ever named by the user, on the command line, with ``--allow-pipe``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from .errors import OptionError, StoreError

PIPE_PREFIX = "pipe:"


@dataclass(frozen=True)
class Pipe:
    """A command of the system's shell that writes a file to its standard output."""

    command: str

    def __str__(self) -> str:
        return f"{PIPE_PREFIX}{self.command}"


def parse_pipe(text: str, *, allowed: bool) -> Pipe | None:
    """Read ``pipe:COMMAND``; None where ``text`` is something else.

    Raises:
        OptionError: it is a pipe, and pipes are not allowed.
    """
    if not text.startswith(PIPE_PREFIX):
        return None
    if not allowed:
        raise OptionError(f"{text[:80]}: would run a command; if that is what you want, add --allow-pipe")
    return Pipe(text.removeprefix(PIPE_PREFIX))


@contextmanager
def open_pipe(pipe: Pipe) -> Iterator[BinaryIO]:
    """Run the command and read what it writes.

    Raises:
        StoreError: the command fails.
    """
    # The user's own line, with the shell it was written for.
    process = subprocess.Popen(pipe.command, shell=True, stdout=subprocess.PIPE)  # noqa: S602
    assert process.stdout is not None
    whole = False
    try:
        yield cast(BinaryIO, process.stdout)
        whole = True
    finally:
        process.stdout.close()
        if not whole:
            process.terminate()
        code = process.wait()
    if code:
        raise StoreError(f"{str(pipe)[:80]}: the command failed (exit code {code}); run it alone to see why")
