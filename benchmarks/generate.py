"""Where does the time of `vshard generate` go, and what does it gain by overlapping its stages?

    python benchmarks/generate.py VIDEO [--sequences 4] [--rounds 3] [--model-type NULL]

The same sequences of VIDEO are made by turns in two ways: each stage waiting for the one before, timed one by one,
and overlapped as the command does it. NULL is a depth model that costs nothing; with another the last line tells the
share of the whole that is not the depth model. Peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from vshard.base.devices import choose_device
from vshard.base.report import Silent
from vshard.clips.plan import Sequence
from vshard.clips.probe import VideoInfo, probe
from vshard.clips.read import read_clips
from vshard.clips.scan import scan_video
from vshard.records.generate import Estimators, Made, compose, generate_records, observe, open_estimators
from vshard.records.plan import GenerateOptions, plan_run
from vshard.records.png import decode_png, encode_png
from vshard.records.record import write_record
from vshard.shards.write import Position, ShardWriter


def keep(made: Made, folder: Path, writer: ShardWriter) -> None:
    for record in made.records:
        write_record(folder, record)
        writer.add(record)


def one_by_one(
    info: VideoInfo, sequences: list[Sequence], options: GenerateOptions, estimators: Estimators, folder: Path
) -> dict[str, float]:
    """Seconds by stage."""
    spent: dict[str, float] = defaultdict(float)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clips = read_clips(info, sequences)
    writer = ShardWriter(folder, options.stem, options.shard_bytes, Position())
    with ThreadPoolExecutor(threads) as pool:
        for _ in sequences:
            started = time.perf_counter()
            clip = next(clips)
            read = time.perf_counter()
            seen = observe(info, options, estimators, pool, clip)
            observed = time.perf_counter()
            estimators.depth.estimate(torch.from_numpy(seen.frames).permute(0, 3, 1, 2))
            estimated = time.perf_counter()
            made = compose(info, options, estimators, pool, seen)
            composed = time.perf_counter()
            for record in made.records:
                images = [decode_png(data, "") for data in (*record.frames, *record.masks)]
                began = time.perf_counter()
                list(pool.map(encode_png, images))
                spent["coding"] += time.perf_counter() - began
            kept = time.perf_counter()
            keep(made, folder, writer)
            spent["writing"] += time.perf_counter() - kept
            spent["reading"] += read - started
            spent["depth model"] += estimated - observed
            spent["turning, resizing, depth edges"] += (observed - read) - (estimated - observed)
            spent["masks and crops"] += composed - estimated
    spent["masks and crops"] -= spent["coding"]
    writer.close()
    torch.set_num_threads(threads)
    return spent


def overlapped(
    info: VideoInfo, sequences: list[Sequence], options: GenerateOptions, estimators: Estimators, folder: Path
) -> float:
    started = time.perf_counter()
    writer = ShardWriter(folder, options.stem, options.shard_bytes, Position())
    for made in generate_records(info, sequences, options, estimators):
        keep(made, folder, writer)
    writer.close()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-type", default="NULL")
    parser.add_argument("--backward-mask", default="gradient")
    parser.add_argument("--gpu", type=int, default=-1)
    arguments = parser.parse_args()
    options = GenerateOptions(
        arguments.video,
        Path(),
        model_type=arguments.model_type,
        backward_mask=arguments.backward_mask,
        skip_interval=0,
        gpu=arguments.gpu,
    )
    info = probe(Path(arguments.video))
    began = time.perf_counter()
    scan = scan_video(info, Silent())
    scanned = time.perf_counter() - began
    sound = [s for s in plan_run(info, scan, options) if s.fault is None][: arguments.sequences]
    estimators = open_estimators(options, choose_device(options.gpu), {}, Silent())
    frames = len(sound) * options.seq
    stages: dict[str, list[float]] = defaultdict(list)
    sums, together = [], []
    for number in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            spent = one_by_one(info, sound, options, estimators, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            whole = overlapped(info, sound, options, estimators, Path(folder))
        if number:  # the first round warms up
            for stage, seconds in spent.items():
                stages[stage].append(seconds)
            sums.append(sum(spent.values()))
            together.append(whole)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}; "
        f"{info!r}; {len(sound)} sequences of {options.seq} frames, two views each; depth {options.model_type}, "
        f"backward masks {estimators.backward.name}; median of {arguments.rounds} rounds"
    )
    print(f"{'looking for cuts, once':32} {scanned / len(info.pts) * 1e3:8.1f} ms a frame of the video")
    for stage, values in stages.items():
        print(f"{stage:32} {statistics.median(values) / frames * 1e3:8.1f} ms a frame")
    total = statistics.median(sums)
    print(f"{'one after the other':32} {total / frames * 1e3:8.1f} ms a frame")
    print(f"{'overlapped':32} {statistics.median(together) / frames * 1e3:8.1f} ms a frame")
    ratios = [a / b for a, b in zip(sums, together, strict=True)]
    print(
        f"overlapping is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    share = 1 - statistics.median(stages["depth model"]) / total
    print(f"not the depth model: {share:.0%} of the work")
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1 << (20 if sys.platform == "linux" else 30)
        )
        print(f"peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
