from __future__ import annotations

import io
import json
from collections import deque

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from vshard.base.errors import CheckpointError, OptionError
from vshard.stream.hardness import LossHistory, LossReport

RUNS = json.loads((GOLDEN / "sampler.json").read_text())["runs"]
# Float32 from the start, as the losses of a run are.
some_losses = st.floats(0, 10, width=32)


def named(count: int) -> list[str]:
    return [f"video_{number:06}" for number in range(count)]


def added(count: int, reports: list[tuple[int, float]]) -> LossHistory:
    history = LossHistory(named(count))
    add(history, reports)
    return history


def add(history: LossHistory, reports: list[tuple[int, float]]) -> None:
    records = np.array([record for record, _ in reports], np.int64)
    history.add(records, np.array([loss for _, loss in reports], np.float32))


@pytest.mark.parametrize("run", RUNS, ids=[f"size-{run['size']}" for run in RUNS])
def test_golden_weights(run: dict[str, list]) -> None:
    assert run["history_size"] == 4
    assert run["scale_factor"] == 4
    history = LossHistory(named(run["size"]))
    for step in run["steps"]:
        add(history, [(record, loss) for records, loss in step["updates"] for record in records])
        weights = history.weights()
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, step["weights_after"], rtol=0, atol=2e-6)
        means = [np.nan if mean is None else mean for mean in step["moving_average_after"]]
        seen = np.isfinite(means)
        assert (np.isfinite(history.losses).any(axis=1) == seen).all()
        np.testing.assert_allclose(np.nanmean(history.losses[seen], axis=1), np.array(means)[seen], atol=2e-6)


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), some_losses), max_size=20), max_size=5))
def test_the_last_four_are_kept(calls: list[list[tuple[int, float]]]) -> None:
    history = LossHistory(named(6))
    slow = [deque([np.nan] * 4, maxlen=4) for _ in range(6)]
    for reports in calls:
        add(history, reports)
        for record, loss in reports:
            slow[record].append(loss)
    np.testing.assert_array_equal(history.losses, np.array(slow, np.float32))
    once = added(6, [report for reports in calls for report in reports])
    np.testing.assert_array_equal(once.losses, history.losses)


@given(st.lists(st.tuples(st.integers(0, 7), some_losses), max_size=40))
def test_weights_are_from_a_quarter_to_one(reports: list[tuple[int, float]]) -> None:
    history = added(9, reports)
    weights = history.weights()
    assert ((weights >= 0.25) & (weights <= 1)).all()
    assert weights[8] == 1
    if len({record for record, _ in reports}) < 4:
        assert (weights == 1).all()
    means = np.array(
        [np.mean(row[np.isfinite(row)]) if np.isfinite(row).any() else np.inf for row in history.losses]
    )
    assert (np.diff(weights[np.argsort(means, kind="stable")]) >= 0).all() or (weights == 1).all()


def test_losses_that_are_all_the_same_weigh_the_same() -> None:
    for loss in (0.0, 0.1, 3e38):
        weights = added(5, [(record, loss) for record in range(4)] * 3).weights()
        assert weights.tolist() == [0.75, 0.75, 0.75, 0.75, 1]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_refused_and_nothing_taken(loss: float) -> None:
    history = LossHistory(named(3))
    with pytest.raises(OptionError, match="record 2: a loss of"):
        add(history, [(0, 1.0), (2, loss)])
    assert np.isnan(history.losses).all()


@given(
    st.lists(st.tuples(st.integers(0, 5), some_losses), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_ranks_together_know_what_one_process_does(reports, ranks: int, windows: int, shuffle) -> None:
    """The losses of positions dealt to ranks, fillers among them, merged from time to time."""
    alone = added(6, reports)
    length = len(reports)
    records, losses = np.array([r for r, _ in reports]), np.array([x for _, x in reports], np.float32)
    together = LossHistory(named(6))
    turns = -(-length // ranks)
    for window in np.array_split(np.arange(turns), windows):
        parts = []
        for rank in range(ranks):
            positions = window * ranks + rank
            # A filler's loss is of other weights than the first: it must not be counted again.
            found = np.where(positions < length, losses[positions % length], 77)
            parts.append(LossReport(positions, records[positions % length], found.astype(np.float32)))
        shuffle.shuffle(parts)
        together.merge(parts, plan_length=length)
    np.testing.assert_array_equal(together.losses, alone.losses)
    np.testing.assert_array_equal(together.weights(), alone.weights())


@given(
    st.lists(st.tuples(st.integers(0, 5), some_losses), max_size=30),
    st.permutations([*named(6), *(f"other_{number}" for number in range(4))]),
    st.integers(0, 10),
)
def test_losses_follow_their_record_into_another_dataset(
    reports: list[tuple[int, float]], order: list[str], kept: int
) -> None:
    before = added(6, reports)
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in before.state().items()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    keys = order[:kept]
    after = LossHistory.from_state(keys, {name: tensor.numpy() for name, tensor in loaded.items()})
    old = dict(zip(named(6), before.losses, strict=True))
    for key, row in zip(keys, after.losses, strict=True):
        np.testing.assert_array_equal(row, old.get(key, np.full(4, np.nan, np.float32)))
    if set(named(6)) <= set(keys):
        weights = dict(zip(keys, after.weights(), strict=True))
        assert [weights[key] for key in named(6)] == before.weights().tolist()


def test_only_records_that_were_seen_are_kept() -> None:
    state = added(1000, [(7, 1.0), (900, 2.0), (7, 3.0)]).state()
    assert {name: array.shape for name, array in state.items()} == {"hashes": (2,), "losses": (2, 4)}


def test_keys_of_an_array_are_the_same_keys() -> None:
    """A split's keys are an array of strings; the hashes are the same in every run."""
    assert LossHistory(np.array(["a_1", "é"])).hashes.tolist() == LossHistory(["a_1", "é"]).hashes.tolist()
    assert LossHistory(["a_1"]).hashes.tolist() == [-4811081418548651268]


@pytest.mark.parametrize(
    "wrong",
    [
        {"losses": np.zeros((2, 3), np.float32)},
        {"losses": np.zeros((1, 4), np.float32)},
        {"losses": np.zeros((2, 4), np.float64)},
        {"losses": np.full((2, 4), np.inf, np.float32)},
        {"hashes": np.zeros(2, np.float32)},
        {"hashes": np.zeros((2, 1), np.int64)},
    ],
)
def test_a_state_that_is_none(wrong: dict[str, np.ndarray]) -> None:
    state = {"hashes": np.arange(2), "losses": np.zeros((2, 4), np.float32), **wrong}
    with pytest.raises(CheckpointError, match="--reset-state"):
        LossHistory.from_state(named(3), state)
