"""Samples through worker processes: a WebDataset pipeline of named stages under its loader.

The workers take the positions of an epoch by turns and the loader collects them by turns, so the samples come in
the plan's order whatever the number of workers. What crosses the process border is uint8.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info

from ..base.errors import VshardError, WorkerError
from .order import share_of
from .samples import Sample, evaluation_sample, training_sample
from .split import Split

# A worker hands an error over as a value: raised there, it would come with the worker's traceback in its text.
Loaded = Sample | VshardError


@dataclass(frozen=True)
class Positions:
    """First stage: the positions and records of an epoch that fall to this worker."""

    plan: np.ndarray
    start: int

    def __call__(self) -> Iterator[tuple[int, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        for position in share_of(self.plan, start=self.start, worker=worker, workers=workers):
            yield int(position), int(self.plan[position])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self()


@dataclass(frozen=True)
class TrainingSamples:
    """Second stage: read, crop and augment."""

    split: Split
    seed: int
    epoch: int

    def __call__(self, positions: Iterable[tuple[int, int]]) -> Iterator[Loaded]:
        for position, record in positions:
            try:
                yield training_sample(self.split, record, seed=self.seed, epoch=self.epoch, position=position)
            except VshardError as error:
                yield error


@dataclass(frozen=True)
class EvaluationSamples:
    """Second stage of an evaluation: read and crop, nothing drawn."""

    split: Split

    def __call__(self, positions: Iterable[tuple[int, int]]) -> Iterator[Loaded]:
        for position, record in positions:
            try:
                yield evaluation_sample(self.split, record, position=position)
            except VshardError as error:
                yield error


def training_loader(
    split: Split, plan: np.ndarray, *, seed: int, epoch: int, start: int, workers: int
) -> Iterator[Sample]:
    """Load the samples ``plan[start:]`` of an epoch in order.

    Args:
        split: the records.
        plan: (draws,) int64 record indexes, from :func:`vshard.stream.order.plan_epoch`.
        seed: the run's seed.
        epoch: from 1.
        start: samples of this epoch that were consumed before.
        workers: processes; 0 loads in this one.
    """
    return _load(Positions(plan, start), TrainingSamples(split, seed, epoch), workers)


def evaluation_loader(split: Split, *, workers: int) -> Iterator[Sample]:
    """Load every record of ``split`` once, in order, for evaluation."""
    return _load(Positions(np.arange(len(split)), 0), EvaluationSamples(split), workers)


def _load(positions: Positions, stage: TrainingSamples | EvaluationSamples, workers: int) -> Iterator[Sample]:
    pipeline = webdataset.DataPipeline(positions, stage)
    loader = webdataset.WebLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
        collate_fn=_as_it_is,
    )
    others = set(multiprocessing.active_children())
    try:
        for loaded in loader:
            if isinstance(loaded, VshardError):
                raise loaded
            yield loaded
    except RuntimeError as error:
        if isinstance(error, VshardError) or "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            "a loader process died (killed, or out of memory); the same command with --resume goes on, with fewer "
            "--num-workers if memory is short"
        ) from error
    finally:
        # Left before its end, torch waits five seconds for each worker that is still handing over a sample.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def _one_thread(_worker: int) -> None:
    """A worker decodes on one thread, the trainer needs the others; and it leaves Ctrl-C to the trainer."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the trainer to end, however it ends, and end with it: a worker would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_it_is(loaded: Loaded) -> Loaded:
    return loaded
