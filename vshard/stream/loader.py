"""Samples through worker processes: a WebDataset pipeline of named stages under its loader.

The workers take the positions of an epoch by turns, two on end, and the loader collects them by turns, so the samples
come in the plan's order whatever the number of workers. What crosses the process border is uint8.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info

from ..base.errors import RecordError, VshardError, WorkerError
from ..base.memory import keep_freed_memory
from .cache import OpenShards, ShardCache
from .order import EpochPlan, share
from .reader import Reader
from .samples import Pictures, Sample, evaluation_sample, new_pictures, training_sample
from .slots import InSlot, Slots
from .split import Split

ON_ERROR = ("raise", "skip")
# A dataset of which so many samples in a row cannot be read is not to be trained on.
SKIPPED_IN_A_ROW_MAX = 20
# Copies of shards that a worker keeps open, where a split is in a store.
_OPEN_SHARDS = 2
# Samples that a worker is ahead of the trainer, and those that the trainer works on at a time.
_AHEAD, _IN_HAND = 4, 3
# Samples a message: each wakes four threads, which takes 1 ms of CPU in all.
_TOGETHER = 2
# A sample that cannot be read is replaced by that of another record; so many are tried.
_SUBSTITUTES = 3


class Skipped(NamedTuple):
    """A sample that could not be read: why, and what stands in for it so that ranks keep step (with weight 0)."""

    reason: str
    substitute: Sample | None


class Unread(NamedTuple):
    """A :class:`Skipped` on its way out of a stage."""

    reason: str
    substitute: Sample | InSlot | None


# A worker hands an error over as a value: raised there, it would come with the worker's traceback in its text.
Loaded = Sample | InSlot | Unread | VshardError
# Of a pipeline: called with what the stage before gives, the first one with nothing.
Stage = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Rank:
    """Which of the run's processes this is, from 0, and how many there are."""

    number: int = 0
    count: int = 1


@dataclass(frozen=True)
class Positions:
    """First stage: the positions and records of an epoch that fall to this worker.

    ``records``: (N,) int64, what the plan's numbers stand for.
    """

    plan: EpochPlan
    records: np.ndarray
    start: int
    rank: Rank

    def __call__(self) -> Iterator[tuple[int, int]]:
        for positions in _share(len(self.plan), self.rank, self.start):
            records = self.records[self.plan.records_at(positions)]
            yield from zip(positions.tolist(), records.tolist(), strict=True)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self()


@dataclass(frozen=True)
class TrainingSamples:
    """Second stage: read, crop and augment. ``cache``: for a split in a store."""

    split: Split
    seed: int
    epoch: int
    length: int
    on_error: str = "raise"
    cache: ShardCache | None = None
    slots: Slots | None = None

    def __call__(self, positions: Iterable[tuple[int, int]]) -> Iterator[Loaded]:
        with closing(_reader(self.split, self.cache)) as reader:
            for position, record in positions:
                try:
                    yield self._draw(reader, record, position, float(position < self.length))
                except VshardError as error:
                    if self.on_error == "skip" and isinstance(error, RecordError):
                        yield Unread(str(error), self._substitute(reader, record, position))
                    else:
                        yield error

    def _draw(self, reader: Reader, record: int, position: int, weight: float) -> Sample | InSlot:
        def make(into: Pictures) -> Sample:
            sample = training_sample(
                reader, record, seed=self.seed, epoch=self.epoch, position=position, into=into
            )
            return replace(sample, weight=weight)

        return _or_fetched_anew(lambda: drawn(make, self.slots), reader, record)

    def _substitute(self, reader: Reader, record: int, position: int) -> Sample | InSlot | None:
        for further in range(1, _SUBSTITUTES + 1):
            try:
                return self._draw(reader, (record + further) % len(self.split), position, 0.0)
            except RecordError:
                continue
        return None


@dataclass(frozen=True)
class EvaluationSamples:
    """Second stage of an evaluation: read and crop, nothing drawn, and nothing in place of what cannot be read."""

    split: Split
    on_error: str = "raise"
    cache: ShardCache | None = None
    slots: Slots | None = None

    def __call__(self, positions: Iterable[tuple[int, int]]) -> Iterator[Loaded]:
        with closing(_reader(self.split, self.cache)) as reader:
            for position, record in positions:
                make = partial(_evaluation_sample, reader, record, position)
                try:
                    yield _or_fetched_anew(partial(drawn, make, self.slots), reader, record)
                except VshardError as error:
                    skips = self.on_error == "skip" and isinstance(error, RecordError)
                    yield Unread(str(error), None) if skips else error


class Messages:
    """Last stage: what goes to the trainer together; in the trainer's process each by itself."""

    def __call__(self, samples: Iterable[Loaded]) -> Iterator[list[Loaded]]:
        together = 1 if get_worker_info() is None else _TOGETHER
        left = iter(samples)
        while message := list(islice(left, together)):
            yield message


@dataclass(frozen=True)
class InOrder:
    """First stage of an evaluation: every record once, in order; each of several ranks takes every so manyth."""

    count: int
    rank: Rank = Rank()

    def __call__(self) -> Iterator[tuple[int, int]]:
        for positions in _share(self.count, self.rank, 0):
            # Fillers, which keep ranks in step, are not needed here.
            for record in positions[positions < self.count].tolist():
                yield record, record

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self()


