"""Copies of files between stores and this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import writing
from .jobs import Meter
from .places import Place
from .report import Report
from .stores import facts, open_reading, writing_whole

_COPIED_BYTES = 1 << 20


def copy_file(source: Place, target: Place, meter: Meter) -> None:
    """Copy a file, which appears at ``target`` only when it is whole.

    Raises:
        StoreError, OutputError: one cannot be read, or the other not be written.
    """
    with open_reading(source) as file, writing_whole(target) as copy:
        while block := file.read(_COPIED_BYTES):
            copy.write(block)
            meter.add(len(block))


@contextmanager
def local_copy(place: Place, report: Report) -> Iterator[Path]:
    """Give a file of this machine with the content and name of ``place``: itself, or a copy for the block's length.

    Raises:
        StoreError: it is not there or cannot be fetched.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="vshard-") as folder:
        # A web address may spell a slash: what it names lies in this folder all the same.
        target = Path(folder) / (re.sub(r"[/\\:\0]", "_", place.name).strip(".") or "file")
        there = facts(place)
        report.start(f"fetching {place.name}", there.size_bytes if there else None, "bytes")
        with writing(target):
            copy_file(place, target, Meter(report))
        report.finish()
        yield target
