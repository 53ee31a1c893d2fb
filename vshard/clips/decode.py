"""A video's frames in the order they are shown, each with the word whether it can be trusted.

A decoder patches what it cannot read with pieces of other frames, often without a sign, and what is built on such a
frame is wrong too. So damage counts from where it is found to the next key frame, and what is found does not depend
on where decoding starts.

A decoder gets one thread. On more, FFmpeg now and then loses the mark of an error it concealed (10 times in 150 with
H.264), errors surface packets late, and dav1d finds others than alone. On two cores that costs up to a third of the
speed (H.264 at 720p: 332 in place of 507 frames a second, HEVC none); ranges of a video can be decoded side by side.
One pass through the file; memory: the few frames that the decoder holds back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import Any

import numpy as np

from .packets import picture_reader
from .probe import VideoInfo, decode_packet, open_video, video_packets, video_stream

# HEVC's decoder says nothing of damaged slices unless it is to give up at the first error, and checks the hash of a
# picture, where the stream holds it, only when told to. H.264's would give up on harmless oddities.
_STRICT = {"hevc": {"err_detect": "explode+crccheck"}}


@dataclass(frozen=True)
class Decoded:
    """One frame: its time stamp in the video's units and its picture (av.VideoFrame, deinterlaced).

    ``damaged``: this frame, or one that it may be built from, did not decode cleanly.
    """

    pts: int
    picture: Any
    damaged: bool


def decode_frames(info: VideoInfo, start_pts: int | None = None) -> Iterator[Decoded]:
    """Give the video's frames in the order they are shown, from the first one at or after ``start_pts``.

    Absent are frames that do not come out of the decoder, or in another size or pixel format than the first one's.

    Raises:
        VideoError: the file cannot be opened.
    """
    start = int(info.pts[0]) if start_pts is None else start_pts
    if not info.interlaced:
        return _as_coded(info, start)
    # Deinterlacing looks at the frame before.
    before = int(info.pts[max(np.searchsorted(info.pts, start) - 1, 0)])
    return (frame for frame in _deinterlaced(info, _as_coded(info, before)) if frame.pts >= start)


def _as_coded(info: VideoInfo, start: int) -> Iterator[Decoded]:
    """Give frames from ``start`` on; behind damage a new decoder begins at the key frame, as if the file did."""
    at: int | None = start
    while at is not None:
        at = yield from _up_to_damage(info, at)


def _up_to_damage(info: VideoInfo, start: int) -> Generator[Decoded, None, int | None]:
    """Decode from the last key frame at or before ``start`` on to the end, or to the first key frame behind damage.

    That key frame's time stamp is returned. The decoder that met the damage is not to be trusted with it: PyAV keeps
    back an error that comes with frames left over from another.
    """
    with open_video(info.path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        stream.codec_context.options = _STRICT.get(info.codec, {})
        reader = picture_reader(stream.codec_context)
        trust = Trust(info)
        anew = None
        for packet in chain(_packets_from(info, container, stream, start), [None]):
            if packet is not None:
                picture = reader.read(packet)
                if picture.is_key and trust.is_broken and packet.pts is not None and packet.pts > start:
                    anew, packet = packet.pts, None
                else:
                    shown = packet.pts if picture.gives_frame else None
                    trust.sent(shown, picture.is_key, lost_before=picture.lost_before)
            frames, failed = decode_packet(stream, packet)
            if failed or (packet is not None and packet.is_corrupt):
                trust.failed()
            trust.came(frames)
            yield from (frame for frame in trust.settled() if frame.pts >= start)
            if packet is None:
                break
    return anew


def _packets_from(info: VideoInfo, container: Any, stream: Any, start: int) -> Iterator[Any]:
    """Give the packets from the last key frame shown at or before ``start`` on.

    The file is read from its beginning where that is the first one, and where seeking does not hit it (some containers
    have no index).
    """
    index = int(np.searchsorted(info.key_pts, start, side="right")) - 1
    if index <= 0:
        yield from video_packets(container, stream)
    elif (found := _sought(info.key_pts[: index + 1].tolist(), container, stream)) is not None:
        yield from found
    else:
        with open_video(info.path) as unread:
            yield from video_packets(unread, video_stream(unread))


def _sought(keys: list[int], container: Any, stream: Any) -> Iterator[Any] | None:
    """Seek to the last of the key frames, and further and further before it (MPEG-TS is searched roughly)."""
    import av

    back = 0
    while back < len(keys):
        try:
            container.seek(keys[-1 - back], stream=stream)
        except av.error.FFmpegError:
            return None
        found = _behind(keys[-1], video_packets(container, stream))
        if found is not None:
            return found
        back = 2 * back + 1
    return None


def _behind(key: int, packets: Iterator[Any]) -> Iterator[Any] | None:
    """Give the packets from the key frame's on, or None if a later key frame comes first."""
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and packet.pts >= key:
            return chain([packet], packets) if packet.pts == key else None
    return None


def _holds(times: np.ndarray, pts: int) -> bool:
    index = np.searchsorted(times, pts)
    return bool(index < len(times) and times[index] == pts)