def evaluation_loader(
    split: Split,
    *,
    workers: int,
    cache: ShardCache | None = None,
    rank: Rank | None = None,
    on_error: str = "raise",
) -> Iterator[Sample | Skipped]:
    """Load every record of ``split`` that falls to ``rank`` once, in order, for evaluation.

    ``on_error``: "raise", or "skip" what cannot be read, which comes without a substitute.
    """
    order = InOrder(len(split), rank or Rank())
    yield from load([order], partial(EvaluationSamples, split, on_error, cache), workers)


def load(
    stages: Sequence[Stage], make_last: Callable[..., Stage], workers: int
) -> Iterator[Sample | Skipped]:
    """Run a pipeline in ``workers`` processes, 0 for this one, giving what comes out of it in order.

    Args:
        stages: all but the last.
        make_last: makes the stage that draws samples; its ``slots`` are the memory for them, None in this process.
        workers: how many processes.

    Raises:
        VshardError: a worker's error, or a :class:`WorkerError` where a worker died.
    """
    slots = _slots(workers) if workers else None
    pipeline = webdataset.DataPipeline(*stages, make_last(slots=slots), Messages())
    others = set(multiprocessing.active_children())
    try:
        # Nothing else may hold on to torch's iterator: it takes workers that are ended for ones that died.
        with telling_dead_workers():
            for loaded in chain.from_iterable(_begun(pipeline, workers)):
                if isinstance(loaded, VshardError):
                    raise loaded
                if isinstance(loaded, Unread):
                    other = loaded.substitute
                    yield Skipped(loaded.reason, None if other is None else _opened(other, slots))
                else:
                    yield _opened(loaded, slots)
    finally:
        # Left before its end, torch waits five seconds for each worker that is still handing over a sample.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


@contextmanager
def telling_dead_workers() -> Iterator[None]:
    """Tell of a loader process that died in our words, wherever this process is when torch hears of it.

    Raises:
        WorkerError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, VshardError) or "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            "a loader process died (killed, or out of memory); the same command with --resume goes on, with fewer "
            "--num-workers if memory is short"
        ) from error


def _begun(pipeline: webdataset.DataPipeline, workers: int) -> Iterator[list[Loaded]]:
    """Start worker processes and give what comes from them."""
    with warnings.catch_warnings():
        # More than there are processors: the user has said how many.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = webdataset.WebLoader(
            pipeline,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD // _TOGETHER if workers else None,
            worker_init_fn=_one_thread if workers else None,
            collate_fn=_as_it_is,
        )
        messages = iter(loader)
        # The workers start with the first.
        first = list(islice(messages, 1))
    return chain(first, messages)


def _share(length: int, rank: Rank, start: int) -> Iterator[np.ndarray]:
    """Give this worker's positions of ``length``; see :func:`.order.share`."""
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
    return share(
        length,
        rank=rank.number,
        ranks=rank.count,
        worker=worker,
        workers=workers,
        start=start,
        together=_TOGETHER,
    )


def _reader(split: Split, cache: ShardCache | None) -> Reader:
    return Reader(split, None if cache is None else OpenShards(cache, _OPEN_SHARDS))


def _slots(workers: int) -> Slots:
    try:
        # Of a message with more than one, the others wait in the trainer.
        return Slots(workers, _AHEAD + _IN_HAND + _TOGETHER - 1)
    except (OSError, RuntimeError) as error:
        raise WorkerError(
            f"no memory can be shared with {workers} loader processes ({error}); take fewer --num-workers"
        ) from error


def drawn(make: Callable[[Pictures], Sample], slots: Slots | None) -> Sample | InSlot:
    """Make a sample in a free slot, or in memory of its own where there are no slots."""
    return make(new_pictures()) if slots is None else slots.draw(make)


def _evaluation_sample(reader: Reader, record: int, position: int, into: Pictures) -> Sample:
    return evaluation_sample(reader, record, position=position, into=into)


def _opened(sent: Sample | InSlot, slots: Slots | None) -> Sample:
    if isinstance(sent, Sample):
        return sent
    assert slots is not None, "a sample in a slot of no memory"
    return slots.open(sent)


def _or_fetched_anew(draw: Callable[[], Sample | InSlot], reader: Reader, record: int) -> Sample | InSlot:
    """Draw a sample; where a copy in the cache is damaged, once more from a new one."""
    try:
        return draw()
    except RecordError:
        if not reader.forget(record):
            raise
    return draw()


def _one_thread(_worker: int) -> None:
    """A worker decodes on one thread, the trainer needs the others; and it leaves it to the trainer to be stopped.

    Who stops a job may send SIGTERM to all of its processes; the trainer goes on to the end of its step.
    """
    torch.set_num_threads(1)
    # Else 120 pages a sample go back to the system and come again: a twentieth of its time.
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the trainer to end, however it ends, and end with it: a worker would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_it_is(message: list[Loaded]) -> list[Loaded]:
    return message
