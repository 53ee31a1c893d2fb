"""How fast does a loader feed training, and what does it cost? Ours beside others, on the user's data and machine.

Every loader runs in a fresh process once a round, in turn with the others; figures are medians over the rounds. A run
is measured in its middle, between two samples, while the workers work on: starting and ending them, imports and
filling the queues count for nobody. CPU time is user + system of that process and all its workers
(:mod:`.measure_cpu`): it hardly depends on what else runs.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..base.errors import OptionError
from ..base.report import Report
from .measure_cpu import check_system, cpu_seconds
from .measure_process import in_fresh_process

if TYPE_CHECKING:
    from .measure_data import Inputs
    from .measure_loaders import Opener
    from .split import Split

# name -> what it does; the order of the tables.
LOADERS = {
    "vshard": "ours, uint8 handed over",
    "vshard_finished": "ours, floats, colour and target made on the CPU too",
    "directory": "folders of PNGs with Pillow, floats",
    "webdataset": "plain shards with webdataset and Pillow, floats",
    "floor": "inflating the bytes needed, nothing else",
}
STAGES = ("read", "inflate", "unfilter", "augment", "hand-over")
WORKERS_MAX = 256
# Those that read 12 frames with their masks; others read whole records, the floor no files.
_READ_PARTLY = ("vshard", "vshard_finished", "directory")
# Samples a worker that go by before and after what is measured: more than any loader's workers are ahead.
_MARGIN = 6


@dataclass(frozen=True)
class MeasureOptions:
    """What is asked of a measurement.

    ``samples``: that each loader is measured over, a round. ``records``: how many it runs over, at most. ``workers``:
    processes of each loader. ``only``: names of loaders, none for all.
    """

    samples: int = 100
    records: int = 32
    workers: int = 2
    rounds: int = 3
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: one is out of its range.
        """
        for name in ("samples", "records", "rounds"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} {getattr(self, name)}: allowed is 1 or more")
        if not 1 <= self.workers <= WORKERS_MAX:
            raise OptionError(f"--num-workers {self.workers}: allowed is 1 to {WORKERS_MAX}")
        for name in self.only:
            if name not in LOADERS:
                raise OptionError(f"--only {name}: allowed are {', '.join(LOADERS)}")


class Run(NamedTuple):
    """One loader in one round."""

    cpu_ms_per_sample: float
    samples_per_s: float


@dataclass(frozen=True)
class Measured:
    """One loader over all rounds; ``mb_per_sample``: what it reads of files, None where it reads none."""

    runs: tuple[Run, ...]
    mb_per_sample: float | None

    @property
    def cpu_ms_per_sample(self) -> float:
        """The median over the rounds."""
        return statistics.median(run.cpu_ms_per_sample for run in self.runs)

    @property
    def samples_per_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(run.samples_per_s for run in self.runs)

    @property
    def mb_per_s(self) -> float | None:
        """Megabytes read a second."""
        return None if self.mb_per_sample is None else self.mb_per_sample * self.samples_per_s


@dataclass(frozen=True)
class Benched:
    """A measurement: ``loaders`` by name, ``records`` they ran over, ``stages``: CPU ms a sample of our loader."""

    loaders: dict[str, Measured]
    records: int
    stages: dict[str, float] = field(default_factory=dict)


def bench(split: Split, options: MeasureOptions, report: Report) -> Benched:
    """Measure our loader on ``split`` beside others.

    Raises:
        DatasetError: the split has no record that can be trained on.
        OptionError: this system does not tell CPU times.
        WorkerError: a loader failed.
        VshardError: a record cannot be read.
    """
    check_system()
    from .measure_data import prepared
    from .measure_loaders import OPENERS

    wanted = {name: OPENERS[name] for name in LOADERS if name in (options.only or LOADERS)}
    with prepared(split, options.records, options.workers, report) as inputs:
        return measure(wanted, inputs, options, report)


def measure(
    openers: Mapping[str, Opener], inputs: Inputs, options: MeasureOptions, report: Report
) -> Benched:
    """Measure any loaders, and the stages of ours where it is among them.

    An opener that is not this package's has to be importable in another process.

    Raises:
        WorkerError: a loader failed.
        VshardError: a record cannot be read.
    """
    from .measure_stages import stage_times

    runs: dict[str, list[Run]] = {name: [] for name in openers}
    times: list[dict[str, float]] = []
    done = 0

    def told(figures: str) -> None:
        nonlocal done
        done += 1
        report.advance(done, figures)

    report.start("measuring", options.rounds * (len(openers) + ("vshard" in openers)), "runs")
    for _ in range(options.rounds):
        for name, opener in openers.items():
            run = in_fresh_process(name, run_loader, opener, inputs, options.samples, options.workers)
            runs[name].append(run)
            told(f"{name} {run.cpu_ms_per_sample:.1f} ms a sample")
        if "vshard" in openers:
            times.append(in_fresh_process("the stages", stage_times, inputs.split))
            told("")
    report.finish()
    loaders = {name: Measured(tuple(runs[name]), _mb_per_sample(name, inputs)) for name in openers}
    stages = {}
    if times:
        medians = {stage: statistics.median(time[stage] for time in times) for stage in times[0]}
        # Worker processes, their queues and copies are what the stream costs more than its samples in one process.
        hand_over = max(0.0, loaders["vshard"].cpu_ms_per_sample - medians["sample"])
        stages = {stage: hand_over if stage == "hand-over" else medians[stage] for stage in STAGES}
    return Benched(loaders, len(inputs.folders), stages)


def run_loader(opener: Opener, inputs: Inputs, samples: int, workers: int) -> Run:
    """Measure a loader over ``samples``, in this process, which should do nothing else.

    Raises:
        VshardError: a record cannot be read.
    """
    import torch

    # As in every worker; torch's threads would wait for each other where there are as many workers as processors.
    torch.set_num_threads(1)
    first = _MARGIN * workers
    last = first + samples
    count = -(-(last + _MARGIN * workers) // workers) * workers
    for taken, _ in enumerate(opener(inputs, workers)(count), start=1):
        if taken == first:
            processes = multiprocessing.active_children()
            cpu, started = cpu_seconds(processes), time.perf_counter()
        if taken == last:
            seconds = time.perf_counter() - started
            cpu = cpu_seconds(processes) - cpu
    # Taken to its end, for torch waits for seconds for workers that are left before.
    assert taken == count, f"{taken} of {count} samples"
    return Run(cpu / samples * 1000, samples / seconds)


def _mb_per_sample(name: str, inputs: Inputs) -> float | None:
    if name == "floor":
        return None
    return (inputs.window_bytes if name in _READ_PARTLY else inputs.record_bytes) / 1e6
