"""Render a test clip whose depth is known: a painted landscape of flat layers seen by a moving camera.

What comes in is a ``RenderOptions``; what goes out are frames with their true inverse depth, or a video
file. Ground and upright cards (trees, houses, rocks) are painted once as textures and carried into each
frame by the homography of their plane (Hartley and Zisserman, Multiple View Geometry, 13.1), far to near,
so that picture and depth come from the same few numbers. The world: x right, y down, z forward, in metres;
the camera starts at the origin, ``EYE_METRES`` above the ground.

Cost at 1920×1080 on two cores: 4 s to paint a scene, then about 50 ms a frame, 75 ms with coding
(``benchmarks/depth.py --size 1920x1080``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..base.errors import OptionError, OutputError
from ..base.files import finish_file, make_folder, part_of, writing
from ..base.seeds import generator
from .paint import (
    noise_field,
    paint_balloon,
    paint_bush,
    paint_crate,
    paint_hill,
    paint_house,
    paint_rock,
    paint_tree,
    tint,
    to_bytes,
)

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Painter = Callable[[np.random.Generator, int, int], Floats]

# motion: the camera's speed along x and z, metres a second
MOTIONS = {"pan": (1.1, 0.0), "walk": (0.0, 1.3), "objects": (0.1, 0.0)}
LARGEST_SIDE = 4096
EYE_METRES = 1.6
FOCAL_BY_WIDTH = 0.866  # 60 degrees from side to side
FAR_METRES = 1000.0  # sky and mountains; where the ground ends
NEAR_METRES = 1.2  # cards nearer than this are beside or behind the camera
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
SKY_BY_VIEW = 1.25  # the sky is painted wider than the view, for the camera turns
GROUND_TILE_METRES = 16.0
GROUND_NEAR_METRES = 4.0  # where the ground meets the lower edge of a 16:9 picture
CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from a texel's number to its middle
HAZE = (0.80, 0.86, 0.91)
HAZE_METRES = 260.0


@dataclass(frozen=True)
class RenderOptions:
    """What to render.

    ``width``, ``height``: pixels, even, from 64 up. ``fps``: frames a second. ``frames``: how many.
    ``seed``: which scene. ``motion``: "pan" (the camera goes sideways), "walk" (it goes forward) or
    "objects" (it hardly moves, some things move themselves).

    Raises:
        OptionError: a value is out of its range.
    """

    width: int = 1920
    height: int = 1080
    fps: int = 30
    frames: int = 120
    seed: int = 0
    motion: str = "pan"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("width", "height"):
            if not 64 <= getattr(self, name) <= LARGEST_SIDE or getattr(self, name) % 2:
                found = getattr(self, name)
                raise OptionError(f"{name} is {found}: choose an even number from 64 to {LARGEST_SIDE}")
        for name in ("fps", "frames"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}: choose a number from 1 up")
        if self.motion not in MOTIONS:
            raise OptionError(f"motion is {self.motion!r}: choose one of {', '.join(MOTIONS)}")


@dataclass(frozen=True)
class Card:
    """An upright flat thing that faces the camera: what is painted on it and where its foot stands."""

    levels: tuple[Image, ...]  # premultiplied RGBA, each half the size of the one before
    tall: float  # metres, as all below
    wide: float
    x: float  # of its middle
    z: float
    lift: float  # from the ground up to its foot
    sway: float  # how far it moves to either side of x


def camera_pose(options: RenderOptions, frame: int) -> tuple[Matrix, Matrix]:
    """Give rotation (3, 3) float64, world to camera, and place (3,) float64 in metres, at ``frame``."""
    seconds = frame / options.fps
    speed_x, speed_z = MOTIONS[options.motion]
    turn = math.sin(2 * math.pi * seconds / 3.7)
    bob = math.sin(2 * math.pi * seconds / 0.9) * (speed_z > 0)
    angles = math.radians(0.15) * bob, math.radians(1.2) * turn, math.radians(0.35) * turn
    return np.asarray(cv2.Rodrigues(np.array(angles))[0], np.float64), np.array(
        [speed_x * seconds, 0.015 * bob, speed_z * seconds]
    )


def render_frames(options: RenderOptions) -> Iterator[tuple[Image, Floats]]:
    """Give each frame with its depth.

    Yields: ``(H, W, 3) uint8`` RGB, and ``(H, W) float32`` true inverse depth in 1/metres, larger = nearer,
    never under ``1 / FAR_METRES``. The same options give the same arrays.
    """
    sky = _paint_sky(generator(options.seed, "render", "sky"), options)
    ground = _paint_ground(generator(options.seed, "render", "ground"), options)
    cards = _plant(options)
    for frame in range(options.frames):
        yield _render(options, frame, sky, ground, cards)


def write_clip(
    path: Path, options: RenderOptions, progress: Callable[[int, int], None] | None = None
) -> None:
    """Render a clip into a video file: H.264, yuv420p, BT.709 in limited range; its suffix names the container.

    The file appears under its name only when it is whole. ``progress`` is called with (frames done, frames in all)
    after each frame.

    Raises:
        OutputError: no such container, or the file cannot be written.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    container_format = CONTAINERS.get(path.suffix.lower())
    if container_format is None:
        raise OutputError(f"cannot write {path}: a clip's name must end in one of {', '.join(CONTAINERS)}")
    make_folder(path.parent)
    part = part_of(path)
    try:
        with writing(path), av.open(str(part), "w", format=container_format) as container:
            stream: Any = container.add_stream("libx264", rate=options.fps)
            stream.width, stream.height, stream.pix_fmt = options.width, options.height, "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast"}
            context = stream.codec_context
            context.color_range, context.colorspace = int(ColorRange.MPEG), int(Colorspace.ITU709)
            context.color_primaries = context.color_trc = 1  # BT.709: ITU-T H.273, tables 2 and 3
            for index, (picture, _) in enumerate(render_frames(options)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = index, Fraction(1, options.fps)
                container.mux(stream.encode(frame))
                if progress is not None:
                    progress(index + 1, options.frames)
            container.mux(stream.encode(None))
        finish_file(path)
    finally:
        part.unlink(missing_ok=True)


def _render(
    options: RenderOptions, frame: int, sky: Image, ground: list[Image], cards: list[Card]
) -> tuple[Image, Floats]:
    width, height = options.width, options.height
    focal = FOCAL_BY_WIDTH * width
    lens = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    rotation, place = camera_pose(options, frame)
    # rays @ (x, y, 1) = direction in the world of the ray through pixel (x, y)
    rays = rotation.T @ np.linalg.inv(lens)

    sky_lens = lens.copy()
    sky_lens[:2, 2] = sky.shape[1] / 2, sky.shape[0] / 2
    picture = _warp(sky, lens @ rotation @ np.linalg.inv(sky_lens), (0, 0, width, height))
    inverse_depth = np.full((height, width), 1 / FAR_METRES, np.float32)

    plane = rays[1] / (EYE_METRES - place[1])  # inverse depth of the ground at (x, y, 1); Z = 1 along the ray
    top = max(0, math.floor(min(_row_where(plane, x, 1 / FAR_METRES) for x in (0, width))))
    depth = _plane_map(plane, (0, top, width, height))
    is_ground = depth > 1 / FAR_METRES
    inverse_depth[top:][is_ground] = depth[is_ground]
    lower = np.empty((height - top, width, 3), np.uint8)
    stop = height
    for level, texture in enumerate(ground):
        step_x, step_z = (GROUND_TILE_METRES / texture.shape[axis] for axis in (1, 0))
        start = max(top, math.floor(_row_where(plane, width / 2, 0.5 ** (level + 1) / GROUND_NEAR_METRES)))
        start = top if level == len(ground) - 1 else start
        origin = np.floor(place / GROUND_TILE_METRES) * GROUND_TILE_METRES - place
        texel = np.array([[step_x, 0, origin[0]], [0, 0, EYE_METRES - place[1]], [0, step_z, origin[2]]])
        if start < stop:
            box = (0, start, width, stop)
            lower[start - top : stop - top] = _warp(texture, lens @ rotation @ texel @ CENTRE, box, True)
            stop = start
    cv2.copyTo(lower, is_ground.astype(np.uint8), picture[top:])

    moment = 2 * math.pi * frame / options.fps / 5.0
    for card in cards:
        distance = card.z - place[2]
        if distance < NEAR_METRES:
            continue
        texels_a_pixel = distance / focal * card.levels[0].shape[0] / card.tall
        level = min(max(0, math.floor(math.log2(texels_a_pixel))), len(card.levels) - 1)
        rows, columns = card.levels[level].shape[:2]
        left = card.x - card.wide / 2 + card.sway * math.sin(moment + card.x) - place[0]
        roof = EYE_METRES - card.lift - card.tall - place[1]
        texel = np.array([[card.wide / columns, 0, left], [0, card.tall / rows, roof], [0, 0, distance]])
        homography = lens @ rotation @ texel @ CENTRE
        corners = homography @ [[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]]
        (x0, y0), (x1, y1) = (corners[:2] / corners[2]).min(1), (corners[:2] / corners[2]).max(1)
        box = (
            *(max(0, math.floor(v)) for v in (x0, y0)),
            min(width, math.ceil(x1)),
            min(height, math.ceil(y1)),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        inside = slice(box[1], box[3]), slice(box[0], box[2])
        warped = _warp(card.levels[level], homography, box)
        alpha = warped[..., 3]
        clear = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB)
        behind = cv2.multiply(picture[inside], clear, scale=1 / 255)
        picture[inside] = cv2.add(behind, cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB))
        cv2.copyTo(_plane_map(rays[2] / distance, box), alpha >> 7, inverse_depth[inside])
    return picture, inverse_depth


