"""The order of an epoch: a pure function of how many records there are, the seed and the epoch.

Needs neither torch nor the records. Positions of an epoch are counted over the whole run; workers take them by
turns, so the sequence of samples is the same for any number of workers.
"""

from __future__ import annotations

import numpy as np

from ..base.errors import OptionError
from ..base.seeds import generator


def plan_epoch(record_count: int, draws: int, *, seed: int, epoch: int) -> np.ndarray:
    """Give the records of an epoch in order: (draws,) int64.

    Every record comes equally often (up to one): whole permutations one after the other, the last one cut.
    """
    if record_count < 1 or draws < 1:
        raise OptionError(f"an epoch needs records and draws; there are {record_count} and {draws}")
    rounds = -(-draws // record_count)
    order = [generator(seed, "order", epoch, turn).permutation(record_count) for turn in range(rounds)]
    return np.concatenate(order)[:draws]


def share_of(plan: np.ndarray, *, start: int, worker: int, workers: int) -> np.ndarray:
    """Give the positions of ``plan`` from ``start`` on that ``worker`` of ``workers`` takes: (n,) int64."""
    return np.arange(start + worker, len(plan), workers)
