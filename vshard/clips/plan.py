"""Which frames make which sequence: pure functions of time stamps and options.

In: the frames' time stamps. Out: :class:`Sequence`s of ``--seq`` frames. Decided before a picture is decoded,
so totals are known at the start and a rerun plans the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .probe import VideoInfo

# Frame rates people write short, and what they mean (facts of the original, section 2).
EXACT_RATES = {
    "29.97": Fraction(30000, 1001),
    "23.976": Fraction(24000, 1001),
    "59.94": Fraction(60000, 1001),
}
# The last slot may lie this share of a slot behind the last frame: containers round time stamps.
_SLOT_SLACK = 0.1


@dataclass(frozen=True)
class Sequence:
    """Planned frames of one video: ``number`` counts from 0, ``pts`` in the video's time base."""

    number: int
    pts: tuple[int, ...]


def exact_rate(rate: float) -> Fraction:
    """Give the exact frame rate that a short number stands for: 29.97 is 30000/1001."""
    return EXACT_RATES.get(f"{rate:g}", Fraction(rate).limit_denominator(1001))


def sample_frames(
    pts: np.ndarray, time_base: Fraction, source_rate: Fraction, max_rate: Fraction
) -> np.ndarray:
    """Choose frames at a constant rate of at most ``max_rate`` without ever repeating one.

    Slot k lies at k / min(source_rate, max_rate) seconds after the first frame; the real frame nearest to a
    slot takes it (the earlier on a tie), and a slot that no frame is nearest to stays empty, as does one behind
    the last frame. So an integer ratio gives an integer stride, and a variable-rate clip never gets duplicates.

    Args:
        pts: (N,) int64 ascending time stamps in units of ``time_base`` seconds.
        time_base: seconds a unit.
        source_rate: frames a second of the source.
        max_rate: frames a second at most.

    Returns:
        (M,) int64 indexes into ``pts``, ascending.
    """
    rate = min(source_rate, max_rate)
    position = (pts - pts[0]).astype(np.float64) * float(time_base * rate)
    slot = np.floor(position + 0.5)
    distance = np.abs(position - slot)
    # Per slot the nearest frame, the earlier on a tie: sort by (slot, distance, index), keep each first.
    order = np.lexsort((np.arange(len(pts)), distance, slot))
    first = np.ones(len(pts), dtype=bool)
    first[1:] = np.diff(slot[order]) > 0
    chosen = np.sort(order[first])
    return chosen[slot[chosen] <= position[-1] + _SLOT_SLACK]


def plan_sequences(
    info: VideoInfo, *, seq: int, skip_first: int, skip_interval: int, max_fps: float
) -> list[Sequence]:
    """Cut the sampled frames into sequences: skip ``skip_first``, then take ``seq``, skip ``skip_interval``, …

    An incomplete last sequence is dropped (facts of the original, section 2).
    """
    sampled = info.pts[sample_frames(info.pts, info.time_base, info.fps, exact_rate(max_fps))]
    starts = range(skip_first, len(sampled) - seq + 1, seq + skip_interval)
    return [
        Sequence(number, tuple(int(value) for value in sampled[start : start + seq]))
        for number, start in enumerate(starts)
    ]
