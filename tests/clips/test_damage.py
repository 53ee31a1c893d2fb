from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from filming import moving_frames

from vshard.clips.decode import Trust, decode_frames
from vshard.clips.plan import Sequence
from vshard.clips.probe import VideoInfo, probe
from vshard.clips.read import read_clips

FRAMES, GROUP = 36, 9
HEVC = f"keyint={GROUP}:min-keyint={GROUP}:bframes=2:log-level=none:hash=1:"
# Name -> (encoder, its options). A hash in the stream is what lets HEVC's decoder notice flipped bytes.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "h264.mp4": ("libx264", {"g": str(GROUP), "bf": "2"}),
    "h264.mkv": ("libx264", {"g": str(GROUP), "bf": "2", "x264-params": "open-gop=1:scenecut=0"}),
    "h264.ts": ("libx264", {"g": str(GROUP), "bf": "2"}),
    "fields.mkv": ("libx264", {"g": str(GROUP), "bf": "2", "x264-params": "tff=1"}),
    "hevc.mp4": ("libx265", {"x265-params": HEVC + "open-gop=0"}),
    "hevc.mkv": ("libx265", {"x265-params": HEVC + "open-gop=1"}),
    "mpeg2.ts": ("mpeg2video", {"g": str(GROUP), "bf": "2"}),
}


