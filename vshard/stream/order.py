"""The order of an epoch: a pure function of the shards' sizes, the seed, the epoch and the weights.

In: how many records each shard has. Out: an :class:`EpochPlan`, which gives the record at every *position* of the
epoch; :func:`share` gives the positions of one worker of one rank. Needs neither torch nor the records.

Records are numbered shard by shard; loose folders are one shard. Shards are permuted and cut into blocks, and the
records of a block are mixed among themselves, so a reader far from its shards needs one block of them at a time.

Positions are dealt record by record: from the start position on to the ranks by turns, and there to the workers by
turns, a few on end. What a step sees therefore does not depend on the number of workers, and any number of shards
feeds any number of them. Ranks consume in step, so an epoch may go on with another number of them.

The remainder rule: all ranks get ``rank_length`` = ceil(len(plan) / ranks) positions. Where the last turn has too few,
the other ranks get a *filler*: a position >= len(plan), which repeats a record from the start of the plan so that the
ranks keep step. Whoever trains gives it weight 0.

Cost: a block is made when first asked for, and only the last one is kept. 100 million records in one shard take 6-15 s
and 0.4 GB, for a moment 0.8 GB; in 10,000 shards 0.01 s and 10 MB. Drawn by weight, 5-9 s and 0.4 GB more. Every
process that asks makes its own block, unless it was forked from one that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from ..base.errors import OptionError
from ..base.seeds import generator

BLOCK_SHARDS = 16
# Weights are summed in pieces: float64 sums of all of them would take more memory than the weights.
_PIECE = 1 << 20
_CHUNK = 1 << 12

_Made = TypeVar("_Made")


class _Latest(Generic[_Made]):
    """Keeps what was made last; a copy sent to another process starts empty."""

    def __init__(self) -> None:
        self._held: tuple[Hashable, _Made] | None = None

    def __reduce__(self) -> tuple[type[_Latest[_Made]], tuple[()]]:
        return _Latest, ()

    def get(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        # Read and set in one go each, as a thread that fetches ahead may ask too.
        held = self._held
        if held is None or held[0] != key:
            # Let go of the old one first: two blocks of 100 million records are too much.
            held = self._held = None
            held = (key, make())
            self._held = held
        return held[1]


@dataclass(frozen=True, eq=False, repr=False)
class EpochPlan:
    """Which record is at which position of an epoch; made by :func:`plan_epoch`.

    ``offsets``: (shards + 1,) int64; shard s holds the records ``offsets[s]:offsets[s + 1]``. ``length``: positions.
    ``drawn``: None where every record comes once a round, else (length,) int32 or int64, the records drawn, ascending.
    ``edges``: (shards + 1,) int64; what a round takes of shard s is ``edges[s]:edges[s + 1]`` of ``drawn``, or these
    records themselves. ``block_shards``: shards mixed at a time.
    """

    offsets: np.ndarray
    length: int
    drawn: np.ndarray | None
    edges: np.ndarray
    seed: int
    epoch: int
    block_shards: int
    _rounds: _Latest[tuple[np.ndarray, np.ndarray]] = field(default_factory=_Latest, init=False)
    _blocks: _Latest[np.ndarray] = field(default_factory=_Latest, init=False)

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return (
            f"EpochPlan({self.length} positions, {self.offsets[-1]} records in {len(self.offsets) - 1} shards, "
            f"seed {self.seed}, epoch {self.epoch})"
        )

    def records(self, start: int, stop: int) -> np.ndarray:
        """Give the records at the positions [start, stop) of [0, len): (stop - start,) int64."""
        assert 0 <= start <= stop <= self.length
        found = np.empty(stop - start, np.int64)
        position = start
        while position < stop:
            first, _, block = self._block_at(position)
            part = block[position - first : stop - first]
            found[position - start : position - start + len(part)] = part
            position += len(part)
        return found

    def records_at(self, positions: np.ndarray) -> np.ndarray:
        """Give the records at ``positions``, (n,) int64 in any order, fillers among them or not: (n,) int64."""
        inside = positions % self.length
        order = np.argsort(inside, kind="stable")
        ascending = inside[order]
        found = np.empty(len(positions), np.int64)
        done = 0
        while done < len(ascending):
            first, _, block = self._block_at(int(ascending[done]))
            stop = int(np.searchsorted(ascending, first + len(block)))
            found[order[done:stop]] = block[ascending[done:stop] - first]
            done = stop
        return found

    def is_filler(self, position: int) -> bool:
        """Tell whether ``position`` only keeps a rank in step (the remainder rule): its sample has weight 0."""
        return position >= self.length

    def shards_from(self, position: int) -> Iterator[int]:
        """Give the shards needed from ``position`` on, in the order of need; in every round each of them once."""
        for _, shards in self.visits(position):
            yield from shards

    def visits(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """Give, block by block from ``position`` on, where the block ends and its shards in the order of need."""
        while position < self.length:
            first, visited, block = self._block_at(position)
            needed = block[position - first : self.length - first]
            seen: dict[int, None] = {}
            for start in range(0, len(needed), _CHUNK):
                shards = np.searchsorted(self.offsets, needed[start : start + _CHUNK], side="right") - 1
                seen.update(dict.fromkeys(shards.tolist()))
                if len(seen) == len(visited):
                    break
            position = min(first + len(block), self.length)
            yield position, list(seen)

    def _block_at(self, position: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Give the block that holds ``position``: its first position, its shards, its records in order."""
        round_length = int(self.edges[-1])
        turn, within = divmod(position, round_length)
        shards, starts = self._rounds.get(turn, lambda: self._round(turn))
        number = int(np.searchsorted(starts, within, side="right")) - 1
        part = shards[number * self.block_shards : (number + 1) * self.block_shards]
        block = self._blocks.get((turn, number), lambda: self._mixed(turn, number, part))
        return turn * round_length + int(starts[number]), part, block

    def _round(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the shards of a round in order, and where in the round each block of them starts."""
        sizes = np.diff(self.edges)
        shards = generator(self.seed, "order", self.epoch, turn, "shards").permutation(np.flatnonzero(sizes))
        blocks = np.add.reduceat(sizes[shards], np.arange(0, len(shards), self.block_shards))
        return shards, np.concatenate([[0], np.cumsum(blocks)[:-1]])

    def _mixed(self, turn: int, number: int, shards: np.ndarray) -> np.ndarray:
        """Give the records that a round takes of ``shards``, shuffled: int32 where they fit, else int64."""
        # Sorted: few shards in the order of their records give the order that loose folders give.
        spans = [(int(self.edges[shard]), int(self.edges[shard + 1])) for shard in sorted(shards.tolist())]
        if self.drawn is None:
            kind = _id_type(int(self.offsets[-1]))
            block = np.concatenate([np.arange(start, stop, dtype=kind) for start, stop in spans])
        else:
            block = np.concatenate([self.drawn[start:stop] for start, stop in spans])
        generator(self.seed, "order", self.epoch, turn, number).shuffle(block)
        return block


def plan_epoch(
    counts: Sequence[int] | np.ndarray,
    *,
    seed: int,
    epoch: int,
    draws: int | None = None,
    weights: np.ndarray | None = None,
    block_shards: int = BLOCK_SHARDS,
) -> EpochPlan:
    """Plan an epoch.

    Args:
        counts: (shards,) records of each shard, 0 allowed; one count for loose folders.
        seed: the run's.
        epoch: from 1.
        draws: positions of the epoch; None for as many as there are records.
        weights: None: every record comes equally often, up to one (whole rounds one after the other, the last one
            cut: an epoch of few draws then visits few shards). (records,) float32 >= 0: each position is a draw
            with replacement, by weight.
        block_shards: how many shards are mixed at a time. More mix better, and cost a distant reader more space.

    Raises:
        OptionError: no record, no draw, no shard to a block; weights that are not finite, negative or all 0.
    """
    offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
    record_count = int(offsets[-1])
    length = record_count if draws is None else draws
    if record_count < 1 or length < 1 or block_shards < 1:
        raise OptionError(
            f"an epoch needs records, draws and shards to mix; there are {record_count}, {length} and {block_shards}"
        )
    if weights is None:
        return EpochPlan(offsets, length, None, offsets, seed, epoch, block_shards)
    assert weights.shape == (record_count,)
    drawn = _draw(weights, length, seed, epoch)
    edges = np.searchsorted(drawn, offsets.astype(drawn.dtype))
    return EpochPlan(offsets, length, drawn, edges, seed, epoch, block_shards)


def rank_length(plan_length: int, ranks: int) -> int:
    """Give how many positions, fillers among them, each of ``ranks`` gets."""
    return -(-plan_length // ranks)


def share(
    plan_length: int,
    *,
    rank: int,
    ranks: int,
    worker: int,
    workers: int,
    start: int,
    together: int = 1,
) -> Iterator[np.ndarray]:
    """Give the positions that ``worker`` of ``rank`` takes, ascending, in chunks of int64.

    ``start`` is the first position that none has consumed before. The turns of ranks and workers begin anew there, so
    loaders that ask their workers by turns from the first one on, for ``together`` positions at a time, get the rest of
    the sequence, whatever the numbers of ranks and workers were.
    """
    turns = rank_length(plan_length - start, ranks)
    lap = workers * together
    for first in range(worker * together, turns, _CHUNK * lap):
        begun = np.arange(first, min(first + _CHUNK * lap, turns), lap, dtype=np.int64)
        taken = (begun[:, None] + np.arange(together)).reshape(-1)
        yield start + taken[taken < turns] * ranks + rank


def _draw(weights: np.ndarray, draws: int, seed: int, epoch: int) -> np.ndarray:
    """Draw records by weight with replacement, ascending: the draws are dealt to pieces of the weights first."""
    starts = range(0, len(weights), _PIECE)
    pieces = [weights[start : start + _PIECE] for start in starts]
    sums = np.array([piece.sum(dtype=np.float64) for piece in pieces])
    total = sums.sum()
    if not (np.isfinite(total) and total > 0 and all(piece.min() >= 0 for piece in pieces)):
        raise OptionError(
            "the weights of an epoch's records must be finite numbers of at least 0, and not all 0; they sum to "
            f"{total}, the least is {weights.min()}"
        )
    shares = _deal(sums, draws, generator(seed, "draws", epoch))
    drawn = np.empty(draws, _id_type(len(weights)))
    done = 0
    for number in np.flatnonzero(shares).tolist():
        reached = np.cumsum(pieces[number], dtype=np.float64)
        # random() is at most 1 - 2**-53, so the product stays below the last sum. Sorted ones are found faster.
        at = np.sort(generator(seed, "draws", epoch, number).random(int(shares[number])) * reached[-1])
        drawn[done : done + len(at)] = np.searchsorted(reached, at, side="right") + starts[number]
        done += len(at)
    return drawn


def _deal(sums: np.ndarray, draws: int, chance: np.random.Generator) -> np.ndarray:
    """Deal draws to pieces by the sums of their weights: (pieces,) int64."""
    shares = np.zeros(len(sums), np.int64)
    # Pieces of weight 0 are left out: where they come last, rounding gives them 100 of 10**18 draws.
    some = np.flatnonzero(sums)
    shares[some] = chance.multinomial(draws, sums[some] / sums.sum())
    return shares


def _id_type(record_count: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if record_count < 2**31 else np.int64
