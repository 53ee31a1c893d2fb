"""A video file's facts, read without decoding more than its first frames.

In: a path. Out: a frozen :class:`VideoInfo` with the presentation time stamp of every frame, which is all
that planning needs. Costs one pass over the file's packets (the disk's speed) and a dozen decoded frames.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import VideoError
from ..base.files import fingerprint
from .packets import picture_reader

# FFmpeg's numbers for the colour tags (libavutil/pixfmt.h), as PyAV hands them over.
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc", 10: "bt2020c"}
FOREIGN_MATRICES = {8: "YCgCo", 11: "SMPTE 2085", 12: "chroma-derived", 13: "chroma-derived", 14: "ICtCp"}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
FULL_RANGE = 2
# AVFieldOrder, by the field that is shown first; 0 is unknown and 1 progressive.
FIELD_ORDERS = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
HD_LINES = 720
# What FFmpeg would follow to other files, or wait for.
PLAYLISTS = ("hls", "concat", "dash", "imf", "applehttp")
# Frames looked at for interlacing; 12 take 40 ms at 720p.
SAMPLE_FRAMES = 12
# The light a PQ video is graded for where it does not say: the usual mastering display.
DEFAULT_PEAK_NITS = 1000.0
PQ_MOST_NITS = 10_000.0
# A file may say it is a little longer than its frames; more than this is a cut-off file. Where frames are fewer than
# declared too, less is enough; their number alone says nothing (a trimmed MP4 still counts what was trimmed off).
MISSING_SECONDS_ALLOWED = 1.0
MISSING_FRAMES_ALLOWED = 2


@dataclass(frozen=True, repr=False)
class VideoInfo:
    """What is known of a video before decoding it.

    ``width`` and ``height`` are pixels as shown: square, upright. ``pts`` is (N,) int64, ascending, in units
    of ``time_base`` seconds, one per frame; ``key_pts`` (K,) int64, ascending, those of the frames that decoding
    can start at. ``transfer`` is "SDR", "PQ" or "HLG", and ``peak_nits`` the brightest light of a PQ video.
    ``field_order`` says of an interlaced video which field is first: "auto" where its frames tell, else "tff" or "bff".
    ``damage`` says in one sentence what of the file is not there (``pts`` are the frames that are), else None.
    ``fingerprint`` tells contents apart (16 hex digits).
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
    transfer: str = "SDR"
    full_range: bool = False
    interlaced: bool = False
    field_order: str = "auto"
    damage: str | None = None
    peak_nits: float = DEFAULT_PEAK_NITS
    key_pts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def duration_seconds(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        return float((int(self.pts[-1]) - int(self.pts[0])) * self.time_base + 1 / self.fps)

    def __repr__(self) -> str:
        kinds = [f"{self.codec} {self.pixel_format}", self.matrix, self.transfer]
        kinds += ["interlaced"] if self.interlaced else []
        return (
            f"VideoInfo({self.path.name}: {self.width}x{self.height}, {float(self.fps):.3f} fps, "
            f"{len(self.pts)} frames, {', '.join(kinds)})"
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
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be read as a video ({reason}); the file is damaged, cut off or not a video"
        ) from error
    if container.format.name.split(",")[0] in PLAYLISTS:
        container.close()
        raise VideoError(f"{path}: is a list of other files; give one video file")
    if any(stream.codec_context is None for stream in _picture_streams(container)):
        container.close()
        raise VideoError(f"{path}: its codec is not known, or its index is damaged; get a whole copy")
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
        VideoError: not a readable video, no video stream, no time stamps, not one frame that decodes, or colours
            coded in a way that is not supported.
    """
    with open_video(path) as container:
        stream = video_stream(container)
        packets = _read_all(path, container, stream)
        frame, field_order = _first_frames(path)
        transfer = HDR_TRANSFERS.get(frame.color_trc, "SDR")
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        # PyAV gives the display matrix's counter-clockwise angle.
        rotation = round(-frame.rotation / 90) % 4 * 90
        width, height = round(frame.width * aspect), frame.height
        if rotation in (90, 270):
            width, height = height, width
        pts = packets.pts
        fps = Fraction(stream.average_rate or stream.guessed_rate or 0)
        if len(pts) > 1 and (fps <= 0 or packets.count >= 2 * len(pts)):  # or two fields a frame
            fps = Fraction(len(pts) - 1) / ((int(pts[-1]) - int(pts[0])) * stream.time_base)
        return VideoInfo(
            path=path,
            size_bytes=path.stat().st_size,
            fingerprint=fingerprint(path),
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            coded_width=frame.width,
            coded_height=frame.height,
            width=width,
            height=height,
            pixel_aspect=aspect,
            rotation_degrees=rotation,
            fps=fps,
            time_base=Fraction(stream.time_base),
            matrix=_matrix(path, frame, transfer),
            pts=pts,
            transfer=transfer,
            full_range=frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj"),
            interlaced=field_order is not None,
            field_order=field_order or "auto",
            damage=_damage(container, stream, packets),
            peak_nits=_peak_nits(frame),
            key_pts=packets.key_pts,
        )


def colour_matrix(tag: int, lines: int) -> str:
    """Name the YCbCr matrix of a frame: its tag, or BT.709 from 720 lines up and BT.601 below if untagged."""
    if tag in MATRICES:
        return MATRICES[tag]
    return "bt709" if lines >= HD_LINES else "smpte170m"


def video_packets(container: Any, stream: Any) -> Iterator[Any]:
    """Give the stream's packets that hold data, up to the first that cannot be read (see VideoInfo.damage)."""
    import av

    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except (av.error.FFmpegError, IndexError):  # as in _read_all
        return


def decode_packet(stream: Any, packet: Any | None) -> tuple[list[Any], bool]:
    """Give the frames that come out for a packet (None: at the end) and whether the decoder found an error."""
    import av

    try:
        return stream.decode(packet), False
    except av.error.FFmpegError:
        return [], True


def _picture_streams(container: Any) -> list[Any]:
    import av

    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


@dataclass(frozen=True)
class _Packets:
    """One pass over a file: time stamps of frames and key frames; of the video's packets the number, how many have no
    time stamp and whether the last is cut short; the seconds at which the last packet of all ends; and FFmpeg's reason
    where reading stopped on an error.
    """

    pts: np.ndarray
    key_pts: np.ndarray
    count: int
    untimed: int
    last_is_cut: bool
    end_seconds: float
    stopped: str | None


def _read_all(path: Path, container: Any, stream: Any) -> _Packets:
    import av

    reader = picture_reader(stream.codec_context)
    times: list[int] = []
    keys: list[int] = []
    count, untimed, last_is_cut, end_seconds, stopped = 0, 0, False, 0.0, None
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end_seconds = max(
                    end_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base)
                )
            if packet.size == 0 or packet.stream_index != stream.index:
                continue
            count += 1
            picture = reader.read(packet)
            if not picture.gives_frame:
                continue
            if packet.pts is None:
                untimed += 1
                continue
            if picture.is_key:
                keys.append(packet.pts)
            if not packet.is_discard:
                times.append(packet.pts)
                last_is_cut = packet.is_corrupt
    except av.error.FFmpegError as error:
        stopped = error.strerror
    except IndexError:  # PyAV's, when a stream begins that the file's head does not name
        stopped = "a stream that was not announced"
    if untimed > len(times):
        raise VideoError(
            f"{path}: its packets carry no time stamps; remux it first: ffmpeg -i IN -c copy OUT.mkv"
        )
    if last_is_cut:
        times.pop()
    if not times:
        raise VideoError(f"{path}: not one whole frame is there; the file is cut off, get a whole copy")
    pts, key_pts = (np.unique(np.asarray(values, dtype=np.int64)) for values in (times, keys))
    return _Packets(pts, key_pts, count, untimed, last_is_cut, end_seconds, stopped)


