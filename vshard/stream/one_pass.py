"""A tar that can be read only once and forwards, from standard input or a command -> a sample of every record.

In: one stream after the other, without an index, from anyone. Out: samples in the order of the stream, mixed within a
buffer, decided by the seed. WebDataset's pipeline carries them through one loader process. The tar is taken apart by
our own reader (:mod:`vshard.shards.contents`), not WebDataset's, which takes a stream that is cut off between two
members for a whole one, merges keys that differ after a dot, and lets a sparse member take any amount of memory.

What only records can have that are asked for by number is not there: an exact position, draws by loss, ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..base.errors import DatasetError, OptionError, RecordError, VshardError
from ..base.pipes import Pipe
from ..base.report import Report
from ..base.seeds import generator
from ..base.stores import Place
from ..records import names
from ..records.record import Record, from_files
from ..shards.contents import ShardFile, open_shard, read_records, shard_of
from .loader import ON_ERROR, SKIPPED_IN_A_ROW_MAX, Loaded, Unread, drawn, load
from .reader import File
from .samples import Pictures, Sample, training_sample
from .slots import InSlot, Slots

# Records of 16 frames have 3 to 6 MB; large ones are bounded together.
BUFFER_RECORDS = 64
_BUFFER_BYTES = 1 << 30


class StandardInput:
    """What another program writes to this one; goes to the loader process that reads it."""

    def __init__(self) -> None:
        """Keep standard input open for a loader process, which gets another one."""
        self._file = os.dup(sys.stdin.fileno())

    def __getstate__(self) -> Any:
        from multiprocessing.reduction import DupFd  # not there on every system

        return DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        self._file = file.detach()

    def __str__(self) -> str:
        return "standard input"


Source = Pipe | StandardInput | Place


@dataclass(frozen=True)
class OnePassOptions:
    """What is asked of one pass.

    ``epoch``: which pass of a run this is, from 1. ``buffer_records``: how many are mixed at a time, 1 for none (fewer
    where they have more than 1 GiB together). ``workers``: 1 for a loader process, 0 loads in this one.
    """

    seed: int
    epoch: int = 1
    buffer_records: int = BUFFER_RECORDS
    workers: int = 1
    on_error: str = "raise"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: one is out of its range.
        """
        if self.on_error not in ON_ERROR:
            raise OptionError(f"--on-error {self.on_error}: allowed are {', '.join(ON_ERROR)}")
        if self.workers not in (0, 1):
            raise OptionError(
                f"--num-workers {self.workers}: allowed for a stream that is read once is 0 or 1, for only one process "
                "can read it"
            )
        if self.buffer_records < 1:
            raise OptionError(f"{self.buffer_records} records in the buffer: allowed is 1 or more")


def one_pass(sources: Sequence[Source], options: OnePassOptions, report: Report) -> Iterator[Sample]:
    """Give a sample of every record of ``sources``, which are read once, one after the other.

    Raises:
        ShardError: a stream is damaged or cut off, or no tar of records.
        RecordError: a record is damaged, or cannot be trained on.
        DatasetError: the streams hold no record; with "skip": too many in a row cannot be read.
        StoreError: a command fails, or a store cannot be reached.
        WorkerError: the loader process died.
    """
    stages = (Passing(tuple(sources)), Mixing(options.seed, options.epoch, options.buffer_records))
    make = partial(PassingSamples, options.seed, options.epoch, options.on_error)
    given = skipped = in_a_row = 0
    for loaded in load(stages, make, options.workers):
        if isinstance(loaded, Sample):
            given, in_a_row = given + 1, 0
            yield loaded
            continue
        skipped, in_a_row = skipped + 1, in_a_row + 1
        report.warn(f"{loaded.reason} (skipped, {skipped} so far)")
        if in_a_row > SKIPPED_IN_A_ROW_MAX:
            raise DatasetError(f"{in_a_row} records in a row cannot be read, the last: {loaded.reason}")
    if not given:
        told = ", ".join(map(str, sources))
        raise DatasetError(f"{told[:200]}: gave no sample ({skipped} records skipped); look at what comes in")


@dataclass(frozen=True)
class Passed:
    """A record that came by; ``where``: what to call it in an error."""

    where: str
    key: str
    contents: dict[str, bytes]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.contents.values()))


@dataclass(frozen=True)
class Passing:
    """First stage: the records of streams as they come; an error ends them, as a value."""

    sources: tuple[Source, ...]

    def __call__(self) -> Iterator[Passed | VshardError]:
        try:
            for source in self.sources:
                with _opened(source) as file:
                    for stored in read_records(file, str(source)):
                        yield Passed(f"{source}:{stored.key}", stored.key, stored.contents)
        except VshardError as error:
            yield error


@dataclass(frozen=True)
class Mixing:
    """Second stage: records mixed within a buffer, each once; an error comes behind what came before it."""

    seed: int
    epoch: int
    buffer_records: int

    def __call__(self, records: Iterable[Passed | VshardError]) -> Iterator[Passed | VshardError]:
        rng = generator(self.seed, "one pass", self.epoch)
        held: list[Passed] = []
        held_bytes = 0
        for record in records:
            if isinstance(record, VshardError):
                yield record
                return
            held.append(record)
            held_bytes += record.size_bytes
            while len(held) >= self.buffer_records or held_bytes > _BUFFER_BYTES:
                chosen = _taken(held, rng)
                held_bytes -= chosen.size_bytes
                yield chosen
        while held:
            yield _taken(held, rng)


@dataclass(frozen=True)
class PassingSamples:
    """Third stage: crop and augment, as the draw of the record's place in the pass."""

    seed: int
    epoch: int
    on_error: str = "raise"
    slots: Slots | None = None

    def __call__(self, records: Iterable[Passed | VshardError]) -> Iterator[Loaded]:
        for position, passed in enumerate(records):
            if isinstance(passed, VshardError):
                yield passed
                return
            try:
                yield self._draw(passed, position)
            except RecordError as error:
                yield Unread(str(error), None) if self.on_error == "skip" else error

    def _draw(self, passed: Passed, position: int) -> Sample | InSlot:
        held = _Held(passed.where, from_files(passed.key, passed.contents, passed.where))

        def make(into: Pictures) -> Sample:
            return training_sample(held, 0, seed=self.seed, epoch=self.epoch, position=position, into=into)

        return drawn(make, self.slots)


class _Held:
    """One record in memory, as the reader of samples asks for it."""

    def __init__(self, where: str, record: Record) -> None:
        self._where, self._record = where, record

    def key(self, _record: int) -> str:
        return self._record.key

    def where(self, _record: int) -> str:
        return self._where

    def frame_count(self, _record: int) -> int:
        return len(self._record.frames)

    def frames(self, _record: int, wanted: range) -> Iterator[File]:
        for index in wanted:
            yield File(f"{self._where}.{names.frame_file(index)}", self._record.frames[index])

    def masks(self, _record: int, wanted: range) -> Iterator[File]:
        for index in wanted:
            yield File(f"{self._where}.{names.mask_file(index)}", self._record.masks[index])


def _taken(held: list[Passed], rng: np.random.Generator) -> Passed:
    """Take one out of the buffer; the last one fills its place."""
    place = int(rng.integers(len(held)))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()


@contextmanager
def _opened(source: Source) -> Iterator[ShardFile]:
    if not isinstance(source, StandardInput):
        with open_shard(source) as file:
            yield file
        return
    with open(source._file, "rb", closefd=False) as piped:
        yield shard_of(piped, str(source))