def _row_where(plane: Matrix, x: float, value: float) -> float:
    return float((value - plane[2] - plane[0] * x) / plane[1])


def _plane_map(plane: Matrix, box: tuple[int, int, int, int]) -> Floats:
    """Values (h, w) float32 of plane · (x, y, 1) in the box (x0, y0, x1, y1)."""
    x, y = plane[0] * np.arange(box[0], box[2]), plane[1] * np.arange(box[1], box[3]) + plane[2]
    return np.add.outer(y.astype(np.float32), x.astype(np.float32))


def _warp(texture: Image, homography: Matrix, box: tuple[int, int, int, int], wrap: bool = False) -> Image:
    shift = np.array([[1, 0, -box[0]], [0, 1, -box[1]], [0, 0, 1]])
    border = cv2.BORDER_WRAP if wrap else cv2.BORDER_CONSTANT
    size = box[2] - box[0], box[3] - box[1]
    return np.asarray(cv2.warpPerspective(texture, shift @ homography, size, borderMode=border), np.uint8)


def _plant(options: RenderOptions) -> list[Card]:
    """Paint the cards and choose their places along the camera's way; far ones first."""
    focal = FOCAL_BY_WIDTH * options.width
    seconds = options.frames / options.fps
    way_x, way_z = (speed * seconds for speed in MOTIONS[options.motion])
    cards = []
    for row, (paint, tall, wide, kinds, near, far, gap, lift, sway) in enumerate(PLANTING):
        if sway and options.motion != "objects":
            continue
        rng, place_rng = generator(options.seed, "paint", row), generator(options.seed, "place", row)
        metres_per_px = max(near / focal, tall / (0.75 * options.width))
        rows, columns = (round(metres / metres_per_px) for metres in (tall, wide))
        haze = 1 - math.exp(-(near + far) / 2 / HAZE_METRES)
        sprites = [_levels(paint(rng, rows, columns), haze) for _ in range(kinds)]
        reach = 0.62 * far  # half the width in view at the far end
        if way_z and near < 30:  # two rows along the path
            places = [(side, z) for z in np.arange(near, far + way_z, gap) for side in (-1, 1)]
        else:
            places = [(0, x) for x in np.arange(-reach, reach + way_x, gap)]
        for number, (side, along) in enumerate(places):
            jitter, depth, size = place_rng.random(3)
            along += gap * 0.8 * (jitter - 0.5)
            if side:
                x, z = side * (0.9 + wide / 2 + depth * 0.5 * near), along
            else:
                x, z = along, near + (far - near) * depth + way_z
            size = 0.8 + 0.4 * size
            levels = sprites[number % kinds]
            cards.append(Card(levels, tall * size, wide * size, x, z, lift, sway))
    return sorted(cards, key=lambda card: -card.z)