def _damage(container: Any, stream: Any, packets: _Packets) -> str | None:
    """Compare what the container declares with the packets that are there."""
    start = stream.start_time if stream.start_time is not None else int(packets.pts[0])
    frame_seconds = float(np.ptp(packets.pts) * stream.time_base) / max(len(packets.pts) - 1, 1)
    found = float((int(packets.pts[-1]) - start) * stream.time_base) + frame_seconds
    text = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    declared, missing = None, 0.0
    if stream.duration:
        declared = float(stream.duration * stream.time_base)
        missing = declared - found
    elif text:
        declared = int(text[1]) * 3600 + int(text[2]) * 60 + float(text[3])
        missing = declared - found
    elif container.duration:
        declared = container.duration / 1_000_000
        missing = declared - packets.end_seconds
    short = missing > MISSING_SECONDS_ALLOWED
    short |= stream.frames > packets.count and missing > MISSING_FRAMES_ALLOWED * frame_seconds
    if not (short or packets.last_is_cut or packets.stopped):
        if packets.untimed:
            return f"{packets.untimed} of its {packets.count} frames carry no time stamp and are left out"
        return None
    how = f"reading stops in the middle ({packets.stopped})" if packets.stopped else "is cut off"
    total = f" of {declared:.1f} s" if declared is not None else ""
    return f"{how}: only {len(packets.pts)} frames ({found:.1f} s{total}) are there"


def _first_frames(path: Path) -> tuple[Any, str | None]:
    """Give the first frame that decodes, and VideoInfo's field_order if the video is interlaced."""
    first, interlaced, seen = None, False, 0
    with open_video(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        for packet in chain(video_packets(container, stream), [None]):
            for frame in decode_packet(stream, packet)[0]:
                first = first or frame
                interlaced |= frame.interlaced_frame
                seen += 1
            if seen >= SAMPLE_FRAMES:
                break
        tagged = FIELD_ORDERS.get(stream.codec_context.field_order)
    if first is None:
        raise VideoError(
            f"{path}: not one frame can be decoded; the file is damaged or its codec is not supported"
        )
    return first, "auto" if interlaced else tagged


def _matrix(path: Path, frame: Any, transfer: str) -> str:
    if frame.colorspace in FOREIGN_MATRICES:
        raise VideoError(
            f"{path}: its colours are coded as {FOREIGN_MATRICES[frame.colorspace]}, and only RGB and YCbCr by BT.601, "
            "BT.709, BT.2020, SMPTE 240M or FCC are supported; convert it first"
        )
    if transfer != "SDR" and frame.colorspace not in MATRICES:
        return "bt2020nc"
    return colour_matrix(frame.colorspace, frame.height)


def _peak_nits(frame: Any) -> float:
    """Give the brightest light of the content (MaxCLL), or else of its mastering display, in cd/m²."""
    peak = 0.0
    try:
        side_data = frame.side_data
        display, light = (
            side_data.get(kind) for kind in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
        )
    except ValueError:  # PyAV does not know the kind of an entry (Exif, of cameras); HDR video has none such
        return DEFAULT_PEAK_NITS
    if display is not None:
        # AVMasteringDisplayMetadata: ten rationals, the last of them the greatest luminance, then two flags.
        numerator, denominator, _, has_luminance = struct.unpack_from("iiii", bytes(display), 72)
        peak = numerator / denominator if has_luminance and denominator else peak
    if light is not None:
        peak = float(struct.unpack_from("I", bytes(light))[0]) or peak
    return min(peak or DEFAULT_PEAK_NITS, PQ_MOST_NITS)
