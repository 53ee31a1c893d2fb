from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from conftest import moving_frames, write_video

from vshard.clips.decode import read_clips
from vshard.clips.plan import Sequence, plan_sequences
from vshard.clips.probe import probe

COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 200], [40, 200, 90]]
)


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


@pytest.mark.parametrize(
    ("lines", "space", "limits", "tag"),
    [
        (720, Colorspace.ITU709, None, None),
        (480, Colorspace.ITU601, None, None),
        (480, Colorspace.ITU709, None, 1),
        (720, Colorspace.ITU601, None, 6),
        (480, Colorspace.ITU709, ColorRange.JPEG, 1),
        (720, Colorspace.ITU601, ColorRange.JPEG, 5),
    ],
)
def test_colours_by_matrix_and_range(
    tmp_path: Path, lines: int, space: Colorspace, limits: ColorRange | None, tag: int | None
) -> None:
    image = COLOURS.astype(np.uint8).repeat(64, axis=0)[None].repeat(lines, axis=0)
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = image.shape[1], lines, "yuv444p"
        if tag is not None:
            stream.codec_context.colorspace = tag
        if limits is not None:
            stream.codec_context.color_range = limits
        frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
            format="yuv444p", dst_colorspace=space, dst_color_range=limits or ColorRange.MPEG
        )
        for pts in range(2):
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(path)
    clip = next(read_clips(info, plan_sequences(info, seq=2, skip_first=0, skip_interval=0, max_fps=30)))
    assert np.abs(clip.rgb.astype(int) - image).max() <= 2


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
