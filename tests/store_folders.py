"""What the tests of stores share: folders to write to, and small helpers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from store_servers import Faults

from vshard.base.stores import Place, Remote

MIB = 1 << 20
# The least that Google's resumable uploads take, and our moto.
PART = 1 << 18
FOREVER = 99
# Puts a file into a store behind vshard's back; and the faults of reading it.
Shelf = tuple[Callable[[str, bytes], Remote], Faults]


@dataclass
class Folder:
    """A place to write to, with ways to look at it that do not go through vshard."""

    place: Place
    names: Callable[[], list[str]]
    unfinished: Callable[[], int]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
