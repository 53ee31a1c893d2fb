from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vshard.clips.plan import exact_rate, plan_sequences, sample_frames
from vshard.clips.probe import VideoInfo, probe

NAMING = json.loads((Path(__file__).parent.parent / "golden" / "naming.json").read_text(encoding="utf-8"))


def info_of(frames: int) -> VideoInfo:
    return VideoInfo(
        path=Path("v.mp4"), size_bytes=1, fingerprint="", codec="h264", pixel_format="yuv420p", coded_width=64,
        coded_height=64, width=64, height=64, pixel_aspect=Fraction(1), rotation_degrees=0, fps=Fraction(30),
        time_base=Fraction(1, 30), matrix="bt709", pts=np.arange(frames),
    )  # fmt: skip


@pytest.mark.parametrize("case", NAMING["sequence_plan"])
def test_sequences_are_those_of_the_original(case: dict) -> None:
    planned = plan_sequences(
        info_of(case["total_frames"]), seq=case["seq"], skip_first=case["skip_first"],
        skip_interval=case["skip_interval"], max_fps=30,
    )  # fmt: skip
    assert [[s.pts[0], s.pts[-1]] for s in planned] == case["sequences_first_last"]
    assert [s.number for s in planned] == list(range(len(planned)))


@pytest.mark.parametrize(
    ("source", "most", "kept"),
    [
        (30, 30, [0, 1, 2, 3, 4, 5]),
        (60, 30, [0, 2, 4]),
        (90, 30, [0, 3]),
        (50, 30, [0, 2, 3, 5]),
        (25, 30, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_rates(source: int, most: int, kept: list[int]) -> None:
    chosen = sample_frames(np.arange(6), Fraction(1, source), Fraction(source), Fraction(most))
    assert chosen.tolist() == kept


def test_short_rates_mean_exact_ones() -> None:
    assert exact_rate(29.97) == Fraction(30000, 1001)
    assert exact_rate(23.976) == Fraction(24000, 1001)
    assert exact_rate(59.94) == Fraction(60000, 1001)
    assert exact_rate(30) == 30
    assert exact_rate(12.5) == Fraction(25, 2)


def test_millisecond_time_stamps_keep_every_frame() -> None:
    # Matroska rounds to milliseconds: 29.97 fps must not lose a frame to the rounding.
    pts = np.round(np.arange(500) * 1001 / 30).astype(np.int64)
    kept = sample_frames(pts, Fraction(1, 1000), Fraction(30000, 1001), Fraction(30))
    assert len(kept) == 500


@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    source=st.integers(5, 120),
    most=st.integers(1, 60),
)
def test_frames_are_never_repeated_and_each_slot_has_its_nearest(
    gaps: list[int], source: int, most: int
) -> None:
    pts = np.cumsum([0, *gaps])
    kept = sample_frames(pts, Fraction(1, 1000), Fraction(source), Fraction(most))
    rate = min(source, most)
    assert (np.diff(kept) > 0).all()
    position = [Fraction(int(time), 1000) * rate for time in pts]
    slots = [math.floor(place + Fraction(1, 2)) for place in position]
    inside = {slot for slot in slots if slot <= position[-1] + Fraction(1, 10)}
    assert {slots[index] for index in kept} == inside, (
        "every slot that has a frame is filled, none behind the end"
    )
    for index in kept:
        rivals = [
            abs(place - slots[index])
            for place, slot in zip(position, slots, strict=True)
            if slot == slots[index]
        ]
        assert abs(position[index] - slots[index]) == min(rivals)


def test_plan_uses_real_time_stamps(clip_path: Path) -> None:
    info = probe(clip_path)
    planned = plan_sequences(info, seq=12, skip_first=1, skip_interval=3, max_fps=15)
    assert {pts for s in planned for pts in s.pts} <= set(info.pts.tolist())
    step = set(np.diff(planned[0].pts))
    assert step == {int(2 / 30 / info.time_base)}