def _deinterlaced(info: VideoInfo, frames: Iterator[Decoded]) -> Iterator[Decoded]:
    """Make one full picture of a frame's two fields (FFmpeg's bwdif), which looks at the frames before and after."""
    from av.filter import Graph
    from av.video.format import VideoFormat

    graph = Graph()
    source = graph.add_buffer(
        width=info.coded_width,
        height=info.coded_height,
        format=VideoFormat(info.pixel_format),
        time_base=info.time_base,
    )
    which = "interlaced:parity=auto" if info.field_order == "auto" else f"all:parity={info.field_order}"
    bwdif = graph.add("bwdif", f"mode=send_frame:deint={which}")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    before: Decoded | None = None
    frame: Decoded | None = None
    for after in chain(frames, [None]):
        graph.vpush(after.picture if after else None)
        if frame is not None:
            picture = graph.vpull()
            picture.pts, picture.time_base = frame.pts, info.time_base  # bwdif counts in half units
            index = np.searchsorted(info.pts, frame.pts)
            seen = [other.pts for other in (before, frame, after) if other and not other.damaged]
            needed = info.pts[max(index - 1, 0) : index + 2]
            yield Decoded(frame.pts, picture, frame.damaged or not np.array_equal(seen, needed))
        before, frame = frame, after


@dataclass
class _Sent:
    """A packet: its place in decoding order, the number of key frames up to it, and whether it is shown before its
    key frame and so may be built from what came before that (an open group of pictures).
    """

    order: int
    interval: int
    is_leading: bool


class Trust:
    """Accounts for every packet and frame of one decoding, and says which frames can be trusted.

    Damage at a packet reaches all that is decoded after it up to the next key frame, and of the frames behind that
    those shown before it. Damage of such a leading frame reaches the leading frames after it alone: decoding that
    starts at the key frame never sees it. A packet whose frame has not come when a later one is shown is damaged.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        self._now = _Sent(-1, 0, False)
        self._key_pts: int | None = None
        self._sent: dict[int, _Sent] = {}
        self._awaited: list[int] = []  # a heap of time stamps
        self._came: deque[tuple[_Sent, Any]] = deque()
        # Interval -> order of its first damage. Nothing before the first key frame is known; only HEVC's decoder
        # leaves out by itself what is built on it.
        self._broken: dict[int, int] = {} if info.codec == "hevc" else {0: 0}
        self._broken_leading: dict[int, int] = {}

    @property
    def is_broken(self) -> bool:
        """Whether damage was met since the last key frame."""
        return self._now.order >= 0 and self._now.interval in self._broken

    def sent(self, pts: int | None, is_key: bool, *, lost_before: bool) -> None:
        """Note a packet that goes to the decoder, and when its frame is shown, if it gives one.

        ``lost_before``: a packet that it may be built from is not there.
        """
        order, interval = self._now.order + 1, self._now.interval
        if is_key and pts is None:
            # The rest of a key frame whose beginning was cut out, with its time stamp.
            is_key, lost_before = False, True
        if is_key or (order == 0 and not len(self._info.key_pts)):
            if lost_before:
                self._broken.setdefault(interval, order)
            interval, self._key_pts = interval + 1, pts
        is_leading = pts is not None and self._key_pts is not None and pts < self._key_pts
        self._now = _Sent(order, interval, is_leading)
        if interval == 0 or (lost_before and not is_key):
            self._break(self._now)
        if pts is not None and pts not in self._sent and _holds(self._info.pts, pts):
            self._sent[pts] = self._now
            heappush(self._awaited, pts)

    def failed(self) -> None:
        """Note that the packet sent last did not decode."""
        self._break(self._now)

    def came(self, pictures: list[Any]) -> None:
        """Note frames that came out of the decoder."""
        shape = (self._info.coded_width, self._info.coded_height, self._info.pixel_format)
        for picture in pictures:
            while self._awaited and picture.pts is not None and self._awaited[0] < picture.pts:
                self._pass_over()
            if not self._awaited or self._awaited[0] != picture.pts:
                continue  # trimmed off by the container, or out of order
            packet = self._sent.pop(heappop(self._awaited))
            fits = (picture.width, picture.height, picture.format.name) == shape
            if picture.is_corrupt or not fits:
                self._break(packet)
            if fits:
                self._came.append((packet, picture))

    def settled(self) -> Iterator[Decoded]:
        """Give the frames of which no packet decoded before them is still awaited.

        Those left over at the end are built on a frame that never came.
        """
        while self._came:
            packet, picture = self._came[0]
            if any(self._sent[pts].order < packet.order for pts in self._awaited):
                return
            self._came.popleft()
            yield Decoded(picture.pts, picture, self._reaches(packet))

    def _pass_over(self) -> None:
        self._break(self._sent.pop(heappop(self._awaited)))

    def _break(self, packet: _Sent) -> None:
        broken = self._broken_leading if packet.is_leading else self._broken
        broken[packet.interval] = min(packet.order, broken.get(packet.interval, packet.order))

    def _reaches(self, packet: _Sent) -> bool:
        if self._broken.get(packet.interval, packet.order + 1) <= packet.order:
            return True
        return packet.is_leading and (
            packet.interval - 1 in self._broken
            or self._broken_leading.get(packet.interval, packet.order + 1) <= packet.order
        )
