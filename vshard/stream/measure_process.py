"""A function called in a process of its own, which ends with this one however that ends.

Such processes are forked from a server that has imported what loaders need: importing takes 3 to 5 seconds of CPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from ..base.errors import VshardError, WorkerError

# Seeding, which torch does in every worker, imports torch._dynamo: 2 s of CPU where it was not imported before.
_IMPORTED = ["torch._dynamo", "vshard.stream.measure_loaders"]


def in_fresh_process(what: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a new process and give its answer.

    Raises:
        VshardError: the function's own.
        WorkerError: it failed otherwise.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    receiver, sender = context.Pipe(duplex=False)
    method = multiprocessing.get_start_method()
    process = context.Process(target=_answer, args=(sender, method, what, function, arguments))
    # Ctrl-C is this process's matter; the other one must not die of it with a traceback, not even while it starts.
    with _interrupts_held():
        process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError as error:
        raise WorkerError(
            f"{what}: its process died (killed, or out of memory); nothing was measured"
        ) from error
    finally:
        process.terminate()
        process.join()
        receiver.close()
    if isinstance(answer, VshardError):
        raise answer
    return answer


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let SIGINT wait for the length of a block; what is started in it never gets any."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _answer(
    sender: Connection, method: str, what: str, function: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    """Send a function's answer, or its error, which as a value comes without this process's traceback.

    ``method``: how workers are started, as in the process that asks; else it would be as this one was.
    """
    multiprocessing.set_start_method(method, force=True)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = function(*arguments)
    except VshardError as error:
        answer = error
    except Exception as error:
        # A worker's error comes with its traceback, whose last line says what it was.
        said = (str(error).strip() or "no message").splitlines()[-1]
        answer = WorkerError(f"{what}: cannot be measured ({type(error).__name__}: {said[:300]})")
    sender.send(answer)
    # What libraries do at exit takes time and may go wrong; nothing here needs it.
    _end()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end()


def _end(_number: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
    """End at once with all workers, which would notice only after seconds."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(1)
