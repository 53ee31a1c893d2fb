from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from filming import moving_frames, write_video

from vshard.base.errors import VideoError
from vshard.clips.decode import decode_frames
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


def test_a_stream_without_container_has_no_time_stamps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bare.h264", moving_frames(5, 96, 128))
    with pytest.raises(VideoError, match="carry no time stamps; remux it"):
        probe(path)


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
    assert probe(whole).damage is None
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    info = probe(cut)
    assert 20 < len(info.pts) < 40
    assert (
        info.damage
        == f"is cut off: only {len(info.pts)} frames ({len(info.pts) / 30:.1f} s of 3.0 s) are there"
    )


def remux(source: Path, target: Path, options: dict[str, str] | None = None, shift: int = 0) -> Path:
    """Copy a clip's packets to another container, ``shift`` units earlier."""
    with av.open(str(source)) as whole, av.open(str(target), "w", options=options or {}) as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                container.mux(packet)
    return target


# An index in front and frames that are not there: MP4 hands out half of the last frame, AVI counts what should be.
@pytest.mark.parametrize("name", ["front.mp4", "count.avi", "tags.flv"])
def test_other_containers_cut_off(tmp_path: Path, name: str) -> None:
    frames = write_video(tmp_path / "source.mp4", moving_frames(90, 96, 128))
    options = {"movflags": "faststart"} if name == "front.mp4" else {}
    whole = remux(frames, tmp_path / name, options)
    assert probe(whole).damage is None
    assert len(probe(whole).pts) == 90
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    info = probe(cut)
    assert 50 < len(info.pts) < 70
    assert info.damage is not None
    assert f"only {len(info.pts)} frames" in info.damage
    assert [frame.damaged for frame in decode_frames(info)] == [False] * len(info.pts)


def test_less_than_a_second_is_noticed_where_frames_are_counted(tmp_path: Path) -> None:
    source = write_video(tmp_path / "source.mp4", moving_frames(90, 96, 128))
    whole = remux(source, tmp_path / "whole.mp4", {"movflags": "faststart"})
    with av.open(str(whole)) as container:
        end = [packet.pos for packet in container.demux(video=0) if packet.size][80]
    whole.write_bytes(whole.read_bytes()[:end])
    info = probe(whole)
    assert info.damage == "is cut off: only 80 frames (2.7 s of 3.0 s) are there"


def test_sound_that_is_longer_is_no_damage(tmp_path: Path) -> None:
    # FLV knows one length for the whole file.
    path = tmp_path / "sound.flv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=30)
        picture.width, picture.height, picture.pix_fmt = 128, 96, "yuv420p"
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for index, image in enumerate(moving_frames(30, 96, 128)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        for index in range(150):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.pts, samples.rate, samples.time_base = 1024 * index, 44100, Fraction(1, 44100)
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    info = probe(path)
    assert (len(info.pts), info.damage) == (30, None)


def test_a_trimmed_mp4_is_whole(tmp_path: Path) -> None:
    # An edit list hides frames in front and behind; the file still counts them.
    source = write_video(tmp_path / "source.mp4", moving_frames(90, 96, 128))
    with av.open(str(source)) as container:
        unit = int(1 / container.streams.video[0].time_base / 30)
    trimmed = remux(source, tmp_path / "trimmed.mp4", shift=20 * unit)
    assert len(probe(trimmed).pts) == 70
    assert probe(trimmed).damage is None
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") // 2).to_bytes(4, "big")
    (tmp_path / "shorter.mp4").write_bytes(data)
    info = probe(tmp_path / "shorter.mp4")
    assert (len(info.pts), info.damage) == (45, None)


def test_interlaced_frames_behind_progressive_ones_are_found(tmp_path: Path) -> None:
    path = tmp_path / "later.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for part, options in enumerate([{}, {"x264-params": "tff=1"}]):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
            encoder.time_base, encoder.options = Fraction(1, 25), options | {"bf": "0"}
            images = [av.VideoFrame.from_ndarray(image, "rgb24") for image in moving_frames(6, 96, 128)]
            for index, image in enumerate([*images, None]):
                if image:
                    image.pts, image.time_base = index + 6 * part, Fraction(1, 25)
                for packet in encoder.encode(image):
                    packet.time_base, packet.stream = Fraction(1, 25), stream
                    container.mux(packet)
    info = probe(path)
    assert info.interlaced
    assert info.field_order == "auto"


def test_a_file_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mkv", moving_frames(5, 96, 128))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        bodies = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for body in bodies:
        at = data.index(body)
        data[at : at + len(body)] = bytes(len(body))
    path.write_bytes(data)
    with pytest.raises(VideoError, match="not one frame can be decoded"):
        probe(path)


def test_variable_rate_keeps_every_time_stamp(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 30, 31, 32]
    path = write_video(tmp_path / "vfr.mkv", moving_frames(8, 96, 128), rate=30, pts=times)
    info = probe(path)
    seconds = [float(p * info.time_base) for p in info.pts]
    assert seconds == pytest.approx([t / 30 for t in times], abs=0.001)
    assert isinstance(info.fps, Fraction)


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path: Path, clip_path: Path) -> None:
    path = tmp_path / "title.mkv"
    with av.open(str(clip_path)) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "XXXXXXXX"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = path.read_bytes()
    assert b"XXXXXXXX" in data
    path.write_bytes(data.replace(b"XXXXXXXX", b"Caf\xe9 No\xeb"))
    assert len(probe(path).pts) == 48


def test_lists_of_other_files_are_refused(tmp_path: Path, clip_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clip_path.read_bytes())
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(VideoError, match=r"list\.mp4: is a list of other files"):
        probe(path)