def write(path: Path, codec: str, options: dict[str, str], count: int = FRAMES) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index, image in enumerate(moving_frames(count, 96, 128)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One clip of each kind, 36 frames in groups of 9."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / name, *kind) for name, kind in KINDS.items()}


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def without(path: Path, dropped: set[int], target: Path) -> Path:
    """Copy a clip but for the packets of these numbers in decoding order."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number not in dropped:
                packet.stream = stream
                container.mux(packet)
    return target


def largest(path: Path, group: int) -> int:
    """The number, in decoding order, of the group's largest packet shown after its key frame: others build on it."""
    packets = packets_of(path)
    start, end = [number for number, packet in enumerate(packets) if packet.is_keyframe][group : group + 2]
    later = [number for number in range(start, end) if packets[number].pts > packets[start].pts]
    return max(later, key=lambda number: packets[number].size)


def flipped(path: Path, numbers: list[int], target: Path) -> Path:
    """Copy a clip with bytes flipped in the middle of these packets, where they lie in the file."""
    data = bytearray(path.read_bytes())
    packets = packets_of(path)
    for number in numbers:
        # A transport stream cuts packets up: look for a piece of it.
        body = bytes(packets[number])
        at = data.index(body[len(body) // 2 : len(body) // 2 + 12])
        for offset in range(12):
            data[at + offset] ^= 0x5A
    target.write_bytes(data)
    return target


def look(info: VideoInfo, start: int | None = None) -> dict[int, tuple[str, bool]]:
    """Time stamp -> (digest of the picture, damaged)."""
    return {
        frame.pts: (hashlib.md5(frame.picture.to_ndarray().tobytes()).hexdigest(), frame.damaged)
        for frame in decode_frames(info, start)
    }


def clean(frames: dict[int, tuple[str, bool]]) -> dict[int, str]:
    return {pts: digest for pts, (digest, damaged) in frames.items() if not damaged}


def assert_start_does_not_matter(info: VideoInfo) -> None:
    everything = clean(look(info))
    for start in info.pts.tolist():
        expected = {pts: digest for pts, digest in everything.items() if pts >= start}
        assert clean(look(info, start)) == expected, start


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_gives_every_frame_from_any_start(whole: dict[str, Path], name: str) -> None:
    info = probe(whole[name])
    assert info.damage is None
    assert info.interlaced == (name == "fields.mkv")
    frames = look(info)
    assert list(frames) == info.pts.tolist()
    assert len(clean(frames)) == FRAMES
    assert_start_does_not_matter(info)


@pytest.mark.parametrize("name", KINDS)
def test_flipped_bytes_spoil_frames_up_to_the_next_key_frame(
    whole: dict[str, Path], tmp_path: Path, name: str
) -> None:
    truth = look(probe(whole[name]))
    number = largest(whole[name], 1)
    info = probe(flipped(whole[name], [number], tmp_path / name))
    assert info.pts.tolist() == list(truth)
    frames = look(info)
    kept = clean(frames)
    assert {pts: truth[pts][0] for pts in kept} == kept
    spoilt = [pts for pts in truth if pts not in kept]
    hit = packets_of(whole[name])[number].pts
    first, last = info.key_pts[1], info.key_pts[2]
    # A field's neighbours are looked at to make it a picture.
    reach = int(0.04 / info.time_base) if info.interlaced else 0
    assert hit in spoilt
    assert all(first - reach <= pts < last + reach for pts in spoilt)
    assert look(info) == frames
    assert_start_does_not_matter(info)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts"])
def test_a_lost_reference_is_noticed_and_a_lost_other_frame_spoils_nothing(
    whole: dict[str, Path], tmp_path: Path, name: str
) -> None:
    packets, truth = packets_of(whole[name]), look(probe(whole[name]))
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    harmless = 0
    for number in range(keys[1], keys[2]):
        info = probe(without(whole[name], {number}, tmp_path / name))
        kept = clean(look(info))
        assert {pts: truth[pts][0] for pts in kept} == kept
        assert packets[keys[2]].pts in kept
        harmless += len(kept) == FRAMES - 1
        if number <= keys[1] + 1:  # the key frame, the frame that all others are built on
            assert not {packet.pts for packet in packets[number + 1 : keys[2]]} & set(kept)
            assert_start_does_not_matter(info)
    assert harmless >= 2


@pytest.mark.parametrize("name", ["h264.mkv", "fields.mkv", "hevc.mkv"])
def test_clips_alone_are_as_among_others(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    info = probe(flipped(whole[name], [largest(whole[name], 1)], tmp_path / name))
    sequences = [
        Sequence(number, tuple(info.pts[start : start + 4].tolist()))
        for number, start in enumerate(range(0, FRAMES, 4))
    ]
    together = list(read_clips(info, sequences))
    assert any(clip.missing for clip in together)
    assert sum(not clip.missing for clip in together) >= 4
    for sequence, clip in zip(sequences, together, strict=True):
        (alone,) = read_clips(info, [sequence])
        assert alone.missing == clip.missing
        assert np.array_equal(alone.rgb, clip.rgb)
        assert len(clip.rgb) == len(sequence.pts) - len(clip.missing)


def test_errors_one_upon_another_are_all_seen(whole: dict[str, Path], tmp_path: Path) -> None:
    # PyAV keeps back an error that comes with frames, as it does behind another error.
    packets, truth = packets_of(whole["hevc.mkv"]), look(probe(whole["hevc.mkv"]))
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    numbers = [keys[1] + 1, keys[2] - 1, keys[2], keys[3] - 1, keys[3]]
    kept = clean(look(probe(flipped(whole["hevc.mkv"], numbers, tmp_path / "hevc.mkv"))))
    assert kept == {pts: truth[pts][0] for pts in kept}
    assert len(kept) >= GROUP


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "fields.mkv", "mpeg2.ts"])
def test_random_damage_looks_the_same_from_everywhere(
    whole: dict[str, Path], tmp_path: Path, name: str
) -> None:
    rng = np.random.default_rng(5)
    data = whole[name].read_bytes()
    for trial in range(6):
        hurt = bytearray(data)
        for at in rng.integers(len(data) // 5, len(data) * 9 // 10, 3):
            hurt[at : at + (40 if trial % 2 else 1)] = rng.bytes(40 if trial % 2 else 1)
        (tmp_path / name).write_bytes(hurt)
        info = probe(tmp_path / name)
        everything = clean(look(info))
        for start in [*info.key_pts.tolist(), *rng.choice(info.pts, 2).tolist()]:
            expected = {pts: digest for pts, digest in everything.items() if pts >= start}
            assert clean(look(info, start)) == expected, (trial, start)


def test_a_hole_in_a_transport_stream_is_taken_at_its_word(tmp_path: Path) -> None:
    # HEVC's decoder notices nothing where the stream holds no hash; the container counts its packets.
    options = {"x265-params": "keyint=9:min-keyint=9:bframes=2:log-level=none:crf=20"}
    path = write(tmp_path / "whole.ts", "libx265", options)
    truth, packets = look(probe(path)), packets_of(path)
    number = largest(path, 1)
    assert packets[number].size > 2 * 188
    data = path.read_bytes()
    piece = bytes(packets[number])[200:240]
    at = data.index(piece) // 188 * 188
    (tmp_path / "hole.ts").write_bytes(data[:at] + data[at + 188 :])
    info = probe(tmp_path / "hole.ts")
    kept = clean(look(info))
    assert packets[number].pts not in kept
    assert len(kept) > GROUP
    assert {pts: truth[pts][0] for pts in kept} == kept


def test_a_container_that_marks_no_key_frames(tmp_path: Path) -> None:
    path = tmp_path / "unmarked.flv"
    marked = write(tmp_path / "marked.flv", "flv", {"g": "9"})
    with av.open(str(marked)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, False
                container.mux(packet)
    info = probe(path)
    assert info.key_pts.tolist() == []
    assert len(clean(look(info))) == FRAMES
    assert len(clean(look(info, int(info.pts[20])))) == FRAMES - 20


def without_time(path: Path, body: bytes) -> None:
    """Take a packet's time stamps out of the header that the transport stream puts before it."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\0\0\1\xe0", 0, data.index(body[:40]))
    data[at + 7] &= 0x3F  # "PTS and DTS are there" becomes "neither is"
    path.write_bytes(data)


def test_frames_without_time_stamps_are_counted_and_left_out(whole: dict[str, Path], tmp_path: Path) -> None:
    packets, truth = packets_of(whole["h264.ts"]), look(probe(whole["h264.ts"]))
    path = tmp_path / "gap.ts"
    path.write_bytes(whole["h264.ts"].read_bytes())
    without_time(path, bytes(packets[GROUP + 2]))
    info = probe(path)
    assert info.damage == "1 of its 36 frames carry no time stamp and are left out"
    assert len(info.pts) == FRAMES - 1
    assert clean(look(info)) == {pts: truth[pts][0] for pts in info.pts.tolist()}
    # A key frame without one, behind damage.
    flipped(whole["h264.ts"], [largest(whole["h264.ts"], 0)], path)
    without_time(path, bytes(packets[GROUP]))
    kept = clean(look(probe(path)))
    assert kept == {pts: truth[pts][0] for pts in kept}
    assert {packet.pts for packet in packets[GROUP + 1 :]} <= set(kept)
    assert_start_does_not_matter(probe(path))


def test_a_change_of_size_leaves_the_frames_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "sizes.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for part, (width, height) in enumerate([(128, 96), (96, 64), (128, 96)]):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            frames = [av.VideoFrame.from_ndarray(f, "rgb24") for f in moving_frames(10, height, width)]
            for frame in [*frames, None]:
                if frame:
                    frame.pts, frame.time_base = frames.index(frame), Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.pts, packet.dts = packet.pts + 10 * part, packet.dts + 10 * part
                    packet.time_base, packet.stream = Fraction(1, 25), stream
                    container.mux(packet)
    info = probe(path)
    assert (info.width, info.height, len(info.pts)) == (128, 96, 30)
    (clip,) = read_clips(info, [Sequence(0, tuple(info.pts.tolist()))])
    assert clip.missing == tuple(info.pts[10:20].tolist())
    assert clip.rgb.shape == (20, 96, 128, 3)
    assert_start_does_not_matter(info)


def test_a_cut_off_file_gives_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mkv", *KINDS["h264.mkv"], count=90)
    data = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    info = probe(tmp_path / "cut.mkv")
    assert info.damage == (
        f"is cut off: only {len(info.pts)} frames ({float(info.pts[-1]) / 1000 + 0.04:.1f} s of 3.6 s) are there"
    )
    assert 40 < len(info.pts) < 65
    truth, kept = look(probe(path)), clean(look(info))
    assert kept == {pts: truth[pts][0] for pts in kept}
    # Only the last frames may be built on one that is cut off.
    assert len(kept) >= len(info.pts) - 3


def test_frames_before_the_first_key_frame_are_not_trusted(whole: dict[str, Path], tmp_path: Path) -> None:
    info = probe(without(whole["h264.ts"], {0}, tmp_path / "late.ts"))
    frames = look(info)
    assert len(info.pts) == FRAMES - 1
    assert min(clean(frames)) == info.key_pts[0]
    assert len(clean(frames)) == FRAMES - GROUP
    assert_start_does_not_matter(info)


def test_intra_refresh_is_no_place_to_start(tmp_path: Path) -> None:
    options = {"g": "10", "bf": "0", "x264-params": "intra-refresh=1"}
    info = probe(write(tmp_path / "refresh.mkv", "libx264", options))
    assert sum(packet.is_keyframe for packet in packets_of(info.path)) > 1
    assert info.key_pts.tolist() == [0]
    assert len(clean(look(info))) == FRAMES
    assert clean(look(info, int(info.pts[20]))) == {
        pts: digest for pts, digest in clean(look(info)).items() if pts >= info.pts[20]
    }


def test_hidden_pictures_are_no_missing_frames(tmp_path: Path) -> None:
    # Clearing a VP8 packet's show_frame bit makes of it what an encoder's alternate reference is.
    path = write(tmp_path / "shown.mkv", "libvpx", {"g": "20", "auto-alt-ref": "0", "lag-in-frames": "0"}, 20)
    data, body = bytearray(path.read_bytes()), bytes(packets_of(path)[7])
    data[data.index(body)] &= 0xEF
    (tmp_path / "hidden.mkv").write_bytes(data)
    info = probe(tmp_path / "hidden.mkv")
    assert len(info.pts) == 19
    assert len(clean(look(info))) == 19


def picture(pts: int) -> SimpleNamespace:
    """As much of a decoded frame as is looked at."""
    shape = {"width": 128, "height": 96, "format": SimpleNamespace(name="yuv420p")}
    return SimpleNamespace(pts=pts, is_corrupt=False, **shape)


def account(trust: Trust, info: VideoInfo, sent: list[tuple[int, bool, bool]]) -> None:
    """Send frames by their places in the order shown: (place, is_key, lost_before)."""
    for place, is_key, lost_before in sent:
        trust.sent(int(info.pts[place]), is_key, lost_before=lost_before)


def settled(trust: Trust, info: VideoInfo, places: list[int]) -> list[tuple[int, bool]]:
    """Let frames come out and give (place, damaged) of those that can be judged by then."""
    trust.came([picture(int(info.pts[place])) for place in places])
    return [(info.pts.tolist().index(frame.pts), frame.damaged) for frame in trust.settled()]


def test_damage_reaches_what_is_decoded_later_and_leading_frames(whole: dict[str, Path]) -> None:
    info = probe(whole["h264.mp4"])
    trust = Trust(info)
    # Decoding order I0 P3 B1 B2 | I6 B4 B5 P7; P3 never comes out, and B1 and B2 may be built on it.
    account(trust, info, [(0, True, False), (3, False, False), (1, False, False), (2, False, False)])
    assert settled(trust, info, [0, 1, 2]) == [(0, False)]
    account(trust, info, [(6, True, False), (4, False, False), (5, False, False), (7, False, False)])
    assert settled(trust, info, [4, 5, 6, 7]) == [
        (1, True),
        (2, True),
        (4, True),
        (5, True),
        (6, False),
        (7, False),
    ]


def test_what_was_lost_before_a_key_frame_spoils_its_leading_frames(whole: dict[str, Path]) -> None:
    info = probe(whole["h264.mp4"])
    trust = Trust(info)
    account(
        trust,
        info,
        [(0, True, False), (1, False, False), (5, True, True), (4, False, False), (6, False, False)],
    )
    assert settled(trust, info, [0, 1, 4, 5, 6]) == [
        (0, False),
        (1, False),
        (4, True),
        (5, False),
        (6, False),
    ]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_frames_before_the_first_key_frame(whole: dict[str, Path], codec: str) -> None:
    info = replace(probe(whole["h264.mp4"]), codec=codec)
    trust = Trust(info)
    account(trust, info, [(0, False, False), (3, True, False), (2, False, False), (4, False, False)])
    assert settled(trust, info, [0, 2, 3, 4]) == [(0, True), (2, True), (3, False), (4, False)]
    # HEVC's decoder gives a leading frame at the start only if it needs nothing from before.
    trust = Trust(info)
    account(trust, info, [(3, True, False), (2, False, False), (4, False, False)])
    assert settled(trust, info, [2, 3, 4]) == [(2, codec == "h264"), (3, False), (4, False)]
