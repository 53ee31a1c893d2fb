from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vshard.base.errors import OptionError
from vshard.stream.order import plan_epoch, share_of


@given(st.integers(1, 200), st.integers(1, 500), st.integers(0, 5), st.integers(1, 5))
def test_records_come_equally_often_up_to_one(records: int, draws: int, seed: int, epoch: int) -> None:
    plan = plan_epoch(records, draws, seed=seed, epoch=epoch)
    counts = np.bincount(plan, minlength=records)
    assert len(plan) == draws
    assert counts.max() - counts.min() <= 1
    assert (plan_epoch(records, draws, seed=seed, epoch=epoch) == plan).all()


def test_epochs_and_seeds_differ() -> None:
    plans = {
        plan_epoch(50, 50, seed=seed, epoch=epoch).tobytes() for seed in range(3) for epoch in range(1, 4)
    }
    assert len(plans) == 9


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 8))
def test_workers_share_what_is_left_without_loss(length: int, start: int, workers: int) -> None:
    plan = np.arange(length)
    shares = [share_of(plan, start=start, worker=w, workers=workers).tolist() for w in range(workers)]
    assert sorted(position for share in shares for position in share) == list(range(start, length))
    # Taken by turns, the shares give the plan's order back.
    turns = [share[i] for i in range(length) for share in shares if i < len(share)]
    assert turns == list(range(start, length))


def test_the_same_order_in_another_process() -> None:
    code = "from vshard.stream.order import plan_epoch; print(plan_epoch(9, 9, seed=5, epoch=2).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(plan_epoch(9, 9, seed=5, epoch=2).tolist())


def test_nothing_to_order() -> None:
    with pytest.raises(OptionError):
        plan_epoch(0, 5, seed=1, epoch=1)
