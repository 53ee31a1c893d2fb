"""Which records are hard: the last losses of each, and the weights to draw records by (reference, section 7).

In: the losses of a training run, by record. Out: the weights for :func:`vshard.stream.order.plan_epoch`. What is kept
for a checkpoint goes by the hash of the record's key, so losses stay with their record when a dataset has grown and
its records have new numbers. Cost: 24 bytes a record, and 1.2 s per million of them for the hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..base.errors import CheckpointError, OptionError

HISTORY = 4
# Below this many seen records their spread says little, and all weigh the same.
SEEN_MIN = 4
SPREADS_MAX = 2.0
# Over the easiest's 1.
HARDEST_WEIGHT = 4.0


@dataclass(frozen=True)
class LossReport:
    """Losses as one rank found them: ``positions`` and ``records`` (n,) int64, ``losses`` (n,) float32."""

    positions: np.ndarray
    records: np.ndarray
    losses: np.ndarray


class LossHistory:
    """The last 4 losses of every record.

    ``losses``: (records, 4) float32, oldest first, NaN in front where there were fewer. ``hashes``: (records,) int64,
    the 8-byte BLAKE2 hashes of the keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        """Begin without losses; ``keys`` are the keys of all records, in the order of their numbers."""
        digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
        self.hashes = np.frombuffer(digests, "<i8").astype(np.int64)
        self.losses = np.full((len(self.hashes), HISTORY), np.nan, np.float32)

    def add(self, records: np.ndarray, losses: np.ndarray) -> None:
        """Add losses in the order given: records (n,) int64, repeats allowed, losses (n,) float32.

        Raises:
            OptionError: a loss is not finite (the reference has no rule for it): it would spoil the mean behind every
                weight. None of ``losses`` is taken then.
        """
        values = np.asarray(losses, np.float32)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise OptionError(
                f"record {records[bad[0]]}: a loss of {values[bad[0]]} says nothing of its hardness; leave it out"
            )
        order = np.argsort(records, kind="stable")
        values = values[order]
        found, first, count = np.unique(records[order], return_index=True, return_counts=True)
        before = self.losses[found]
        rows = np.arange(len(found))
        for age in range(HISTORY):
            fresh = values[first + np.maximum(count - 1 - age, 0)]
            shifted = before[rows, np.minimum(HISTORY - 1 - age + count, HISTORY - 1)]
            self.losses[found, HISTORY - 1 - age] = np.where(age < count, fresh, shifted)

    def merge(self, parts: Iterable[LossReport], *, plan_length: int) -> None:
        """Add what several ranks found since the last time, as one process would have: by position, less fillers.

        ``plan_length``: the positions from there on are fillers (see :mod:`vshard.stream.order`).

        Raises:
            OptionError: a loss is not finite.
        """
        listed = list(parts)
        positions = np.concatenate([part.positions for part in listed])
        order = np.argsort(positions, kind="stable")
        order = order[positions[order] < plan_length]
        self.add(
            np.concatenate([part.records for part in listed])[order],
            np.concatenate([part.losses for part in listed])[order],
        )

    def weights(self) -> np.ndarray:
        """Give (records,) float32 weights: 1 for the unseen and the hardest, down to 0.25 for the easiest."""
        weights = np.ones(len(self.losses), np.float32)
        seen = self._seen()
        if len(seen) >= SEEN_MIN:
            means = np.nanmean(self.losses[seen], axis=1, dtype=np.float64)
            centre = means.mean()
            spread = means.std(ddof=1) + min(abs(centre) * 1e-6, 1e-6)
            # All losses 0: no spread at all, and nobody is off the centre.
            off = np.clip((means - centre) / (spread or 1.0), -SPREADS_MAX, SPREADS_MAX)
            share = (off + SPREADS_MAX) / (2 * SPREADS_MAX)
            weights[seen] = np.clip(share * HARDEST_WEIGHT + 1, 1, HARDEST_WEIGHT) / HARDEST_WEIGHT
        return weights

    def state(self) -> dict[str, np.ndarray]:
        """Give what a checkpoint keeps, of the records seen: "hashes" (n,) int64 and "losses" (n, 4) float32."""
        seen = self._seen()
        return {"hashes": self.hashes[seen], "losses": self.losses[seen]}

    @classmethod
    def from_state(cls, keys: Iterable[str], state: Mapping[str, np.ndarray]) -> LossHistory:
        """Begin with the losses of an earlier :meth:`state`; ``keys`` may have grown, and lost some.

        Raises:
            CheckpointError: the arrays are not of these types and shapes, or a loss is infinite.
            KeyError: there are none.
        """
        hashes, losses = state["hashes"], state["losses"]
        fits = hashes.shape == (hashes.size,) and losses.shape == (hashes.size, HISTORY)
        if not fits or hashes.dtype != np.int64 or losses.dtype != np.float32 or np.isinf(losses).any():
            raise CheckpointError(
                f"the losses kept for hard examples are {hashes.shape} {hashes.dtype} and {losses.shape} "
                f"{losses.dtype}, not finite (n,) int64 and (n, {HISTORY}) float32; take the checkpoint's weights only "
                "with --resume --reset-state"
            )
        history = cls(keys)
        _, ours, theirs = np.intersect1d(history.hashes, hashes, return_indices=True)
        history.losses[ours] = losses[theirs]
        return history

    def _seen(self) -> np.ndarray:
        return np.flatnonzero(np.isfinite(self.losses[:, -1]))
