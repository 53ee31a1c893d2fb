"""How fast are pack, unpack and verify beside tar and Pillow on the same files?

    python benchmarks/pack.py SPLIT [--records 200] [--rounds 3]

SPLIT is a folder of real record folders; they are copied under new names until there are enough. Every round runs each
way twice, in turn, on files that the system has in memory, and times the second: where files were just removed, the
first to write new ones pays two to four times as much in the system for memory, whoever it is. Before each the disk is
given time to be done (sync). `tar` is the system's, without and with a final sync, which ours has: what pack reports
as done is on the disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vshard.base.report import Silent
from vshard.records.record import list_record_folders
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.unpack import UnpackOptions, unpack
from vshard.shards.verify import find_targets, verify


def copies(split: Path, target: Path, count: int) -> int:
    """Fill ``target`` with ``count`` record folders; give their bytes."""
    folders = list_record_folders(split)
    for number in range(count):
        source = folders[number % len(folders)]
        assert isinstance(source, Path)
        shutil.copytree(source, target / f"copy_{number:06d}")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def pillow_loop(split: Path) -> None:
    for path in sorted(split.rglob("*.png")):
        with Image.open(path) as image:
            image.load()


def tar(*arguments: str, sync: bool = False) -> None:
    subprocess.run(["tar", *arguments], check=True)
    if sync:
        os.sync()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("split", type=Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vshard-bench-") as name:
        run(options.split, Path(name), options.records, options.rounds)


def run(split: Path, root: Path, records: int, rounds: int) -> None:
    source, shards = root / "source", root / "shards"
    total = copies(split, source, records)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; {records} records, {total / 1e6:.0f} MB"
    )
    pack(PackOptions((str(source),), shards, "bench", 250 * 10**6), Silent())
    series = tuple(sorted(shards.glob("*.tar")))
    out = root / "out"

    def packing(jobs: int) -> None:
        pack(PackOptions((str(source),), out, "bench", 250 * 10**6, jobs=jobs), Silent())

    def unpacking(jobs: int) -> None:
        unpack(UnpackOptions(series, out, jobs=jobs), Silent())

    def verifying(jobs: int) -> None:
        verify(find_targets(list(map(str, series)), allow_pipe=False), jobs, Silent())

    def untar(sync: bool) -> None:
        for shard in series:
            tar("xf", str(shard), "-C", str(out))
        if sync:
            os.sync()

    whole = str(out / "whole.tar")
    ways: dict[str, Callable[[], None]] = {
        "tar cf": lambda: tar("cf", whole, "-C", str(source), "."),
        "tar cf, sync": lambda: tar("cf", whole, "-C", str(source), ".", sync=True),
        "pack, 1 job": lambda: packing(1),
        "pack, 2 jobs": lambda: packing(2),
        "pack, 4 jobs": lambda: packing(4),
        "tar xf": lambda: untar(sync=False),
        "tar xf, sync": lambda: untar(sync=True),
        "unpack, 1 job": lambda: unpacking(1),
        "unpack, 2 jobs": lambda: unpacking(2),
        "unpack, 4 jobs": lambda: unpacking(4),
        "Pillow loop": lambda: pillow_loop(source),
        "verify, 1 job": lambda: verifying(1),
        "verify, 2 jobs": lambda: verifying(2),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            for _ in range(2):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                os.sync()
                start = time.perf_counter()
                work()
                taken = time.perf_counter() - start
            seconds[way].append(taken)
    beside = ""
    for way, taken in seconds.items():
        beside = way if way in ("tar cf", "tar xf", "Pillow loop") else beside
        ratios = [a / b for a, b in zip(seconds[beside], taken, strict=True)]
        speed = total / 1e6 / statistics.median(taken)
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{way:16s} {speed:7.0f} MB/s   {statistics.median(ratios):5.2f} of {beside}   {spread}")


if __name__ == "__main__":
    main()
