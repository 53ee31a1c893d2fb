from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vshard.base.errors import OptionError
from vshard.stream.order import EpochPlan, _deal, plan_epoch, rank_length, share

# Shards of up to 12 records, some of them empty, at least one record in all.
shard_counts = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)
small = st.integers(1, 7)


@dataclass(frozen=True)
class Run:
    """How an epoch is read: by how many ranks, each with how many workers, which take how many on end."""

    ranks: int
    workers: int
    together: int = 1


runs = st.builds(Run, small, small, st.integers(1, 3))


def everything(plan: EpochPlan) -> list[int]:
    return plan.records(0, len(plan)).tolist()


def positions_of(length: int, rank: int, run: Run, worker: int, start: int = 0) -> list[int]:
    chunks = share(
        length,
        rank=rank,
        ranks=run.ranks,
        worker=worker,
        workers=run.workers,
        start=start * run.ranks,
        together=run.together,
    )
    return [position for chunk in chunks for position in chunk.tolist()]


def by_turns(length: int, rank: int, run: Run, start: int = 0) -> Iterator[int]:
    """What a loader makes of it: what each worker takes on end in turn, the first worker first."""
    shares = [positions_of(length, rank, run, worker, start) for worker in range(run.workers)]
    for turn in range(0, max(len(each) for each in shares), run.together):
        for each in shares:
            yield from each[turn : turn + run.together]


