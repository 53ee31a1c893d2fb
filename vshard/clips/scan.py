"""One look at every frame of a video, small: where shots end, what repeats, what is black, what cannot be read.

In: a probed video. Out: a :class:`Scan`, a few numbers a frame, from which planning decides which frames may make a
sequence. Cuts come from PySceneDetect. Costs one decoding of the file, several ranges of it side by side, and 18 bytes
a frame; a run keeps the result beside its state, so it is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event

import cv2
import numpy as np

from ..base.files import write_file
from ..base.report import Report
from .colour import to_rgb
from .decode import decode_frames
from .probe import VideoInfo

SCHEMA = "vshard.scan/1"
SMALL_SHORT_SIDE_PX = 144
# Motion moves the mean of a tile little, a cut moves most of them.
TILES = (16, 9)
# PySceneDetect's own defaults: a cut stands out three times from the frames around it.
CUT_RATIO, CUT_CHANGE_LEAST = 3.0, 15.0
# Ranges are the same on every machine. Where a file cannot be sought in, each is decoded from the file's start.
RANGE_FRAMES_LEAST, RANGES_MOST = 2048, 16
# A decoder of 4K holds up to 0.4 GB.
DECODERS_MOST = 8
# The detector compares a frame with two before and two after it, each with the one before.
CONTEXT_FRAMES = 4
_DIGEST_BYTES = hashlib.sha256().digest_size
_FRAME = np.dtype(
    [
        ("readable", "?"),
        ("cut", "?"),
        ("light", "<f4"),
        ("contrast", "<f4"),
        ("change", "<f4"),
        ("peak", "<f4"),
    ]
)


@dataclass(frozen=True, repr=False)
class Scan:
    """What was seen of each of a video's N frames: (N,) arrays in the order of ``VideoInfo.pts``.

    ``readable``: bool, the frame decodes cleanly; the other numbers of a frame that does not are 0.
    ``cut``: bool, a new shot begins here.
    ``light``, ``contrast``: float32, mean and standard deviation of its gray levels, 0 to 255.
    ``change``, ``peak``: float32, how far it is from the readable frame before, in gray levels: the mean difference
    of the means of 16×9 tiles (a cut shows, motion hardly), and the largest mean difference within a tile (0 when
    nothing moves anywhere). Both are 0 for the first frame.
    """

    readable: np.ndarray
    cut: np.ndarray
    light: np.ndarray
    contrast: np.ndarray
    change: np.ndarray
    peak: np.ndarray

    def __repr__(self) -> str:
        return f"Scan({len(self.cut)} frames, {self.cut.sum()} cuts, {(~self.readable).sum()} unreadable)"


def scan_video(info: VideoInfo, report: Report) -> Scan:
    """Look at every frame of the video once.

    Raises:
        VideoError: the file cannot be opened.
    """
    count = len(info.pts)
    parts = max(min(count // RANGE_FRAMES_LEAST, RANGES_MOST), 1)
    edges = [count * part // parts for part in range(parts + 1)]
    looked, stopped = [0] * parts, Event()
    report.start(f"looking through {info.path.name}", count, "frames")
    with ThreadPoolExecutor(min(os.cpu_count() or 1, DECODERS_MOST)) as pool:
        futures = [
            pool.submit(_look, info, start, stop, part, looked, stopped)
            for part, (start, stop) in enumerate(pairwise(edges))
        ]
        try:
            while wait(futures, timeout=0.2).not_done and not any(
                f.done() and f.exception() for f in futures
            ):
                report.advance(sum(looked))
        finally:
            stopped.set()
        frames = np.concatenate([future.result() for future in futures])
    report.advance(count, f"{int(frames['cut'].sum())} cuts")
    report.finish()
    return _scan_of(frames)


def _look(info: VideoInfo, start: int, stop: int, part: int, looked: list[int], stopped: Event) -> np.ndarray:
    """Look at the frames [start, stop): an array of ``_FRAME``. Notes in ``looked[part]`` how many are done.

    It begins a little before and ends a little behind, so that ranges put together are as if looked at in one go.
    """
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(
        adaptive_threshold=CUT_RATIO, min_content_val=CUT_CHANGE_LEAST, min_scene_len=1
    )
    frames = np.zeros(len(info.pts), _FRAME)
    size = _small_size(info)
    seen: list[int] = []
    before: np.ndarray | None = None
    for decoded in decode_frames(info, int(info.pts[max(start - CONTEXT_FRAMES, 0)])):
        index = int(np.searchsorted(info.pts, decoded.pts))
        if stopped.is_set() or index >= min(stop + CONTEXT_FRAMES, len(info.pts)):
            break
        if decoded.damaged or info.pts[index] != decoded.pts:
            continue
        bgr = cv2.cvtColor(to_rgb(info, decoded.picture, size=size), cv2.COLOR_RGB2BGR)
        cuts = detector.process_frame(FrameTimecode(len(seen), fps=1.0), bgr)
        seen.append(index)
        for cut in cuts:
            frames["cut"][seen[cut.frame_num]] = True
        gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
        row = frames[index]
        row["readable"], row["light"], row["contrast"] = True, gray.mean(), gray.std()
        if before is not None:
            row["change"] = np.abs(_tiles(gray) - _tiles(before)).mean()
            row["peak"] = _tiles(np.abs(gray - before)).max()
        before = gray
        looked[part] = min(max(index + 1 - start, 0), stop - start)
    return frames[start:stop]


def load_or_scan(info: VideoInfo, path: Path, report: Report) -> Scan:
    """Give the scan kept at ``path``, or make it and keep it there; one of another file is made anew.

    Raises:
        VideoError: as :func:`scan_video`.
        OutputError: it cannot be written.
    """
    facts = {"schema": SCHEMA, "fingerprint": info.fingerprint, "frames": len(info.pts)}
    head = json.dumps(facts, sort_keys=True).encode() + b"\n"
    size_bytes = len(head) + len(info.pts) * _FRAME.itemsize + _DIGEST_BYTES
    if path.is_file() and path.stat().st_size == size_bytes:
        content, digest = _halves(path.read_bytes())
        if content.startswith(head) and _digest(content) == digest:
            return _scan_of(np.frombuffer(content, _FRAME, offset=len(head)))
    scan = scan_video(info, report)
    frames = np.zeros(len(info.pts), _FRAME)
    for name in _FRAME.names or ():
        frames[name] = getattr(scan, name)
    content = head + frames.tobytes()
    write_file(path, content + _digest(content))
    return scan


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _halves(data: bytes) -> tuple[bytes, bytes]:
    return data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]


def _scan_of(frames: np.ndarray) -> Scan:
    return Scan(**{name: np.ascontiguousarray(frames[name]) for name in _FRAME.names or ()})


def _small_size(info: VideoInfo) -> tuple[int, int]:
    """Give (width, height) before rotation, square pixels, that keep every tile at least a few pixels wide."""
    width, height = info.width, info.height
    if info.rotation_degrees in (90, 270):
        width, height = height, width
    scale = SMALL_SHORT_SIDE_PX / min(width, height)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _tiles(gray: np.ndarray) -> np.ndarray:
    """Give the means of 16×9 tiles of (h, w) float32: (9, 16) float32."""
    return np.asarray(cv2.resize(gray, TILES, interpolation=cv2.INTER_AREA))
