"""Planned sequences -> RGB frames, found by their time stamps.

One pass through the file, converting only frames that are wanted. Colour is converted by the tagged matrix
and range (FFmpeg's own default treats untagged HD as BT.601: a BT.709 red becomes (233, 0, 2)), pixels are
made square and the picture upright. Memory: one sequence of frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.errors import VideoError
from .plan import Sequence
from .probe import VideoInfo, open_video, video_stream

# PyAV's numbers for swscale's matrices (SWS_CS_*), by the names of probe.MATRICES.
_SWS_MATRIX = {
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 5,
    "smpte240m": 7,
    "bt2020nc": 9,
    "bt2020c": 9,
}


@dataclass(frozen=True, repr=False)
class Clip:
    """The frames of one sequence.

    ``rgb``: (T, H, W, 3) uint8. ``seconds``: when each frame is shown. ``missing``: time stamps of planned
    frames that the file did not give up; where it is not empty, ``rgb`` holds only the others.
    """

    sequence: Sequence
    rgb: np.ndarray
    seconds: tuple[float, ...]
    missing: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Clip(sequence {self.sequence.number}, rgb {self.rgb.shape}, missing {len(self.missing)})"


def read_clips(info: VideoInfo, sequences: list[Sequence]) -> Iterator[Clip]:
    """Decode ``sequences`` (ascending, not overlapping) in order, one :class:`Clip` each.

    Raises:
        VideoError: the file cannot be opened or a decoded frame has another size than the video.
    """
    if not sequences:
        return
    decoder = _decode_from(info, sequences[0].pts[0])
    upcoming = next(decoder, None)
    for sequence in sequences:
        wanted = set(sequence.pts)
        frames: dict[int, np.ndarray] = {}
        while upcoming is not None and upcoming.pts <= sequence.pts[-1]:
            if upcoming.pts in wanted and not upcoming.is_corrupt:
                frames[upcoming.pts] = _to_rgb(info, upcoming)
            upcoming = next(decoder, None)
        present = [pts for pts in sequence.pts if pts in frames]
        yield Clip(
            sequence=sequence,
            rgb=np.stack([frames[pts] for pts in present])
            if present
            else np.empty((0, info.height, info.width, 3), np.uint8),
            seconds=tuple(round(float(pts * info.time_base), 6) for pts in sequence.pts),
            missing=tuple(pts for pts in sequence.pts if pts not in frames),
        )


def _decode_from(info: VideoInfo, start_pts: int) -> Iterator[Any]:
    """Give decoded frames in display order, from the key frame before ``start_pts`` on.

    Packets that cannot be decoded are passed over: their frames are missing, which the caller sees.
    """
    import av

    with open_video(info.path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        if start_pts > int(info.pts[0]):
            container.seek(start_pts, stream=stream, backward=True)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            yield from (frame for frame in frames if frame.pts is not None)


def _to_rgb(info: VideoInfo, frame: Any) -> np.ndarray:
    """Convert one decoded frame to (H, W, 3) uint8 RGB, square pixels, upright."""
    import av
    from av.video.reformatter import Colorspace, Interpolation

    if (frame.width, frame.height) != (info.coded_width, info.coded_height):
        raise VideoError(
            f"{info.path}: its frame size changes from {info.coded_width}x{info.coded_height} to "
            f"{frame.width}x{frame.height} at {frame.time:.1f} s; split the file there"
        )
    converted = frame.reformat(
        width=round(info.coded_width * info.pixel_aspect),
        format="rgb24",
        src_colorspace=Colorspace(_SWS_MATRIX[info.matrix]),
        interpolation=Interpolation.BICUBIC,
    )
    assert isinstance(converted, av.VideoFrame)
    rgb = converted.to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, -info.rotation_degrees // 90))
