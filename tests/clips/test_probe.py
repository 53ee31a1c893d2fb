from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import moving_frames, write_video

from vshard.base.errors import VideoError
from vshard.clips.probe import colour_matrix, probe


def test_facts_of_a_clip(clip_path: Path) -> None:
    info = probe(clip_path)
    assert (info.width, info.height, len(info.pts), info.fps) == (640, 480, 48, 30)
    assert info.size_bytes == clip_path.stat().st_size
    assert info.matrix == "smpte170m"
    assert info.duration_seconds == pytest.approx(1.6)


def test_untagged_matrix_goes_by_lines() -> None:
    assert colour_matrix(2, 719) == "smpte170m"
    assert colour_matrix(2, 720) == "bt709"
    assert colour_matrix(1, 480) == "bt709"
    assert colour_matrix(6, 1080) == "smpte170m"


@pytest.mark.parametrize(("degrees", "size"), [(90, (96, 128)), (-90, (96, 128)), (180, (128, 96))])
def test_rotation_is_read(tmp_path: Path, degrees: int, size: tuple[int, int]) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height = 128, 96
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), "rgb24"))
            )
        container.mux(stream.encode())
    info = probe(path)
    assert info.rotation_degrees == -degrees % 360
    assert (info.width, info.height) == size


def bad_files(folder: Path, clip: Path) -> dict[str, tuple[Path, str]]:
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(5000))
    (folder / "text.mp4").write_text("this is no video\n")
    data = clip.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    return {
        "missing": (folder / "none.mp4", "no such video file"),
        "folder": (folder, "is a folder"),
        "empty": (folder / "empty.mp4", "is empty"),
        "noise": (folder / "noise.mp4", "cannot be read as a video"),
        "text": (folder / "text.mp4", "cannot be read as a video|no video stream"),
        "cut": (folder / "cut.mp4", "damaged, cut off"),
        "sound": (folder / "sound.wav", "no video stream"),
    }


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "noise", "text", "cut", "sound"])
def test_bad_files_are_named(tmp_path: Path, clip_path: Path, kind: str) -> None:
    path, message = bad_files(tmp_path, clip_path)[kind]
    with pytest.raises(VideoError, match=message) as caught:
        probe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_matroska_is_noticed(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", moving_frames(90, 96, 128))
    assert len(probe(whole).pts) == 90
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(VideoError, match=r"is cut off: only \d+ frames|in the middle"):
        probe(cut)


def test_variable_rate_keeps_every_time_stamp(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 30, 31, 32]
    path = write_video(tmp_path / "vfr.mkv", moving_frames(8, 96, 128), rate=30, pts=times)
    info = probe(path)
    seconds = [float(p * info.time_base) for p in info.pts]
    assert seconds == pytest.approx([t / 30 for t in times], abs=0.001)
    assert isinstance(info.fps, Fraction)
