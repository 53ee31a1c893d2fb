"""The samples of a training run, epoch after epoch, with an exact position to go on from.

In: a split and what is asked of its stream. Out: samples in an order that is a pure function of the seed, the epoch and
the losses so far, on any number of ranks and workers. Hard records are drawn more often (reference, section 7): the
losses that the trainer reports decide the weights of the next epoch, so an epoch's order never changes under way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from ..base.errors import CheckpointError, DatasetError, OptionError
from ..base.places import Remote
from ..base.report import Report
from .cache import ShardCache
from .hardness import LossHistory, LossReport
from .loader import ON_ERROR, SKIPPED_IN_A_ROW_MAX, Positions, Rank, Skipped, TrainingSamples, load
from .order import BLOCK_SHARDS, EpochPlan, plan_epoch, rank_length
from .prefetch import Prefetch
from .samples import Sample
from .split import Split

_FETCHED_AT_A_TIME = 3

Gather = Callable[[LossReport], Sequence[LossReport]]


@dataclass(frozen=True)
class StreamOptions:
    """What is asked of a stream.

    ``draws``: samples an epoch, of all ranks; None for as many as there are records. ``hard_examples``: draw by the
    losses so far, with replacement; else every record comes equally often. ``workers``: processes, 0 loads in this
    one. ``on_error``: "raise", or "skip" records that cannot be read. ``cache``: for a split in a store.
    """

    seed: int
    draws: int | None = None
    hard_examples: bool = True
    workers: int = 0
    rank: Rank = field(default_factory=Rank)
    on_error: str = "raise"
    cache: ShardCache | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: one is out of its range.
        """
        if self.on_error not in ON_ERROR:
            raise OptionError(f"--on-error {self.on_error}: allowed are {', '.join(ON_ERROR)}")


