from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vshard.base.errors import VideoError
from vshard.clips.colour import hlg_to_scene, nits_to_pq, pq_to_nits, to_rgb, tone_map
from vshard.clips.decode import decode_frames
from vshard.clips.probe import VideoInfo, probe

PATCH_PX = 32
PATCHES = np.array(
    [
        [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 255, 255],
        [0, 0, 0], [16, 16, 16], [128, 128, 128], [240, 240, 240], [128, 64, 200], [40, 200, 90], [200, 120, 60],
    ],
    dtype=np.uint8,
)  # fmt: skip
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def to_planes(signal: np.ndarray, tag: int, *, full: bool, bits: int) -> list[np.ndarray]:
    """Code R'G'B' in [0, 1], (..., 3), as Y, Cb, Cr integers by the formulas of BT.601, BT.709 and BT.2020."""
    red, blue = LUMA[tag]
    luma = signal @ [red, 1 - red - blue, blue]
    differences = [
        (signal[..., 2] - luma) / (2 - 2 * blue),
        (signal[..., 0] - luma) / (2 - 2 * red),
    ]
    most, step = 2**bits - 1, 2 ** (bits - 8)
    if full:
        planes = [luma * most, *(difference * most + 128 * step for difference in differences)]
    else:
        planes = [
            (219 * luma + 16) * step,
            *((224 * difference + 128) * step for difference in differences),
        ]
    return [np.clip(np.round(plane), 0, most) for plane in planes]


