"""Commands whose output is read as a file: only ever named by the user, on the command line, with ``--allow-pipe``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from .errors import OptionError, StoreError, VshardError
from .stopping import StoppedError

PIPE_PREFIX = "pipe:"
# What is read after the end of an archive: padding. A command that writes more is ended by us.
_REST_BYTES = 1 << 20
# How long a command may take to end after what it wrote was found bad.
_END_SECONDS = 1.0


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
        StoreError: the command fails; also in place of an error of the block when it failed by itself.
    """
    # The user's own line, with the shell it was written for.
    process = subprocess.Popen(pipe.command, shell=True, stdout=subprocess.PIPE)  # noqa: S602
    assert process.stdout is not None
    whole = False
    try:
        # The block may close its file, but not the pipe: that would make a good command fail.
        yield os.fdopen(process.stdout.fileno(), "rb", closefd=False)
        whole = len(process.stdout.read(_REST_BYTES)) < _REST_BYTES
    except StoppedError:
        raise
    except VshardError as error:
        with suppress(subprocess.TimeoutExpired):
            if code := process.wait(_END_SECONDS):
                raise _failed(pipe, code) from error
        raise
    finally:
        process.stdout.close()
        if not whole:
            process.terminate()
        code = process.wait()
    if whole and code:
        raise _failed(pipe, code)


def _failed(pipe: Pipe, code: int) -> StoreError:
    return StoreError(f"{str(pipe)[:80]}: the command failed (exit code {code}); run it alone to see why")