class TrainingStream:
    """The samples of a run; iterating gives the rest of the epoch, ``end_epoch`` goes on to the next one.

    ``epoch`` counts from 1. ``position``: what all ranks together have consumed of it. ``skipped``: why records could
    not be read, in order.
    """

    def __init__(self, split: Split, options: StreamOptions, report: Report) -> None:
        """Begin before the first sample of the first epoch."""
        self.split, self.options = split, options
        self.epoch, self.position = 1, 0
        self.skipped: list[str] = []
        self._report = report
        self._by_shard = split.by_shard
        self._history = LossHistory(split.keys.tolist())
        self._losses: list[tuple[int, float]] = []
        self._plan = self._make_plan()
        _warn_of_small_cache(split, options.cache, report)

    def __len__(self) -> int:
        """Samples of an epoch that each rank gets, fillers among them."""
        return rank_length(len(self._plan), self.options.rank.count)

    @property
    def plan(self) -> EpochPlan:
        """The epoch's order, in the numbers of ``split.by_shard``."""
        return self._plan

    def __iter__(self) -> Iterator[Sample]:
        """Give the rest of this rank's epoch; what was given counts as consumed.

        Raises:
            RecordError: a record cannot be read, or with "skip" too many in a row.
            StoreError: a store cannot be reached.
            WorkerError: a worker died.
        """
        options, plan = self.options, self._plan
        draw = (self.split, options.seed, self.epoch, len(plan), options.on_error, options.cache)
        positions = Positions(plan, self._by_shard, self.position, options.rank)
        ahead = _Ahead(self.split, plan, self.position, options.cache)
        in_a_row = 0
        try:
            for loaded in load([positions], partial(TrainingSamples, *draw), options.workers):
                self.position = min(self.position + options.rank.count, len(plan))
                ahead.advance(self.position)
                in_a_row = in_a_row + 1 if isinstance(loaded, Skipped) else 0
                yield loaded if isinstance(loaded, Sample) else self._replaced(loaded, in_a_row)
        finally:
            ahead.close()

    def go_to(self, epoch: int) -> None:
        """Begin before the first sample of ``epoch``, in the order of the losses known now."""
        self.epoch, self.position, self._losses = epoch, 0, []
        self._plan = self._make_plan()

    def record_at(self, position: int) -> int:
        """Give the record that is drawn at a position of this epoch."""
        return int(self._by_shard[self._plan.records_at(np.array([position]))][0])

    def note_loss(self, position: int, loss: float) -> None:
        """Say how hard the sample at a position of this epoch was; a loss that is not finite says nothing."""
        if abs(loss) <= float(np.finfo(np.float32).max):  # as float32
            self._losses.append((position, loss))

    @property
    def has_losses(self) -> bool:
        """Whether this rank noted any in this epoch."""
        return bool(self._losses)

    @property
    def mean_loss(self) -> float:
        """The mean of the losses that this rank noted in this epoch, 0 before any."""
        return math.fsum(loss for _, loss in self._losses) / max(len(self._losses), 1)

    def end_epoch(self, gather: Gather = lambda own: [own]) -> float:
        """Go on to the next epoch, whose order depends on the losses noted; give their mean, 0 of none.

        ``gather`` gives what all ranks noted, the same on every rank.
        """
        reports = gather(self._noted())
        self._history.merge(reports, plan_length=len(self._plan))
        self.epoch, self.position, self._losses = self.epoch + 1, 0, []
        self._plan = self._make_plan()
        losses = [loss for report in reports for loss in report.losses.tolist()]
        return math.fsum(losses) / max(len(losses), 1)

    def state_dict(self, gather: Gather = lambda own: [own]) -> dict[str, Any]:
        """Give the exact position as plain values and tensors, which ``torch.load`` takes with ``weights_only``.

        On several ranks all have to call it, with a ``gather``; one of them may save it for all.
        """
        noted = list(gather(self._noted()))
        history = {name: torch.from_numpy(array) for name, array in self._history.state().items()}
        return {
            "epoch": self.epoch,
            "position": self.position,
            "order": self._order(),
            "history": history,
            "positions": torch.from_numpy(np.concatenate([part.positions for part in noted])),
            "losses": torch.from_numpy(np.concatenate([part.losses for part in noted])),
            "skipped": list(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position, with any number of ranks and workers.

        Where records, seed or draws are others now, the epoch starts over, with a warning.

        Raises:
            CheckpointError: ``state`` is none.
        """
        try:
            epoch, position, order, skipped = (
                state[name] for name in ("epoch", "position", "order", "skipped")
            )
            positions, losses = state["positions"].numpy(), state["losses"].numpy()
            kept = {name: state["history"][name].numpy() for name in ("hashes", "losses")}
            plain = type(epoch) is type(position) is int and type(order) is str and type(skipped) is list
            if not plain or epoch < 1 or position < 0 or not all(isinstance(line, str) for line in skipped):
                raise ValueError("its epoch, position, order or skipped records are odd")
            fits = positions.dtype == np.int64 and losses.dtype == np.float32 and np.isfinite(losses).all()
            if not fits or not positions.shape == losses.shape == (len(losses),) or (positions < 0).any():
                raise ValueError(
                    f"losses {losses.shape} {losses.dtype} of positions {positions.shape} {positions.dtype}"
                )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"holds no position of a stream ({error})") from error
        self._history = LossHistory.from_state(self.split.keys.tolist(), kept)
        noted = list(zip(positions.tolist(), losses.tolist(), strict=True))
        self.epoch, self.skipped = epoch, list(skipped)
        self._plan = self._make_plan()
        if position and order != self._order():
            self._report.warn(
                f"the data or the order changed ({order} before, {self._order()} now): epoch {epoch} starts over"
            )
            position, noted = 0, []
        self.position = min(position, len(self._plan))
        # What all ranks noted is kept by the first.
        self._losses = noted if self.options.rank.number == 0 else []

    def _noted(self) -> LossReport:
        positions = np.array([position for position, _ in self._losses], np.int64)
        losses = np.array([loss for _, loss in self._losses], np.float32)
        return LossReport(positions, self._by_shard[self._plan.records_at(positions)], losses)

    def _make_plan(self) -> EpochPlan:
        options = self.options
        weights = self._history.weights()[self._by_shard] if options.hard_examples else None
        return plan_epoch(
            self.split.shard_counts,
            seed=options.seed,
            epoch=self.epoch,
            draws=options.draws,
            weights=weights,
        )

    def _order(self) -> str:
        """Say what an epoch's order comes from, besides the losses."""
        filled = self.split.shard_counts[self.split.shard_counts > 0]
        # Shards that are all mixed at a time leave no trace in the order.
        sizes = filled.tolist() if len(filled) > BLOCK_SHARDS else []
        told = "\n".join([*self.split.keys[self._by_shard].tolist(), *map(str, sizes)])
        keys = hashlib.blake2b(told.encode(), digest_size=4)
        sampling = "by loss" if self.options.hard_examples else "each once a round"
        return (
            f"{len(self.split)} records ({keys.hexdigest()}), {len(self._plan)} draws {sampling}, "
            f"seed {self.options.seed}"
        )

    def _replaced(self, skipped: Skipped, in_a_row: int) -> Sample:
        """Tell of a record that is skipped; give its substitute."""
        self.skipped.append(skipped.reason)
        self._report.warn(f"{skipped.reason} (skipped, {len(self.skipped)} so far)")
        if in_a_row > SKIPPED_IN_A_ROW_MAX or skipped.substitute is None:
            raise DatasetError(
                f"{self.split.root}: {in_a_row} samples in a row cannot be read, the last: {skipped.reason}; see what "
                f"is wrong with: vshard verify {self.split.root}"
            )
        return skipped.substitute


def _warn_of_small_cache(split: Split, cache: ShardCache | None, report: Report) -> None:
    """Records are drawn from a block of shards at a time: its copies all have to fit."""
    sizes = [
        facts.size_bytes
        for place, facts in zip(split.shards, split.facts, strict=True)
        if isinstance(place, Remote)
    ]
    needed = sum(sorted(sizes)[-BLOCK_SHARDS:])
    if cache is not None and needed > cache.limit_bytes:
        report.warn(
            f"{split.root}: {BLOCK_SHARDS} shards are read at a time, {needed / 1e9:.1f} GB, and the cache may hold "
            f"{cache.limit_bytes / 1e9:.1f}: shards will be fetched again and again; raise --cache-limit, or pack "
            "smaller shards"
        )


class _Ahead:
    """Fetches the shards of the next blocks while one is read; does nothing for a split on this machine."""

    def __init__(self, split: Split, plan: EpochPlan, position: int, cache: ShardCache | None) -> None:
        self._prefetch: Prefetch | None = None
        self._ends: Iterator[tuple[int, int]] = iter(())
        if cache is None or not any(isinstance(shard, Remote) for shard in split.shards):
            return
        visits = [
            (end, [shard for shard in shards if shard < len(split.shards)])
            for end, shards in plan.visits(position)
        ]
        wanted = [
            (place, split.facts[shard])
            for _, shards in visits
            for shard in shards
            for place in [split.shards[shard]]
            if isinstance(place, Remote)
        ]
        done = np.cumsum([len(shards) for _, shards in visits]).tolist()
        self._ends = iter([(end, count) for (end, _), count in zip(visits, done, strict=True)])
        self._next = next(self._ends, None)
        self._prefetch = Prefetch(cache, wanted, 2 * BLOCK_SHARDS, _FETCHED_AT_A_TIME)
        self._prefetch.advance(0)

    def advance(self, position: int) -> None:
        """Say that everything before ``position`` was read."""
        while self._prefetch is not None and self._next is not None and position >= self._next[0]:
            self._prefetch.advance(self._next[1])
            self._next = next(self._ends, None)

    def close(self) -> None:
        """End fetching."""
        if self._prefetch is not None:
            self._prefetch.close()