def write_planes(
    path: Path,
    colours: np.ndarray,
    *,
    lines: int,
    pixel_format: str,
    matrix: int,
    full: bool = False,
    tags: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
) -> Path:
    """Write two frames of upright bars of these R'G'B' colours in [0, 1], losslessly, tagged as told."""
    bits = 10 if "10" in pixel_format else 8
    planes = [
        plane.repeat(PATCH_PX)[None].repeat(lines, axis=0)
        for plane in to_planes(colours, matrix, full=full, bits=bits)
    ]
    if "420" in pixel_format:
        planes[1:] = [plane[::2, ::2] for plane in planes[1:]]
    with av.open(str(path), "w") as container:
        lossless = (
            {"x265-params": "lossless=1:bframes=0:log-level=none"} if codec == "libx265" else {"qp": "0"}
        )
        stream = container.add_stream(codec, rate=25, options=lossless | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *planes[0].shape, pixel_format
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for index in range(2):
            frame = av.VideoFrame(stream.width, stream.height, pixel_format)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for plane, values in zip(frame.planes, planes, strict=True):
                kind = np.dtype(np.uint8 if bits == 8 else "<u2")
                rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
                rows[:, : values.shape[1]] = values
                plane.update(rows.tobytes())
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bars_of(info: VideoInfo) -> np.ndarray:
    """The middle of each bar of the clip's last frame, (N, 3) uint8."""
    *_, last = decode_frames(info)
    assert not last.damaged
    rgb = to_rgb(info, last.picture)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (info.height, info.width, 3)
    return rgb[info.height // 2, PATCH_PX // 2 :: PATCH_PX]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize(
    ("lines", "matrix", "tagged"),
    [(720, 1, False), (480, 6, False), (480, 1, True), (720, 6, True), (720, 5, True), (480, 9, True)],
)
@pytest.mark.parametrize("full", [False, True])
def test_patches_come_back(
    tmp_path: Path, pixel_format: str, lines: int, matrix: int, tagged: bool, full: bool
) -> None:
    tags = ({"colorspace": matrix} if tagged else {}) | ({"color_range": 2} if full else {})
    path = write_planes(
        tmp_path / "bars.mkv", PATCHES / 255, lines=lines, pixel_format=pixel_format, matrix=matrix,
        full=full, tags=tags,
    )  # fmt: skip
    info = probe(path)
    assert (info.transfer, info.full_range) == ("SDR", full)
    assert np.abs(bars_of(info).astype(int) - PATCHES).max() <= 2


def test_full_range_by_pixel_format(tmp_path: Path) -> None:
    # Motion JPEG says nothing of its range; FFmpeg's yuvj formats do.
    path = write_planes(
        tmp_path / "bars.mkv", PATCHES / 255, lines=480, pixel_format="yuvj444p", matrix=6, full=True,
        codec="mjpeg", tags={"color_range": 2}, options={"q": "1", "qmin": "1", "flags": "+qscale"},
    )  # fmt: skip
    info = probe(path)
    assert info.pixel_format == "yuvj444p"
    assert info.full_range
    assert np.abs(bars_of(info).astype(int) - PATCHES).max() <= 6  # JPEG's own loss


def test_colours_pass_through_deinterlacing(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "fields.mkv", PATCHES / 255, lines=480, pixel_format="yuv444p", matrix=1, full=True,
        tags={"colorspace": 1, "color_range": 2}, options={"x264-params": "tff=1"},
    )  # fmt: skip
    info = probe(path)
    assert info.interlaced
    assert np.abs(bars_of(info).astype(int) - PATCHES).max() <= 2


def test_rgb_video_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rgb.mkv"
    image = PATCHES.repeat(PATCH_PX, axis=0)[None].repeat(64, axis=0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, image.shape[1], "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    assert np.array_equal(bars_of(probe(path)), PATCHES)


def test_colours_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "ycgco.mkv",
        PATCHES / 255,
        lines=64,
        pixel_format="yuv444p",
        matrix=1,
        tags={"colorspace": 8},
    )
    with pytest.raises(VideoError, match="coded as YCgCo"):
        probe(path)


def test_a_small_picture_holds_the_means(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (16, 3)) / 255
    path = write_planes(tmp_path / "bars.mkv", colours, lines=128, pixel_format="yuv444p", matrix=6)
    info = probe(path)
    (first, _) = decode_frames(info)
    small = to_rgb(info, first.picture, size=(8, 4))
    assert small.shape == (4, 8, 3)
    means = 255 * colours.reshape(8, 2, 3).mean(axis=1)
    assert np.abs(small - means).max() <= 2


# HDR. What the formulas must give at points their standards print.


def test_pq_and_hlg_at_known_points() -> None:
    assert pq_to_nits(np.array([0.0, 1.0])) == pytest.approx([0, 10_000])
    # BT.2408 table 1: reference white, 203 cd/m², is at 58 % of PQ and 75 % of HLG; 1000 cd/m² at 75 % of PQ.
    assert nits_to_pq(np.array([203.0, 1000.0])) == pytest.approx([0.5807, 0.7518], abs=1e-4)
    assert 1000 * hlg_to_scene(np.array(0.75)) ** 1.2 == pytest.approx(203, abs=0.5)
    assert hlg_to_scene(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)
    nits = np.geomspace(0.001, 10_000, 50)
    assert pq_to_nits(nits_to_pq(nits)) == pytest.approx(nits, rel=1e-6)


@pytest.mark.parametrize("peak", [100.0, 203.0, 600.0, 1000.0, 4000.0, 10_000.0])
def test_tone_mapping_keeps_darks_and_order_and_ends_at_white(peak: float) -> None:
    nits = np.linspace(0, peak, 5001)
    mapped = tone_map(nits, peak)
    assert (np.diff(mapped) >= -1e-9).all()
    assert mapped[-1] == pytest.approx(min(peak, 203), rel=1e-6)
    dark = nits <= 20
    assert mapped[dark] == pytest.approx(nits[dark], rel=1e-6)
    # Beyond the source's own peak there is nothing brighter.
    assert tone_map(np.array([2 * peak]), peak) == pytest.approx(mapped[-1:])


def write_hdr(path: Path, colours: np.ndarray, transfer: int, **more: str) -> Path:
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": transfer}
    parameters = ":".join(
        ["lossless=1", "bframes=0", "log-level=none", *(f"{key}={value}" for key, value in more.items())]
    )
    return write_planes(
        path, colours, lines=64, pixel_format="yuv420p10le", matrix=9, tags=tags,
        codec="libx265", options={"x265-params": parameters},
    )  # fmt: skip


def expected_sdr(nits: np.ndarray, peak: float) -> np.ndarray:
    """The same by the plain formulas in double precision: (N, 3) light of BT.2020 to 8-bit BT.709 signals."""
    brightest = np.maximum(nits.max(axis=1, keepdims=True), 1e-9)
    mapped = nits * tone_map(brightest, peak) / brightest / 203
    primaries = {
        "2020": ([0.708, 0.292], [0.170, 0.797], [0.131, 0.046]),
        "709": ([0.64, 0.33], [0.30, 0.60], [0.15, 0.06]),
    }
    to_xyz = {}
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    for name, points in primaries.items():
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
        to_xyz[name] = columns * np.linalg.solve(columns, white)
    linear = mapped @ (np.linalg.inv(to_xyz["709"]) @ to_xyz["2020"]).T
    return 255 * np.clip(linear, 0, 1) ** (1 / 2.4)


def test_pq_video_becomes_sdr(tmp_path: Path) -> None:
    gray = np.array([0, 0.01, 0.1, 1, 5, 20, 60, 100, 203, 400, 700, 1000])[:, None].repeat(3, axis=1)
    colour = np.array([[203, 0, 0], [0, 203, 0], [0, 0, 203], [50, 10, 5], [600, 300, 100]], float)
    nits = np.concatenate([gray, colour])
    info = probe(write_hdr(tmp_path / "pq.mkv", nits_to_pq(nits), 16))
    assert (info.transfer, info.matrix, info.peak_nits) == ("PQ", "bt2020nc", 1000)
    bars = bars_of(info).astype(int)
    grays = bars[: len(gray)]
    assert (np.ptp(grays, axis=1) <= 1).all()
    assert (np.diff(grays[:-1, 1]) > 0).all()
    assert grays[0].tolist() == [0, 0, 0]
    # Reference white lies at 230 of 255, leaving the rest to what is brighter; the peak is SDR white.
    assert np.abs(grays[8] - 230).max() <= 1
    assert grays[-1].min() >= 254
    red, green, blue = bars[len(gray) : len(gray) + 3]
    assert (red[1:] <= 10).all() and red[0] > 220
    assert (green[[0, 2]] <= 10).all() and green[1] > 220
    assert (blue[:2] <= 10).all() and blue[2] > 220
    # 10-bit limited range rounds the signal; around the darks a step of it is most of a level.
    assert np.abs(bars - expected_sdr(nits, 1000)).max() <= 2


def test_the_peak_is_read_from_the_file(tmp_path: Path) -> None:
    signal = nits_to_pq(np.array([[203.0] * 3, [4000.0] * 3]))
    screen = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
    info = probe(write_hdr(tmp_path / "screen.mkv", signal, 16, **{"master-display": screen}))
    assert info.peak_nits == 4000
    assert np.abs(bars_of(info).astype(int) - [[210] * 3, [255] * 3]).max() <= 1
    for light, peak in (("1500,400", 1500), ("20000,400", 10_000)):
        path = write_hdr(tmp_path / "light.mkv", signal, 16, **{"master-display": screen, "max-cll": light})
        assert probe(path).peak_nits == peak


def test_untagged_hdr_is_bt2020(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "bars.mkv", nits_to_pq(np.array([[10, 50, 90]])), lines=64, pixel_format="yuv420p10le", matrix=9,
        tags={"color_trc": 16},
    )  # fmt: skip
    assert (probe(path).transfer, probe(path).matrix) == ("PQ", "bt2020nc")


def test_hlg_video_becomes_sdr(tmp_path: Path) -> None:
    signal = np.concatenate(
        [np.linspace(0, 1, 9)[:, None].repeat(3, axis=1), [[0.75] * 3, [0.75, 0, 0], [0.6, 0.4, 0.2]]]
    )
    info = probe(write_hdr(tmp_path / "hlg.mkv", signal, 18))
    assert info.transfer == "HLG"
    scene = hlg_to_scene(signal)
    nits = 1000 * scene * (scene @ [[0.2627], [0.6780], [0.0593]]) ** 0.2
    bars = bars_of(info).astype(int)
    assert np.abs(bars - expected_sdr(nits, 1000)).max() <= 2
    assert (np.ptp(bars[:10], axis=1) <= 1).all()
    assert (np.diff(bars[:9, 1]) > 0).all()
    assert bars[0].tolist() == [0, 0, 0]
    assert np.abs(bars[9] - 230).max() <= 1
    assert bars[10, 0] > 150 and (bars[10, 1:] <= 10).all()


def test_hdr_in_full_range_and_rgb_is_the_same(tmp_path: Path) -> None:
    signal = nits_to_pq(np.array([[0.0] * 3, [203.0] * 3, [300, 100, 20], [5, 60, 200]]))
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16}
    bars = [bars_of(probe(write_hdr(tmp_path / "limited.mkv", signal, 16)))]
    path = write_planes(
        tmp_path / "full.mkv", signal, lines=64, pixel_format="yuv444p10le", matrix=9, full=True,
        codec="libx265", tags=tags | {"color_range": 2},
    )  # fmt: skip
    bars.append(bars_of(probe(path)))
    with av.open(str(tmp_path / "rgb.mkv"), "w") as container:
        stream = container.add_stream(
            "libx265", rate=25, options={"x265-params": "lossless=1:bframes=0:log-level=none"}
        )
        stream.height, stream.width, stream.pix_fmt = 64, len(signal) * PATCH_PX, "gbrp10le"
        stream.codec_context.color_trc = 16
        planes = np.round(signal * 1023).astype("<u2")[:, [1, 2, 0]].T
        frame = av.VideoFrame(stream.width, 64, "gbrp10le")
        frame.color_trc, frame.color_range, frame.colorspace = 16, 2, 0
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((64, plane.line_size // 2), "<u2")
            rows[:, : stream.width] = values.repeat(PATCH_PX)
            plane.update(rows.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(tmp_path / "rgb.mkv")
    assert (info.transfer, info.pixel_format) == ("PQ", "gbrp10le")
    bars.append(bars_of(info))
    for other in bars[1:]:
        assert np.abs(other.astype(int) - bars[0]).max() <= 2
