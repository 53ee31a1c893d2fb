"""Which frames make which sequence: pure functions of time stamps, what a scan saw, and options.

In: the frames' time stamps and their :class:`vshard.clips.scan.Scan`. Out: :class:`Sequence`s of ``--seq`` frames,
each within one shot, without a gap in time or a frame that cannot be read; those that teach nothing carry their
:class:`Fault`. Decided before a record is made, so totals are known at the start and a rerun plans the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .probe import VideoInfo

if TYPE_CHECKING:
    from .scan import Scan

# Frame rates people write short, and what they mean (facts of the original, section 2).
EXACT_RATES = {
    "29.97": Fraction(30000, 1001),
    "23.976": Fraction(24000, 1001),
    "59.94": Fraction(60000, 1001),
}
# The last slot may lie this share of a slot behind the last frame: containers round time stamps.
_SLOT_SLACK = Fraction(1, 10)
# A step of more than this many usual ones is a gap: nothing bridges it.
GAP_STEPS = 2.5
# Gray levels, 0 to 255. Cuts in real clips measured 39 to 77 in ``Scan.change``, motion at most 14.
JUMP_LEVELS, JUMP_RATIO = 20.0, 4.0
# Repeated frames measured 0 to 0.2 in ``Scan.peak``, title cards 0.1 to 2.2, slow pans 5 and more.
REPEAT_LEVELS = 0.25
REPEATED_SHARE_MOST = 0.25
STILL_LEVELS = 3.0
BLACK_LEVELS, FLAT_LEVELS = 12.0, 5.0
# A fade or dissolve: brightness goes one way all along. In 16 frames of real clips it went by 24 and 47 in dissolves,
# by 16 at most otherwise.
FADE_LEVELS, FADE_STEADINESS = 20.0, 0.9


class Fault(NamedTuple):
    """Why a planned sequence makes no record: the reason that is counted, and what was found."""

    reason: str
    found: str


@dataclass(frozen=True)
class Sequence:
    """Planned frames of one video: ``number`` counts from 0, ``pts`` in the video's time base."""

    number: int
    pts: tuple[int, ...]
    fault: Fault | None = None


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
    # Position in slots = time · up / down, in whole numbers: what lies on the border of two slots has one answer.
    per_unit = time_base * min(source_rate, max_rate)
    up, down = per_unit.numerator, per_unit.denominator
    times = [time - int(pts[0]) for time in pts.tolist()]
    slot = np.array([(2 * time * up + down) // (2 * down) for time in times])
    distance = np.array(
        [float(abs(time * up - k * down)) for time, k in zip(times, slot.tolist(), strict=True)]
    )
    # Per slot the nearest frame, the earlier on a tie: sort by (slot, distance, index), keep each first.
    order = np.lexsort((np.arange(len(pts)), distance, slot))
    first = np.ones(len(pts), dtype=bool)
    first[1:] = np.diff(slot[order]) > 0
    chosen = np.sort(order[first])
    return chosen[slot[chosen] <= math.floor(times[-1] * per_unit + _SLOT_SLACK)]


def shot_ranges(info: VideoInfo, scan: Scan | None, *, cuts: bool = True) -> list[tuple[int, int]]:
    """Give [start, stop) ranges of frames that nothing interrupts: no cut, no gap in time, no unreadable frame.

    With ``cuts`` False shots run on over cuts; gaps and unreadable frames still part them. Without a scan only gaps do.
    """
    readable = np.ones(len(info.pts), dtype=bool) if scan is None else scan.readable
    starts = np.zeros(len(info.pts), dtype=bool)
    starts[0] = True
    starts[1:] = _gaps(info) | (readable[1:] != readable[:-1])
    if cuts and scan is not None:
        starts |= scan.cut
    edges = [*np.flatnonzero(starts).tolist(), len(info.pts)]
    return [(start, stop) for start, stop in pairwise(edges) if readable[start]]


def frame_rate(info: VideoInfo) -> Fraction:
    """Give the video's frames a second where there are frames: what its header says, or without gaps in time."""
    gaps = _gaps(info)
    if not gaps.any():
        return info.fps
    steps = np.diff(info.pts)[~gaps]
    return Fraction(len(steps)) / (int(steps.sum()) * info.time_base)


def gap_seconds(info: VideoInfo) -> list[float]:
    """Give the lengths of the video's gaps in time, at which nothing is shown anew."""
    return [float(step * info.time_base) for step in np.diff(info.pts)[_gaps(info)].tolist()]


def losses(info: VideoInfo, damage: str | None, unreadable: int) -> list[str]:
    """Say what of a video cannot be used, a clause each: damage, gaps in time, ``unreadable`` frames."""
    gaps = gap_seconds(info)
    clauses = [damage] if damage else []
    clauses += (
        [f"has {len(gaps)} gaps in time, {sum(gaps):.1f} s in all; no sequence runs across one"]
        if gaps
        else []
    )
    clauses += (
        [f"has {unreadable} of {len(info.pts)} frames that cannot be read cleanly"] if unreadable else []
    )
    return clauses


def _gaps(info: VideoInfo) -> np.ndarray:
    """Tell the steps (N - 1,) from one frame to the next that are gaps."""
    steps = np.diff(info.pts)
    return np.asarray(steps > GAP_STEPS * np.median(steps)) if len(steps) else np.zeros(0, dtype=bool)


def plan_sequences(
    info: VideoInfo,
    scan: Scan | None = None,
    *,
    seq: int,
    skip_first: int,
    skip_interval: int,
    max_fps: float,
    shots: bool = True,
) -> list[Sequence]:
    """Cut each shot's sampled frames into sequences: take ``seq``, skip ``skip_interval``, and so on.

    ``skip_first`` frames are skipped at the start of the video; an incomplete last sequence of a shot is dropped
    (facts of the original, section 2, for each shot as for a video of its own). With ``shots`` False cuts neither
    end a sequence nor are faults. Without a scan nothing is known of the pictures, and no sequence has a fault.
    """
    source_rate, rate = frame_rate(info), exact_rate(max_fps)
    planned: list[Sequence] = []
    skip = skip_first
    for start, stop in shot_ranges(info, scan, cuts=shots):
        sampled = start + sample_frames(info.pts[start:stop], info.time_base, source_rate, rate)
        skipped = min(skip, len(sampled))
        skip -= skipped
        for first in range(skipped, len(sampled) - seq + 1, seq + skip_interval):
            chosen = sampled[first : first + seq]
            pts = tuple(info.pts[chosen].tolist())
            fault = None if scan is None else _fault(info, scan, chosen, jumps=shots)
            planned.append(Sequence(len(planned), pts, fault))
    return planned


def _fault(info: VideoInfo, scan: Scan, chosen: np.ndarray, *, jumps: bool) -> Fault | None:
    """Say what makes the frames ``chosen`` (T,), ascending indexes, unfit for a record."""

    def at(index: int) -> str:
        return f"at {float(info.pts[index] * info.time_base):.2f} s"

    dark = (scan.light[chosen] < BLACK_LEVELS) & (scan.contrast[chosen] < BLACK_LEVELS)
    dark |= scan.contrast[chosen] < FLAT_LEVELS
    if dark.any():
        return Fault(
            "black or blank",
            f"{int(dark.sum())} of {len(chosen)} frames, the first {at(chosen[dark.argmax()])}",
        )
    # What happens between two chosen frames counts for the later one.
    begins = chosen[:-1] + 1
    inside = slice(int(chosen[0]), int(chosen[-1]) + 1)
    offsets = begins - inside.start
    change = np.maximum.reduceat(scan.change[inside], offsets)
    peak = np.maximum.reduceat(scan.peak[inside], offsets)
    if jumps:
        jump = int(change.argmax())
        if change[jump] > max(JUMP_LEVELS, JUMP_RATIO * float(np.median(change))):
            return Fault("jump", f"the picture changes at once {at(begins[jump])}")
        steps = np.diff(scan.light[chosen])
        way = abs(float(steps.sum()))
        if way > max(FADE_LEVELS, FADE_STEADINESS * float(np.abs(steps).sum())):
            return Fault("fade", f"brightness goes one way by {way:.0f} of 255 gray levels")
    if peak.max() < STILL_LEVELS:
        return Fault("still", f"nothing moves by more than {peak.max():.1f} of 255 gray levels")
    repeated = peak < REPEAT_LEVELS
    if repeated.mean() > REPEATED_SHARE_MOST:
        return Fault("repeated frames", f"{int(repeated.sum())} of {len(repeated)} steps change nothing")
    return None
