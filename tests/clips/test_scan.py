from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from filming import moving_frames, write_video
from hypothesis import given
from hypothesis import strategies as st

from vshard.base.report import Silent
from vshard.clips import scan as scanning
from vshard.clips.plan import Fault, Sequence, gap_seconds, plan_sequences, shot_ranges
from vshard.clips.probe import VideoInfo, probe
from vshard.clips.scan import Scan, load_or_scan, scan_video

HEIGHT, WIDTH = 144, 480  # the square of moving_frames jumps back after 40 frames of this width
PLAN = {"seq": 12, "skip_first": 0, "skip_interval": 0, "max_fps": 30}


def shots_of(*lengths: int, seed: int = 0) -> np.ndarray:
    """Frames of shots of unlike colours, each with motion of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate(lengths):
        tint = np.array([(1, 0.5, 0.3), (0.3, 0.6, 1), (0.5, 1, 0.4)][number % 3])
        frames = moving_frames(length, HEIGHT, WIDTH)[:, :, :: 1 if number % 2 else -1]
        noise = rng.integers(0, 20, (1, HEIGHT, WIDTH, 1))
        parts.append(((frames * tint * (1 if number % 4 < 2 else 0.5)) + noise).clip(0, 255).astype(np.uint8))
    return np.concatenate(parts)


def look(path: Path) -> tuple[VideoInfo, Scan]:
    info = probe(path)
    return info, scan_video(info, Silent())


def test_hard_cuts_are_found_where_they_are_and_nowhere_else(tmp_path: Path) -> None:
    lengths = (30, 17, 25, 40)
    info, scan = look(write_video(tmp_path / "v.mp4", shots_of(*lengths)))
    assert np.flatnonzero(scan.cut).tolist() == np.cumsum(lengths)[:-1].tolist()
    assert scan.readable.all()
    edges = [0, *np.cumsum(lengths).tolist()]
    assert shot_ranges(info, scan) == list(pairwise(edges))
    assert shot_ranges(info, scan, cuts=False) == [(0, edges[-1])]


def test_no_sequence_crosses_a_cut_and_each_shot_begins_one(tmp_path: Path) -> None:
    lengths = (30, 17, 25, 40)
    info, scan = look(write_video(tmp_path / "v.mp4", shots_of(*lengths)))
    planned = plan_sequences(info, scan, **PLAN)
    first = [int(np.searchsorted(info.pts, s.pts[0])) for s in planned]
    assert first == [0, 12, 30, 47, 59, 72, 84, 96]
    assert all(s.fault is None for s in planned)
    crossing = plan_sequences(info, scan, **PLAN, shots=False)
    assert [int(np.searchsorted(info.pts, s.pts[0])) for s in crossing] == list(range(0, 112 - 11, 12))
    assert all(s.fault is None for s in crossing), "with --no-shots a jump is no fault"


def test_a_cut_in_the_first_frames_is_a_jump(tmp_path: Path) -> None:
    # Two frames are too few for the detector to compare with.
    info, scan = look(write_video(tmp_path / "v.mp4", shots_of(2, 46)))
    faults = [s.fault for s in plan_sequences(info, scan, **PLAN)]
    cut = scan.cut[2]
    assert cut or (faults[0] is not None and faults[0].reason == "jump")
    assert faults[1:] == [None] * (len(faults) - 1)


def test_ranges_looked_at_side_by_side_are_as_if_looked_at_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (30, 17, 25, 40)
    path = write_video(tmp_path / "v.mp4", shots_of(*lengths))
    info, whole = look(path)
    for least in (7, 15, 16, 30):  # cuts fall into ranges, on their borders and beside them
        monkeypatch.setattr(scanning, "RANGE_FRAMES_LEAST", least)
        parts = scan_video(info, Silent())
        for name in vars(whole):
            assert (getattr(parts, name) == getattr(whole, name)).all(), (least, name)
    # The same with a file of which a part cannot be read.
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "bad.mp4").write_bytes(data)
    info = probe(tmp_path / "bad.mp4")
    parts = scan_video(info, Silent())
    monkeypatch.setattr(scanning, "RANGES_MOST", 1)
    whole = scan_video(info, Silent())
    assert (parts.readable == whole.readable).all() and not whole.readable.all()


@pytest.mark.parametrize("tint", [0, 255])
def test_blank_frames_are_a_fault(tmp_path: Path, tint: int) -> None:
    frames = shots_of(48)
    frames[20:22] = tint
    info, scan = look(write_video(tmp_path / "v.mp4", frames))
    reasons = [s.fault and s.fault.reason for s in plan_sequences(info, scan, **PLAN, shots=False)]
    assert reasons == [None, "black or blank", None, None]


def test_still_pictures_and_repeats_are_faults(tmp_path: Path) -> None:
    frames = shots_of(48)
    frames[12:24] = frames[12]
    frames[24:36] = frames[24:36:2].repeat(2, axis=0)
    info, scan = look(write_video(tmp_path / "v.mp4", frames))
    faults = [s.fault for s in plan_sequences(info, scan, **PLAN, shots=False)]
    assert [f and f.reason for f in faults] == [None, "still", "repeated frames", None]
    assert faults[2] is not None and faults[2].found == "6 of 11 steps change nothing"
    # Every second frame of the same clip has no repeats.
    halved = plan_sequences(info, scan, **(PLAN | {"max_fps": 15, "skip_first": 12}), shots=False)
    assert [f.fault for f in halved] == [None]


def test_a_gap_in_time_is_never_bridged(tmp_path: Path) -> None:
    pts = [*range(30), *range(40, 70)]
    info, scan = look(write_video(tmp_path / "v.mp4", shots_of(60), pts=pts))
    assert shot_ranges(info, scan, cuts=False) == [(0, 30), (30, 60)]
    for sequence in plan_sequences(info, scan, **PLAN, shots=False):
        assert max(np.diff(sequence.pts)) == int(1 / 30 / info.time_base)


def test_a_scan_is_kept_and_one_of_another_file_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = probe(write_video(tmp_path / "v.mp4", shots_of(30, 20)))
    kept = tmp_path / "v.scan"
    first = load_or_scan(info, kept, Silent())
    content = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "scan_video", lambda *a: pytest.fail("looked again"))
        again = load_or_scan(info, kept, Silent())
    assert all((getattr(again, name) == getattr(first, name)).all() for name in vars(first))
    for damaged in (
        content[:-1],
        b"",
        content.replace(info.fingerprint.encode(), b"0" * 16),
        b"\xff" * len(content),
    ):
        kept.write_bytes(damaged)
        load_or_scan(info, kept, Silent())
        assert kept.read_bytes() == content


def plan_info(frames: int) -> VideoInfo:
    return VideoInfo(
        path=Path("v.mp4"), size_bytes=1, fingerprint="", codec="h264", pixel_format="yuv420p", coded_width=64,
        coded_height=64, width=64, height=64, pixel_aspect=Fraction(1), rotation_degrees=0, fps=Fraction(30),
        time_base=Fraction(1, 30), matrix="bt709", transfer="SDR", full_range=False, interlaced=False, damage=None,
        pts=np.arange(frames),
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 20),
    st.integers(0, 9),
    st.sampled_from([30, 15, 10]),
)
def test_sequences_lie_within_shots_of_readable_frames(
    parts: list[tuple[int, bool]], skip_first: int, skip_interval: int, rate: int
) -> None:
    readable = np.concatenate([np.full(length, good) for length, good in parts])
    cut = np.zeros(len(readable), dtype=bool)
    cut[np.cumsum([length for length, _ in parts])[:-1]] = True
    moving = np.full(len(readable), 30, np.float32)
    scan = Scan(readable, cut, moving, moving, np.ones_like(moving), moving)
    planned = plan_sequences(
        plan_info(len(readable)),
        scan,
        seq=12,
        skip_first=skip_first,
        skip_interval=skip_interval,
        max_fps=rate,
    )
    stride = 30 // rate
    for number, sequence in enumerate(planned):
        assert sequence == Sequence(
            number, tuple(range(sequence.pts[0], sequence.pts[0] + 12 * stride, stride))
        )
        span = slice(sequence.pts[0], sequence.pts[-1] + 1)
        assert readable[span].all() and not cut[span][1:].any()
        assert sequence.pts[0] >= skip_first
    # Nothing that fits is left out: each shot gives as many as a video of its length would.
    if skip_first == 0:
        edges = np.flatnonzero(
            np.concatenate([[True], cut[1:] | (np.diff(readable.astype(int)) != 0), [True]])
        )
        wanted = 0
        for start, stop in pairwise(edges):
            sampled = -(-(stop - start) // stride) if readable[start] else 0
            wanted += len(range(0, sampled - 11, 12 + skip_interval))
        assert len(planned) == wanted


def test_a_fault_says_what_was_found() -> None:
    moving = np.full(24, 30, np.float32)
    dark = moving.copy()
    dark[15:] = 3
    scan = Scan(np.ones(24, bool), np.zeros(24, bool), dark, dark, np.ones_like(moving), moving)
    faults = [s.fault for s in plan_sequences(plan_info(24), scan, **PLAN)]
    assert faults == [None, Fault("black or blank", "9 of 12 frames, the first at 0.50 s")]


@pytest.mark.parametrize("steady", [True, False])
def test_a_fade_is_a_fault_and_a_flicker_is_none(steady: bool) -> None:
    moving = np.full(12, 30, np.float32)
    light = 60 + 3 * np.arange(12, dtype=np.float32)
    if not steady:
        light[1::2] = 60
    scan = Scan(np.ones(12, bool), np.zeros(12, bool), light, moving, np.ones_like(moving), moving)
    (sequence,) = plan_sequences(plan_info(12), scan, **PLAN)
    assert sequence.fault == (
        Fault("fade", "brightness goes one way by 33 of 255 gray levels") if steady else None
    )
    (sequence,) = plan_sequences(plan_info(12), scan, **PLAN, shots=False)
    assert sequence.fault is None


def test_gaps_are_measured() -> None:
    info = replace(plan_info(30), pts=np.array([*range(10), *range(25, 35), *range(36, 46)]))
    assert gap_seconds(info) == [16 / 30]
    assert gap_seconds(plan_info(30)) == gap_seconds(plan_info(1)) == []
