"""What the tests of the cache share: shards (any bytes will do) in a store, and other processes that borrow them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store_folders import noise
from store_servers import Faults

from vshard.base.stores import Remote
from vshard.shards.index import ShardIndex

SIZE = 300_000
Wanted = tuple[Remote, ShardIndex]


def index_of(name: str, data: bytes) -> ShardIndex:
    return ShardIndex(name, len(data), hashlib.sha256(data).hexdigest(), len(data), ())


@dataclass
class WebShards:
    """Shards 0, 1, … on a web server, and what it was asked."""

    root: Path
    place: Remote
    faults: Faults

    def put(self, number: int, size: int = SIZE) -> Wanted:
        name, data = f"s-{number:06d}.tar", self.data(number, size)
        (self.root / name).write_bytes(data)
        return self.place / name, index_of(name, data)

    @staticmethod
    def data(number: int, size: int = SIZE) -> bytes:
        return noise(size, seed=number)

    def fetched(self) -> list[int]:
        """The numbers of the shards that were fetched (one question for facts each), in order."""
        return [int(path[-10:-4]) for _, path, asked in list(self.faults.asked) if asked == "bytes=0-0"]


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that waits for nothing and says what it prints."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def held_bytes(folder: Path) -> int:
    """The sizes of all copies and parts; what goes meanwhile counts 0."""
    total = 0
    for path in folder.glob("*.tar*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def files(folder: Path) -> list[str]:
    """The names of what is in the cache, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def waited(true: Callable[[], bool]) -> bool:
    """Whether something becomes true within a while."""
    until = time.monotonic() + 10
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return true()