def slow_order(counts: list[int], turn: int, seed: int, epoch: int, block_shards: int) -> list[int]:
    """One round, written without arrays of places: what the fast one must give."""
    from vshard.base.seeds import generator

    ids = iter(range(sum(counts)))
    shards = {number: [next(ids) for _ in range(count)] for number, count in enumerate(counts)}
    filled = [number for number, records in shards.items() if records]
    order = generator(seed, "order", epoch, turn, "shards").permutation(filled).tolist()
    found: list[int] = []
    for block in range(0, len(order), block_shards):
        mixed = [record for shard in sorted(order[block : block + block_shards]) for record in shards[shard]]
        generator(seed, "order", epoch, turn, block // block_shards).shuffle(mixed)
        found += mixed
    return found


@given(shard_counts, st.integers(1, 200), st.integers(0, 5), st.integers(1, 5), st.integers(1, 12))
def test_records_come_equally_often_up_to_one(
    counts: list[int], draws: int, seed: int, epoch: int, block_shards: int
) -> None:
    plan = plan_epoch(counts, seed=seed, epoch=epoch, draws=draws, block_shards=block_shards)
    times = np.bincount(everything(plan), minlength=sum(counts))
    assert len(plan) == draws
    assert times.max() - times.min() <= 1
    rounds = -(-draws // sum(counts))
    slow = [
        record for turn in range(rounds) for record in slow_order(counts, turn, seed, epoch, block_shards)
    ]
    assert everything(plan) == slow[:draws]


@given(shard_counts, runs, st.integers(1, 3))
def test_every_record_reaches_one_worker_of_one_rank(counts: list[int], run: Run, block_shards: int) -> None:
    plan = plan_epoch(counts, seed=1, epoch=1, block_shards=block_shards)
    ranks = [
        [positions_of(len(plan), rank, run, worker) for worker in range(run.workers)]
        for rank in range(run.ranks)
    ]
    assert {sum(map(len, workers)) for workers in ranks} == {rank_length(len(plan), run.ranks)}
    positions = [position for workers in ranks for each in workers for position in each]
    assert sorted(positions) == list(range(run.ranks * rank_length(len(plan), run.ranks)))
    real = np.array([position for position in positions if not plan.is_filler(position)])
    assert sorted(plan.records_at(real).tolist()) == list(range(sum(counts)))
    # A filler is only in the last turn, and repeats the epoch's first records.
    fillers = np.array([position for position in positions if plan.is_filler(position)], np.int64)
    assert len(fillers) < run.ranks
    assert [everything(plan)[p % len(plan)] for p in fillers] == plan.records_at(fillers).tolist()


@given(st.integers(1, 300), runs, st.data())
def test_position_p_is_dealt_to_rank_and_worker_by_turns(length: int, run: Run, data: st.DataObject) -> None:
    p = data.draw(st.integers(0, length - 1))
    worker = p // run.ranks // run.together % run.workers
    assert p in positions_of(length, p % run.ranks, run, worker)


@given(st.integers(1, 300), small, small, small, st.integers(1, 3), st.data())
def test_any_stop_goes_on_with_any_number_of_workers(
    length: int, ranks: int, before: int, after: int, together: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, rank_length(length, ranks)))
    for rank in range(ranks):
        whole = list(by_turns(length, rank, Run(ranks, 1)))
        assert whole == list(range(rank, ranks * rank_length(length, ranks), ranks))
        assert list(by_turns(length, rank, Run(ranks, before, together))) == whole
        assert list(by_turns(length, rank, Run(ranks, after, together), start)) == whole[start:]


def test_long_shares_come_in_chunks() -> None:
    run = Run(8, 16)
    chunks = share(100_000_000, rank=7, ranks=8, worker=15, workers=16, start=24)
    first, second = next(chunks), next(chunks)
    assert len(first) < 100_000
    assert first.dtype == np.int64
    assert first[0] == 7 + 8 * (3 + 15)
    assert np.unique(np.diff(np.concatenate([first, second]))).tolist() == [run.ranks * run.workers]
    assert list(by_turns(200_000, 1, Run(2, 3), 5)) == list(range(11, 200_000, 2))


@given(shard_counts, st.integers(1, 4), st.integers(1, 80), st.booleans(), st.data())
def test_no_more_than_a_block_of_shards_is_in_use(
    counts: list[int], block_shards: int, draws: int, weighted: bool, data: st.DataObject
) -> None:
    weights = np.arange(1, sum(counts) + 1, dtype=np.float32) if weighted else None
    plan = plan_epoch(counts, seed=3, epoch=2, draws=draws, weights=weights, block_shards=block_shards)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    round_length = draws if weighted else sum(counts)
    for start in range(0, draws, round_length):
        shards = shard_of[plan.records(start, min(start + round_length, draws))].tolist()
        last = {shard: at for at, shard in enumerate(shards)}
        first = {shard: at for at, shard in reversed(list(enumerate(shards)))}
        for at in range(len(shards)):
            assert sum(first[shard] <= at <= last[shard] for shard in first) <= block_shards
    # Fetched ahead: from any position, what the rest of each round asks for, in that order.
    position = data.draw(st.integers(0, draws))
    wanted: list[int] = []
    for turn in range(position // round_length, -(-draws // round_length)):
        start, stop = max(position, turn * round_length), min((turn + 1) * round_length, draws)
        wanted += dict.fromkeys(shard_of[plan.records(start, stop)].tolist())
    assert list(plan.shards_from(position)) == wanted


def test_a_rare_shard_of_a_large_block_is_fetched_too() -> None:
    counts = [20_000, 1, 20_000]
    plan = plan_epoch(counts, seed=4, epoch=1)
    assert sorted(plan.shards_from(0)) == [0, 1, 2]
    assert int(np.flatnonzero(plan.records(0, len(plan)) == 20_000)[0]) > 10_000, (
        "not a rare one: change the seed"
    )


@given(shard_counts, st.integers(1, 60), st.data())
def test_any_piece_of_the_order_is_the_same(counts: list[int], draws: int, data: st.DataObject) -> None:
    plan = plan_epoch(counts, seed=4, epoch=1, draws=draws, block_shards=2)
    whole = everything(plan)
    start = data.draw(st.integers(0, draws))
    stop = data.draw(st.integers(start, draws))
    assert plan.records(start, stop).dtype == np.int64
    assert plan.records(start, stop).tolist() == whole[start:stop]
    mixed = np.array(data.draw(st.lists(st.integers(0, 2 * draws))), np.int64)
    assert plan.records_at(mixed).tolist() == [whole[p % draws] for p in mixed]


def test_epochs_rounds_and_seeds_differ() -> None:
    orders = {
        plan_epoch([50], seed=seed, epoch=epoch, draws=100).records(start, start + 50).tobytes()
        for seed in range(3)
        for epoch in range(1, 4)
        for start in (0, 50)
    }
    assert len(orders) == 18


def test_one_shard_is_shuffled_as_a_whole() -> None:
    """Where record 0 comes to lie is even over the epoch (chi-square, 9 degrees of freedom, 99.9 %: 27.9)."""
    places = [everything(plan_epoch([10], seed=seed, epoch=1)).index(0) for seed in range(2000)]
    assert (np.square(np.bincount(places, minlength=10) - 200) / 200).sum() < 27.9


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_order_in_another_process(weighted: bool) -> None:
    weights = "np.arange(9, dtype=np.float32)" if weighted else "None"
    code = (
        "import numpy as np; from vshard.stream.order import plan_epoch; import sys;"
        f"plan = plan_epoch([4, 0, 5], seed=5, epoch=2, draws=20, block_shards=1, weights={weights});"
        "print(plan.records(0, 20).tolist(), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    given = np.arange(9, dtype=np.float32) if weighted else None
    plan = plan_epoch([4, 0, 5], seed=5, epoch=2, draws=20, block_shards=1, weights=given)
    assert out.strip() == f"{everything(plan)} False"
    # Sent to a worker, it gives the same, and the block at hand stays here.
    sent = pickle.dumps(plan_epoch([100_000], seed=1, epoch=1))
    warm = plan_epoch([100_000], seed=1, epoch=1)
    warm.records(0, 1)
    assert len(pickle.dumps(warm)) == len(sent) < 2000
    assert everything(pickle.loads(sent)) == everything(warm)


@pytest.mark.parametrize("counts", [[3000], [300] * 10, [0, 2990, 10]])
def test_draws_follow_the_weights(counts: list[int]) -> None:
    """Chi-square of 300,000 draws over 3000 records: mean 2999, standard deviation 77; 4 of them are allowed."""
    weights = np.random.default_rng(1).uniform(0.25, 1, 3000).astype(np.float32)
    plan = plan_epoch(counts, seed=2, epoch=1, draws=300_000, weights=weights, block_shards=4)
    times = np.bincount(everything(plan), minlength=3000)
    expected = 300_000 * weights.astype(np.float64) / weights.sum(dtype=np.float64)
    chi_square = (np.square(times - expected) / expected).sum()
    assert abs(chi_square - 2999) < 4 * 77.4
    assert everything(plan) != everything(plan_epoch(counts, seed=2, epoch=2, draws=300_000, weights=weights))


def test_draws_follow_the_weights_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are summed in pieces; here of 7 records, one piece of weight 0, the last one short and of 0."""
    monkeypatch.setattr("vshard.stream.order._PIECE", 7)
    weights = np.array([1, 0, 2, 0, 0, 4, 1] + [0] * 7 + [3, 0, 0, 0, 0, 0, 5] + [0, 0], np.float32)
    plan = plan_epoch([20, 3], seed=7, epoch=1, draws=16_000, weights=weights)
    times = np.bincount(everything(plan), minlength=23)
    expected = 1000 * weights
    assert (times[weights == 0] == 0).all()
    some = weights > 0
    # 5 degrees of freedom, 99.9 %: 20.5.
    assert (np.square(times - expected)[some] / expected[some]).sum() < 20.5


def test_a_piece_of_weight_0_gets_no_draw_by_rounding() -> None:
    for pieces in range(1, 14):
        dealt = _deal(np.array([0.1] * pieces + [0.0]), 10**18, np.random.default_rng(pieces))
        assert dealt.sum() == 10**18
        assert dealt[-1] == 0


def test_draws_of_a_block_are_mixed() -> None:
    weights = np.ones(1000, np.float32)
    order = plan_epoch([500, 500], seed=1, epoch=1, weights=weights).records(0, 1000)
    assert len(order) == 1000
    assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.1


def test_nothing_to_order() -> None:
    for counts, draws, block_shards in (([0], None, 16), ([5], 0, 16), ([5], None, 0)):
        with pytest.raises(OptionError, match="an epoch needs"):
            plan_epoch(counts, seed=1, epoch=1, draws=draws, block_shards=block_shards)


@pytest.mark.parametrize("wrong", [[0, 0, 0], [1, float("nan"), 1], [1, -0.5, 1], [1, float("inf"), 1]])
def test_weights_that_are_none(wrong: list[float]) -> None:
    with pytest.raises(OptionError, match="must be finite numbers of at least 0"):
        plan_epoch([3], seed=1, epoch=1, weights=np.array(wrong, np.float32))


@pytest.mark.parametrize(
    ("shards", "block_shards", "bytes_a_record"), [(1, 16, 8), (2, 1, 4), (1000, 16, 0.2)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_memory_of_ten_million_records(
    shards: int, block_shards: int, bytes_a_record: float, weighted: bool
) -> None:
    """A block takes twice 4 bytes a record at its peak, the one before it nothing; by weight, 4 a draw are kept."""
    records = 10_000_000
    weights = np.ones(records, np.float32) if weighted else None
    tracemalloc.start()
    try:
        counts = [records // shards] * shards
        plan = plan_epoch(counts, seed=1, epoch=1, weights=weights, block_shards=block_shards)
        plan.records(0, 10)
        plan.records(records - 10, records)
        next(iter(share(records, rank=0, ranks=2, worker=0, workers=16, start=0)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Drawing takes some float64 of 2**20 weights at a time beside.
    allowed = bytes_a_record * records + 1e6 + (4 * records + 40e6 if weighted else 0)
    assert peak < allowed


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.data())
def test_an_epoch_goes_on_with_another_number_of_ranks(
    length: int, before: int, after: int, workers: int, data: st.DataObject
) -> None:
    start = before * data.draw(st.integers(0, length // before))
    rest = [
        position
        for rank in range(after)
        for worker in range(workers)
        for chunk in share(length, rank=rank, ranks=after, worker=worker, workers=workers, start=start)
        for position in chunk.tolist()
    ]
    assert sorted(position for position in rest if position < length) == list(range(start, length))
    assert len(rest) == after * rank_length(length - start, after)


@given(shard_counts, st.integers(1, 4), st.integers(0, 60))
def test_visits_tell_where_each_block_ends(counts: list[int], block_shards: int, start: int) -> None:
    plan = plan_epoch(counts, seed=5, epoch=1, block_shards=block_shards)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    position = min(start, len(plan))
    for end, shards in plan.visits(position):
        assert sorted(shards) == sorted(set(shard_of[plan.records(position, end)].tolist()))
        assert len(shards) <= block_shards
        position = end
    assert position == len(plan)
