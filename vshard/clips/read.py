"""Planned sequences -> their RGB frames, found by time stamp. One pass through the file; memory: one sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .colour import to_rgb
from .decode import decode_frames
from .plan import Sequence
from .probe import VideoInfo


@dataclass(frozen=True, repr=False)
class Clip:
    """The frames of one sequence.

    ``rgb``: (T, H, W, 3) uint8. ``seconds``: when each frame is shown. ``missing``: time stamps of planned
    frames that are not in the file or damaged; where it is not empty, ``rgb`` holds only the others.
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
        VideoError: the file cannot be opened.
    """
    if not sequences:
        return
    decoder = decode_frames(info, sequences[0].pts[0])
    upcoming = next(decoder, None)
    for sequence in sequences:
        wanted = set(sequence.pts)
        frames: dict[int, np.ndarray] = {}
        while upcoming is not None and upcoming.pts <= sequence.pts[-1]:
            if upcoming.pts in wanted and not upcoming.damaged:
                frames[upcoming.pts] = to_rgb(info, upcoming.picture)
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
