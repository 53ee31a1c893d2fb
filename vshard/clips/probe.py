"""A video file's facts, read without decoding a picture.

In: a path. Out: a frozen :class:`VideoInfo` with the presentation time stamp of every frame, which is all
that planning needs. Costs one pass over the file's packets (the disk's speed; no decoding).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import VideoError
from ..base.files import fingerprint

# FFmpeg's numbers for the colour tags (libavutil/pixfmt.h), as PyAV hands them over.
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc", 10: "bt2020c"}
UNTAGGED_MATRIX = 2
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
HD_LINES = 720
# A file may say it is a little longer than its frames; more than this is a cut-off file.
MISSING_SECONDS_ALLOWED = 1.0


@dataclass(frozen=True, repr=False)
class VideoInfo:
    """What is known of a video before decoding it.

    ``width`` and ``height`` are pixels as shown: square, upright. ``pts`` is (N,) int64, ascending, in units
    of ``time_base`` seconds, one per frame. ``fingerprint`` tells contents apart (16 hex digits).
    """

    path: Path
    size_bytes: int
    fingerprint: str
    codec: str
    pixel_format: str
    coded_width: int
    coded_height: int
    width: int
    height: int
    pixel_aspect: Fraction
    rotation_degrees: int
    fps: Fraction
    time_base: Fraction
    matrix: str
    pts: np.ndarray

    @property
    def duration_seconds(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        return float((int(self.pts[-1]) - int(self.pts[0])) * self.time_base + 1 / self.fps)

    def __repr__(self) -> str:
        return (
            f"VideoInfo({self.path.name}: {self.width}x{self.height}, {float(self.fps):.3f} fps, "
            f"{len(self.pts)} frames, {self.codec} {self.pixel_format}, {self.matrix})"
        )


def open_video(path: Path) -> Any:
    """Open ``path`` with PyAV; the caller closes it.

    Raises:
        VideoError: there is no such file, or FFmpeg cannot read it as a video.
    """
    import av

    try:
        there = path.exists()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not there:
        raise VideoError(f"{path}: no such video file; check the path")
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; give one video file")
    if not path.is_file():
        raise VideoError(f"{path}: is no plain file; give a video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; copy or download it again")
    try:
        # With its protocol spelt out, a colon in a file's name is no other protocol.
        container = av.open(f"file:{path}")
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be read as a video ({reason}); the file is damaged, cut off or not a video"
        ) from error
    if not _picture_streams(container):
        container.close()
        raise VideoError(f"{path}: holds no video stream (audio only?); give a video file")
    return container


def video_stream(container: Any) -> Any:
    """Give the stream that holds the moving picture (cover art does not count)."""
    return _picture_streams(container)[0]


def probe(path: Path) -> VideoInfo:
    """Read the facts of the video at ``path``.

    Raises:
        VideoError: not a readable video, no video stream, no time stamps, cut off, interlaced or HDR.
    """
    import av

    with open_video(path) as container:
        stream = video_stream(container)
        codec = stream.codec_context
        try:
            pts = _packet_times(container, stream)
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{path}: reading stops in the middle ({error.strerror}); the file is damaged or cut off, "
                "get a whole copy"
            ) from error
        if codec.color_trc in HDR_TRANSFERS:
            raise VideoError(
                f"{path}: is HDR ({HDR_TRANSFERS[codec.color_trc]}), which needs tone mapping and is not "
                "supported yet; convert it to SDR first"
            )
        if pts is None:
            raise VideoError(
                f"{path}: its packets carry no time stamps; remux it first: ffmpeg -i IN -c copy OUT.mkv"
            )
        _check_whole(path, container, stream, pts)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        rotation = _rotation(path, container, stream)
        width, height = round(codec.width * aspect), codec.height
        if rotation in (90, 270):
            width, height = height, width
        fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
        if len(pts) > 1 and fps <= 0:
            fps = Fraction(len(pts) - 1) / ((int(pts[-1]) - int(pts[0])) * stream.time_base)
        return VideoInfo(
            path=path,
            size_bytes=path.stat().st_size,
            fingerprint=fingerprint(path),
            codec=codec.name,
            pixel_format=codec.pix_fmt or "unknown",
            coded_width=codec.width,
            coded_height=codec.height,
            width=width,
            height=height,
            pixel_aspect=aspect,
            rotation_degrees=rotation,
            fps=fps,
            time_base=Fraction(stream.time_base),
            matrix=colour_matrix(codec.colorspace, codec.height),
            pts=pts,
        )


def colour_matrix(tag: int, lines: int) -> str:
    """Name the YCbCr matrix of a frame: its tag, or BT.709 from 720 lines up and BT.601 below if untagged."""
    if tag in MATRICES:
        return MATRICES[tag]
    return "bt709" if lines >= HD_LINES else "smpte170m"


def _picture_streams(container: Any) -> list[Any]:
    import av

    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def _packet_times(container: Any, stream: Any) -> np.ndarray | None:
    """Give the frames' time stamps (N,) int64, ascending, or None where the packets have none."""
    times = []
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None:
            return None
        times.append(packet.pts)
    if not times:
        return None
    return np.unique(np.asarray(times, dtype=np.int64))


def _check_whole(path: Path, container: Any, stream: Any, pts: np.ndarray) -> None:
    """Compare what the container declares with the packets that are there."""
    declared = stream.duration * stream.time_base if stream.duration else None
    text = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if declared is None and text:
        declared = int(text[1]) * 3600 + int(text[2]) * 60 + float(text[3])
    if declared is None and len(container.streams) == 1 and container.duration:
        declared = container.duration / 1_000_000
    start = stream.start_time if stream.start_time is not None else int(pts[0])
    found = float((int(pts[-1]) - start) * stream.time_base)
    if stream.frames > len(pts) or (
        declared is not None and float(declared) - found > MISSING_SECONDS_ALLOWED
    ):
        total = f"{float(declared):.1f} s" if declared is not None else f"{stream.frames} frames"
        raise VideoError(
            f"{path}: is cut off: only {len(pts)} frames ({found:.1f} s of {total}) are there; get a whole copy"
        )


def _rotation(path: Path, container: Any, stream: Any) -> int:
    """Give the clockwise turn in degrees (0, 90, 180, 270) that shows the picture upright."""
    import av

    container.seek(0, stream=stream)
    try:
        frame = next(iter(container.decode(stream)))
    except (StopIteration, av.error.FFmpegError) as error:
        raise VideoError(
            f"{path}: not one frame can be decoded; the file is damaged or its codec is not supported"
        ) from error
    if frame.interlaced_frame:
        raise VideoError(
            f"{path}: is interlaced, which is not supported yet; deinterlace it first: "
            "ffmpeg -i IN -vf bwdif OUT.mp4"
        )
    # PyAV gives the display matrix's counter-clockwise angle.
    return round(-frame.rotation / 90) % 4 * 90
