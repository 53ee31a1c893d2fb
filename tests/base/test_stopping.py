from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from vshard.base import stopping
from vshard.base.stopping import stop_request


def test_the_first_wish_is_answered_and_its_echo_is_none() -> None:
    told = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with stop_request(told.set) as request:
        assert not request.asked
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as a launcher does that passes the terminal's on
        assert request.asked and told.wait(10)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_second_one_ends_it_at_once() -> None:
    code = """
import signal
from vshard.base import stopping
stopping.ECHO_SECONDS = 0
with stopping.stop_request(lambda: None):
    signal.raise_signal(signal.SIGINT)
    print("goes on", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("never told", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGINT and done.stdout == "goes on\n"
    assert stopping.ECHO_SECONDS > 0
