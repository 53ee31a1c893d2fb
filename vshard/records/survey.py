"""What a video holds and what a run would make of it, found without making a record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..base.report import Report
from ..clips.plan import Sequence, shot_ranges
from ..clips.probe import VideoInfo, probe
from ..clips.scan import Scan, scan_video
from . import names
from .plan import GenerateOptions, check_video, plan_run


@dataclass(frozen=True)
class Survey:
    """A video as a run sees it.

    ``shots``: [start, stop) ranges of frames between cuts, gaps in time and unreadable frames, in order.
    """

    info: VideoInfo
    scan: Scan
    options: GenerateOptions
    shots: tuple[tuple[int, int], ...]
    sequences: tuple[Sequence, ...]

    @property
    def rejected(self) -> dict[str, int]:
        """Planned sequences that make no record, counted by reason."""
        return dict(Counter(s.fault.reason for s in self.sequences if s.fault is not None))

    @property
    def records_most(self) -> int:
        """Records if no mask is too small: each sound sequence gives ``num_samples`` for each view."""
        sound = sum(sequence.fault is None for sequence in self.sequences)
        return sound * len(names.VIEWS) * self.options.num_samples

    def shot_seconds(self) -> list[tuple[float, float]]:
        """Give each shot's [start, stop) in seconds; it stops a frame's duration after its last frame."""
        seconds = self.info.pts * float(self.info.time_base)
        frame = float(1 / self.info.fps)
        return [(float(seconds[start]), float(seconds[stop - 1]) + frame) for start, stop in self.shots]


def survey(options: GenerateOptions, report: Report) -> Survey:
    """Look through ``options.video`` and plan what ``options`` would make of it. Nothing is written.

    Raises:
        VideoError: it is no readable video, or too short for one sequence.
    """
    info = probe(Path(options.video))
    check_video(info, options)
    scan = scan_video(info, report)
    shots = shot_ranges(info, scan, cuts=options.shots)
    return Survey(info, scan, options, tuple(shots), tuple(plan_run(info, scan, options)))
