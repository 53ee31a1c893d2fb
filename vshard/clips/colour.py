"""Decoded frames -> RGB as a BT.709 display expects it.

YCbCr is converted by the tagged matrix and range (FFmpeg's own default treats untagged HD as BT.601: a BT.709 red
becomes (233, 0, 2)), pixels are made square and the picture upright. HDR is brought to SDR by the published formulas:
signal to light by SMPTE ST 2084 (PQ) or ARIB STD-B67 with the OOTF of BT.2100 (HLG), tone mapping by the EETF of
BT.2390 section 5.4, BT.2020 to BT.709 primaries by BT.2087, light to signal by BT.1886 (gamma 2.4), so that SDR white
is the 203 cd/m² of BT.2408. Costs 9 ms a 1080p frame of SDR, 40 ms of HDR (one core).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .probe import PQ_MOST_NITS, VideoInfo

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
# The shares of red and blue in luma (Kr, Kb), for the matrices met with HDR.
_LUMA = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt470bg": (0.299, 0.114),
    "smpte170m": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020nc": (0.2627, 0.0593),
    "bt2020c": (0.2627, 0.0593),
}
SDR_WHITE_NITS = 203.0
HLG_PEAK_NITS = 1000.0
HLG_GAMMA = 1.2
DISPLAY_GAMMA = 2.4
BT2020_LUMA = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_CODES = 65536
# Pixels worked on at a time, so that their floats stay in the processor's cache: 40 ms a 1080p frame, all at once 170.
_STRIP_PX = 1 << 15


def to_rgb(info: VideoInfo, picture: Any, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Convert a decoded frame (av.VideoFrame) of the video.

    Args:
        info: the video.
        picture: the frame.
        size: (width, height) before rotation of a small picture, each pixel the mean of an area, for statistics.

    Returns:
        (H, W, 3) uint8 RGB, BT.709 SDR, square pixels, upright.
    """
    width, height = size or (round(info.coded_width * info.pixel_aspect), info.coded_height)
    convert = _sdr if info.transfer == "SDR" else _hdr
    rgb = convert(info, picture, width, height, size is not None)
    return np.ascontiguousarray(np.rot90(rgb, -info.rotation_degrees // 90))


def _sdr(info: VideoInfo, picture: Any, width: int, height: int, small: bool) -> np.ndarray:
    from av.video.reformatter import ColorRange, Colorspace

    return picture.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=Colorspace(_SWS_MATRIX[info.matrix]),
        src_color_range=ColorRange.JPEG if info.full_range or picture.format.is_rgb else ColorRange.MPEG,
        interpolation=_interpolation(small),
    ).to_ndarray()


def _hdr(info: VideoInfo, picture: Any, width: int, height: int, small: bool) -> np.ndarray:
    from av.video.reformatter import ColorRange

    # swscale's own 16-bit RGB is off by up to 3 levels of 255; the samples it widens or scales are exact. Saying
    # "limited" on both sides keeps it from stretching them.
    planar = picture.reformat(
        width=width,
        height=height,
        format="gbrp16le" if picture.format.is_rgb else "yuv444p16le",
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=_interpolation(small),
    )
    planes = [
        np.frombuffer(plane, np.uint16).reshape(height, -1)[:, :width].reshape(-1) for plane in planar.planes
    ]
    matrix, offset = _to_codes(info, picture.format)
    scene = _hlg_to_light() if info.transfer == "HLG" else _pq_to_light()
    peak = HLG_PEAK_NITS if info.transfer == "HLG" else info.peak_nits
    gain, encode = _tone_gain(peak), _light_to_sdr()
    rgb = np.empty((height * width, 3), np.uint8)
    for start in range(0, len(rgb), _STRIP_PX):
        strip = slice(start, start + _STRIP_PX)
        samples = np.stack([plane[strip] for plane in planes]).astype(np.float32)
        codes = np.clip(matrix @ samples + offset, 0, _CODES - 1).astype(np.uint16)
        light = scene[codes]
        if info.transfer == "HLG":
            light *= (BT2020_LUMA @ light) ** np.float32(HLG_GAMMA - 1)
            light *= np.float32(HLG_PEAK_NITS)
        brightest = np.sqrt(np.minimum(light.max(axis=0) / np.float32(peak), 1))
        light *= gain[_index(brightest)]
        shown = np.sqrt(np.clip(BT2020_TO_BT709 @ light, 0, 1))
        rgb[strip] = encode[_index(shown)].T
    return rgb.reshape(height, width, 3)


def _interpolation(small: bool) -> Any:
    from av.video.reformatter import Interpolation

    if small:
        return Interpolation.AREA | Interpolation.ACCURATE_RND
    # Without the last two, 8-bit video comes out up to 3 levels off and one too dark, each chroma sample repeated
    # (0.2 in place of 2.6 ms at 720p). Chroma is interpolated linearly: bicubic takes 4.2 ms.
    return Interpolation.BICUBLIN | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def _to_codes(info: VideoInfo, picture_format: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give (3, 3) and (3, 1) float32 that take 16-bit samples (Y, Cb, Cr or G, B, R) to R'G'B' codes of 65535.

    BT.2100 table 9: limited range is 219 and 224 steps of 8 bits, shifted up.
    """
    depth = picture_format.components[0].bits
    top = float(((1 << depth) - 1) << (16 - depth))
    if picture_format.is_rgb:
        return np.float32((_CODES - 1) / top) * np.array(
            [[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32
        ), np.zeros((3, 1), np.float32)
    red, blue = _LUMA[info.matrix]
    green = 1 - red - blue
    to_signal = np.array(
        [
            [1, 0, 2 - 2 * red],
            [1, -(2 - 2 * blue) * blue / green, -(2 - 2 * red) * red / green],
            [1, 2 - 2 * blue, 0],
        ]
    )
    middle = 128 << 8
    if info.full_range:
        black, spans = np.array([0, middle, middle]), np.array([top, top, top])
    else:
        black, spans = np.array([16 << 8, middle, middle]), np.array([219 << 8, 224 << 8, 224 << 8])
    matrix = (_CODES - 1) * to_signal / spans
    # Half a code more, so that cutting off the fraction rounds.
    return matrix.astype(np.float32), (0.5 - matrix @ black).astype(np.float32)[:, None]


def _index(share: np.ndarray) -> np.ndarray:
    """Turn numbers in [0, 1] into places of a table of 65536."""
    return (share * np.float32(_CODES - 1) + np.float32(0.5)).astype(np.uint16)


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signal in [0, 1] to light in cd/m²."""
    root = np.power(signal, 32 / 2523)
    return PQ_MOST_NITS * np.power(
        np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root), 8192 / 1305
    )


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: light in cd/m² to signal in [0, 1]."""
    root = np.power(nits / PQ_MOST_NITS, 1305 / 8192)
    return np.power((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root), 2523 / 32)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 (BT.2100 table 5): signal in [0, 1] to scene light in [0, 1]."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def tone_map(nits: np.ndarray, peak: float) -> np.ndarray:
    """BT.2390 section 5.4 (EETF, black at 0): light up to ``peak`` into light up to SDR white, in cd/m².

    Light well under the knee stays as it is (under 82 cd/m² for a peak of 1000).
    """
    source_peak = nits_to_pq(np.array(peak))
    level = nits_to_pq(np.minimum(nits, peak)) / source_peak
    highest = min(float(nits_to_pq(np.array(SDR_WHITE_NITS)) / source_peak), 1.0)
    knee = 1.5 * highest - 0.5
    t = np.maximum(level - knee, 0) / max(1 - knee, 1e-9)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * highest
    )
    return pq_to_nits(np.where(level < knee, level, spline) * source_peak)


@cache
def _pq_to_light() -> np.ndarray:
    return pq_to_nits(np.linspace(0, 1, _CODES)).astype(np.float32)


@cache
def _hlg_to_light() -> np.ndarray:
    return hlg_to_scene(np.linspace(0, 1, _CODES)).astype(np.float32)


@cache
def _tone_gain(peak: float) -> np.ndarray:
    """(65536,) float32: what light is multiplied by so that SDR white is 1, by the root of its share of ``peak``."""
    nits = np.linspace(0, 1, _CODES) ** 2 * peak
    nits[0] = nits[1]
    return (tone_map(nits, peak) / nits / SDR_WHITE_NITS).astype(np.float32)


@cache
def _light_to_sdr() -> np.ndarray:
    """(65536,) uint8: the signal of BT.1886 by the root of the light (the root keeps the darks apart)."""
    return np.round(255 * np.linspace(0, 1, _CODES) ** (2 / DISPLAY_GAMMA)).astype(np.uint8)
