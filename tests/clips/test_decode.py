from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
from filming import moving_frames, write_video

from vshard.clips.colour import to_rgb
from vshard.clips.decode import decode_frames
from vshard.clips.plan import Sequence, plan_sequences
from vshard.clips.probe import probe
from vshard.clips.read import read_clips


def test_frames_are_those_planned(clip_path: Path) -> None:
    info = probe(clip_path)
    planned = plan_sequences(info, seq=12, skip_first=2, skip_interval=5, max_fps=30)
    truth = moving_frames(48, 480, 640)
    clips = list(read_clips(info, planned))
    assert [clip.sequence for clip in clips] == planned
    for clip, first in zip(clips, (2, 19, 36), strict=True):
        assert clip.missing == ()
        assert clip.rgb.shape == (12, 480, 640, 3)
        assert np.abs(clip.rgb.astype(int) - truth[first : first + 12]).max() <= 3
        assert clip.seconds == pytest.approx([(first + i) / 30 for i in range(12)], abs=1e-6)


def test_starting_late_gives_the_same_frames(tmp_path: Path) -> None:
    # Small groups of pictures, so that starting late really seeks.
    path = tmp_path / "gop.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "7", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in moving_frames(60, 96, 128):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    info = probe(path)
    planned = plan_sequences(info, seq=12, skip_first=0, skip_interval=0, max_fps=30)
    everything = list(read_clips(info, planned))
    for start in range(1, len(planned)):
        for clip, other in zip(read_clips(info, planned[start:]), everything[start:], strict=True):
            assert clip.sequence == other.sequence
            assert (clip.rgb == other.rgb).all()


def test_a_turned_picture_stands_upright(tmp_path: Path) -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    image[:24] = 255  # white above
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height = 128, 96
        stream.set_display_rotation(90)  # counter-clockwise: what was above comes to the left
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    info = probe(path)
    clip = next(read_clips(info, plan_sequences(info, seq=2, skip_first=0, skip_interval=0, max_fps=30)))
    assert clip.rgb.shape == (2, 128, 96, 3)
    assert clip.rgb[0, :, :20].min() > 240
    assert clip.rgb[0, :, 28:].max() < 15


def test_a_frame_that_does_not_come_is_missing(clip_path: Path) -> None:
    info = probe(clip_path)
    real = info.pts.tolist()
    clips = list(
        read_clips(info, [Sequence(0, (real[0], real[1], real[1] + 1)), Sequence(1, tuple(real[2:5]))])
    )
    assert clips[0].missing == (real[1] + 1,)
    assert len(clips[0].rgb) == 2
    assert clips[1].missing == ()


def test_wide_pixels_become_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mp4", moving_frames(3, 96, 128), sample_aspect_ratio=Fraction(3, 2))
    info = probe(path)
    assert (info.width, info.height) == (192, 96)
    clip = next(read_clips(info, plan_sequences(info, seq=3, skip_first=0, skip_interval=0, max_fps=30)))
    assert clip.rgb.shape == (3, 96, 192, 3)


def test_frames_of_variable_rate_have_their_own_time_stamps(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 30, 31, 32, 60]
    path = write_video(tmp_path / "vfr.mkv", moving_frames(9, 96, 128), pts=times)
    info = probe(path)
    frames = list(decode_frames(info))
    assert [frame.pts for frame in frames] == info.pts.tolist() == [round(1000 * t / 30) for t in times]
    assert [frame.pts for frame in decode_frames(info, int(info.pts[3]) + 1)] == info.pts[4:].tolist()
    assert np.abs(to_rgb(info, frames[5].picture).astype(int) - moving_frames(9, 96, 128)[5]).max() <= 3


def waves(count: int) -> np.ndarray:
    """(count, 96, 128, 3) uint8: gray waves that move by 3 pixels a frame."""
    x, y = np.arange(128), np.arange(96)[:, None]
    frames = [128 + 60 * np.sin((x - 3 * t) / 9) + 40 * np.sin(y / 14) for t in range(count)]
    return np.stack(frames).round().astype(np.uint8)[..., None].repeat(3, axis=-1)


def woven(frames: np.ndarray, *, top_first: bool) -> np.ndarray:
    """Take a frame's fields from two frames, as a camera does: half as many."""
    first, second = frames[::2].copy(), frames[1::2]
    first[:, int(top_first) :: 2] = second[:, int(top_first) :: 2]
    return first


def write_fields(
    path: Path, images: np.ndarray, codec: str, *, mark: str = "prog", field_order: int = 0
) -> Path:
    """Write frames losslessly, marked as setfield's ``mark`` says, in a container that tells ``field_order``."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=128, height=96, format=av.VideoFormat("yuv444p"), time_base=Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("setfield", mark), graph.add("buffersink")).configure()
    options = {"qp": "0", "g": "5", "flags": "+ildct"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv444p"
        stream.codec_context.field_order = field_order
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())
    return path


# Either the frames say that they are interlaced, or the container alone does (FFV1 here).
@pytest.mark.parametrize(
    ("codec", "marks", "top_first"),
    [
        ("libx264", {"mark": "tff"}, True),
        ("libx264", {"mark": "bff"}, False),
        ("ffv1", {"field_order": 2}, True),
        ("ffv1", {"field_order": 3}, False),
    ],
)
def test_fields_become_pictures(tmp_path: Path, codec: str, marks: dict[str, Any], top_first: bool) -> None:
    source = waves(24)
    combed = woven(source, top_first=top_first)
    path = write_fields(tmp_path / "fields.mkv", combed, codec, **marks)
    info = probe(path)
    assert info.interlaced
    frames = list(decode_frames(info))
    assert [(frame.pts, frame.damaged) for frame in frames] == [(pts, False) for pts in info.pts]
    assert all(frame.picture.pts == frame.pts for frame in frames)
    pictures = np.stack([to_rgb(info, frame.picture) for frame in frames]).astype(int)
    own = slice(int(not top_first), None, 2)
    assert np.abs(pictures[:, own] - source[::2, own]).max() <= 2
    combing = np.abs(combed.astype(int) - source[::2]).mean()
    assert np.abs(pictures - source[::2]).mean() < 0.1 * combing
    for start in info.pts.tolist():
        late = list(decode_frames(info, start))
        assert [frame.pts for frame in late] == [pts for pts in info.pts if pts >= start]
        assert (to_rgb(info, late[0].picture) == pictures[-len(late)]).all()


def test_progressive_video_is_left_alone(tmp_path: Path) -> None:
    combed = woven(waves(8), top_first=True)
    info = probe(write_fields(tmp_path / "frames.mkv", combed, "ffv1"))
    assert not info.interlaced
    for image, frame in zip(combed, decode_frames(info), strict=True):
        assert np.abs(to_rgb(info, frame.picture).astype(int) - image).max() <= 2