def _levels(painted: Floats, haze: float) -> tuple[Image, ...]:
    hazy = painted[..., :3] * np.float32(1 - haze) + np.float32(haze) * np.array(HAZE, np.float32)
    levels = [to_bytes(np.dstack([hazy * painted[..., 3:], painted[..., 3]]))]
    while min(levels[-1].shape[:2]) > 8:
        rows, columns = levels[-1].shape[:2]
        half = cv2.resize(levels[-1], (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))
    return tuple(levels)


def _paint_sky(rng: np.random.Generator, options: RenderOptions) -> Image:
    """Sky, clouds and mountains (rows, columns, 3) uint8, the horizon in the middle row."""
    rows, columns = round(options.height * SKY_BY_VIEW), round(options.width * SKY_BY_VIEW)
    height = np.linspace(1, -1, rows, dtype=np.float32)[:, None]
    sky = tint((1 - height).clip(0, 1) * np.ones((1, columns), np.float32), (0.25, 0.5, 0.82), HAZE)
    cell = 2 ** round(math.log2(columns / 5))
    wide = cv2.resize(noise_field(rng, rows, columns // 2, cell // 2), (columns, rows))
    cloud = (((wide - 0.5) * 3).clip(0, 1) * (height * 4).clip(0, 1) * 0.9)[..., None]
    sky = sky * (1 - cloud) + cloud * tint(wide, (0.72, 0.75, 0.8), (1, 1, 0.98))
    for tall, blue in ((0.34, 0.62), (0.2, 0.4)):
        ridge = noise_field(rng, cell, columns, cell // 2)[0] * tall + 0.02
        rock = noise_field(rng, rows, columns, 64, 0.8)
        mountain = tint(rock, (0.3, 0.38, 0.5), (0.6, 0.64, 0.66)) * (1 - blue) + blue * np.array(
            HAZE, np.float32
        )
        alpha = ((ridge - height) * rows / 4).clip(0, 1)[..., None]
        sky = sky * (1 - alpha) + mountain * alpha
    return to_bytes(sky)


def _paint_ground(rng: np.random.Generator, options: RenderOptions) -> list[Image]:
    """Grass and earth (rows, columns, 3) uint8 that repeat without a seam, for distances that double.

    Columns go along x, rows along z. From one to the next columns go to a half and rows to a quarter, as the
    ground shrinks in a picture with the distance and its square, so that none is seen much smaller than it is.
    """
    columns = (
        2 ** round(math.log2(FOCAL_BY_WIDTH * options.width / GROUND_NEAR_METRES * GROUND_TILE_METRES)) // 2
    )
    rows = columns // 2
    patch = (noise_field(rng, rows, columns, rows // 4) * 2.4 - 0.9).clip(0, 1)
    fine, other = noise_field(rng, rows, columns, 32, 0.85), noise_field(rng, rows, columns, 16, 0.9)
    grass = tint(fine, (0.16, 0.28, 0.1), (0.6, 0.72, 0.32))
    earth = tint(other, (0.42, 0.32, 0.22), (0.86, 0.74, 0.56))
    tile = grass + patch[..., None] * (earth - grass)
    levels = []
    for level in range(5):
        haze = 1 - math.exp(-GROUND_NEAR_METRES * 1.5 * 2**level / HAZE_METRES)
        small = cv2.resize(tile, (columns >> level, max(2, rows >> 2 * level)), interpolation=cv2.INTER_AREA)
        levels.append(to_bytes(small * np.float32(1 - haze) + np.float32(haze) * np.array(HAZE, np.float32)))
    return levels


# painter; its height and width in metres; how many kinds of it; from where to where along z, metres; metres
# between neighbours; metres its foot is lifted; metres it sways (only where things move themselves)
PLANTING: tuple[tuple[Painter, float, float, int, float, float, float, float, float], ...] = (
    (paint_hill, 20, 110, 3, 150, 230, 40, 0, 0),
    (paint_house, 8.5, 9, 4, 34, 60, 17, 0, 0),
    (paint_tree, 8, 6, 3, 16, 48, 6, 0, 0),
    (paint_tree, 5.5, 4.2, 3, 9, 15, 6.5, 0, 0),
    (paint_bush, 1.1, 1.9, 4, 6.5, 14, 2.6, 0, 0),
    (paint_rock, 0.6, 1, 3, 5, 9, 3.2, 0, 0),
    (paint_crate, 0.9, 0.9, 2, 4.2, 6.5, 4.5, 0, 0),
    (paint_balloon, 2.2, 1.8, 3, 9, 14, 6, 1.2, 1.5),
    (paint_crate, 1.4, 1.8, 2, 5.5, 7, 4, 0, 1),
)
