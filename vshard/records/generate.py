"""Frames -> records: the one place that joins clips, depth and masks.

For every sequence one recipe is drawn; its frames are turned and resized, their depth is estimated, and two
records come of it: the frames as they are, and mirrored (facts of the original, section 3). Nothing is written
here: the run that keeps them is :mod:`vshard.shards.run`.

Reading, depth and masks are three stages that overlap, each at most one sequence ahead of the next
(:mod:`vshard.base.ahead`); frames are bytes between them. Memory: about 100 MB for each of at most six
sequences of 16 frames at 1080p on their way, and what the depth model takes.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import numpy as np
import torch

from .. import __version__
from ..base.ahead import map_ahead
from ..base.report import Report
from ..base.seeds import generator
from ..clips.plan import Sequence
from ..clips.probe import VideoInfo
from ..clips.read import Clip, read_clips
from ..depth.edges import dilate_edges, normalize
from ..depth.models import DepthModel, open_depth_model
from ..masks.crops import (
    MIN_MASK_AREA_PX,
    Crop,
    best_crop,
    draw_places,
    resize_short_side,
    rotate_and_crop,
)
from ..masks.mappers import map_depth
from ..masks.methods import BackwardMask, open_backward_mask
from ..masks.recipe import Recipe, draw_recipe
from ..masks.warp import CLOSING_REACH_PX, close_mask, nonwarp_mask
from . import names
from .plan import GenerateOptions
from .png import encode_png
from .record import SCHEMA, Record, metadata_bytes

FORWARD_METHOD = "forward"
REJECT_DAMAGED = "frames missing"
REJECT_SMALL_MASK = "mask too small"
# Sequences that wait finished before each stage.
AHEAD = 1

Rows = tuple[int, int]


@dataclass(frozen=True)
class Reject:
    """A record that was not made, and why; ``key`` of a whole sequence is its first record's."""

    key: str
    reason: str
    found: str


@dataclass(frozen=True)
class Made:
    """What came of one sequence."""

    sequence: int
    records: tuple[Record, ...]
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class Estimators:
    """The depth model and the backward mask of a run, and where they work."""

    depth: DepthModel
    backward: BackwardMask
    device: torch.device

    def names(self) -> dict[str, str]:
        """Tell their weights from others: what a run's state keeps, so that it goes on with the same."""
        return {"depth weights": self.depth.weights, "backward mask": self.backward.name}


@dataclass(frozen=True, repr=False)
class Observed:
    """A clip as its recipe shows it.

    ``frames``: (T, H, W, 3) uint8, turned and resized; empty where frames of the clip are missing. ``depth``:
    (T, 1, h, w) float32 in [0, 1], 1 = nearest, edges dilated, without the recipe's mapper.
    """

    clip: Clip
    recipe: Recipe
    frames: np.ndarray
    depth: torch.Tensor

    def __repr__(self) -> str:
        return f"Observed({self.clip!r}, frames {self.frames.shape}, depth {tuple(self.depth.shape)})"


def open_estimators(
    options: GenerateOptions, device: torch.device, begun_with: dict[str, str], report: Report
) -> Estimators:
    """Open what ``options`` ask for; ``begun_with``: the names of an unfinished run that is to go on, or nothing.

    Raises:
        DepthModelError: the depth model cannot be had.
        MaskModelError: the mask network is asked for, or was used before, and cannot be had.
    """
    return Estimators(
        open_depth_model(options.depth_options, device, torch.get_num_threads(), report.warn),
        open_backward_mask(
            options.backward_mask, options.mask_weights, device, begun_with.get("backward mask"), report.warn
        ),
        device,
    )


def generate_records(
    info: VideoInfo,
    sequences: list[Sequence],
    options: GenerateOptions,
    estimators: Estimators,
    *,
    ahead: int = AHEAD,
) -> Generator[Made, None, None]:
    """Make the records of ``sequences`` (ascending), one :class:`Made` a sequence, in order.

    A record's bytes depend on the video, the options, the estimators and its own key alone. ``ahead`` 0 makes one
    stage wait for the other.

    Raises:
        DepthModelError: the depth model fails.
        VideoError: the video can no longer be read.
    """
    sound = [sequence for sequence in sequences if sequence.fault is None]
    # Torch rounds differently with other numbers of threads: each frame gets one, and the frames run side by side.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            clips = map_ahead(_as_it_is, read_clips(info, sound), ahead)
            observed = map_ahead(partial(observe, info, options, estimators, pool), clips, ahead)
            made = map_ahead(partial(compose, info, options, estimators, pool), observed, ahead)
            try:
                for sequence in sequences:
                    yield next(made) if sequence.fault is None else _at_fault(sequence, options)
            finally:
                # Frames that wait for a turn need none when the run is stopped: stages end within a frame's work.
                pool.shutdown(wait=False, cancel_futures=True)
                made.close()
    finally:
        torch.set_num_threads(threads)


def observe(
    info: VideoInfo, options: GenerateOptions, estimators: Estimators, pool: ThreadPoolExecutor, clip: Clip
) -> Observed:
    """Draw the recipe of a clip, turn and resize its frames, and estimate their depth."""
    recipe = draw_recipe(
        generator(options.seed, "recipe", options.stem, clip.sequence.number),
        width=info.width,
        divergence_level=options.divergence_level,
        metric_depth=estimators.depth.metric,
        resolution=options.resolution,
    )
    if clip.missing:
        return Observed(clip, recipe, clip.rgb[:0], torch.empty(0, 1, 1, 1))
    frames = np.stack(list(pool.map(partial(_as_drawn, recipe), clip.rgb)))
    depth = estimators.depth.estimate(torch.from_numpy(frames).permute(0, 3, 1, 2))
    # Frame by frame, a step of the dilation takes 2.5 ms on one thread; sixteen at once leave the cache and take 184.
    wider = pool.map(lambda frame: normalize(dilate_edges(frame, recipe.edge_dilation)), depth.split(1))
    return Observed(clip, recipe, frames, torch.cat(list(wider)).to(estimators.device))


def compose(
    info: VideoInfo,
    options: GenerateOptions,
    estimators: Estimators,
    pool: ThreadPoolExecutor,
    seen: Observed,
) -> Made:
    """Make the masks of both views of a clip, choose the crops, and code the records worth keeping."""
    clip, recipe = seen.clip, seen.recipe
    number = clip.sequence.number
    if clip.missing:
        seconds = float(clip.missing[0] * info.time_base)
        found = f"{len(clip.missing)} of {options.seq}, the first at {seconds:.2f} s"
        return _nothing(number, options, REJECT_DAMAGED, found)
    height, width = seen.frames.shape[1:3]
    records: list[Record] = []
    rejects: list[Reject] = []
    for view in names.VIEWS:
        mirrored = view == "forward"
        keys = [
            names.record_key(
                options.stem, sequence=number, view=view, sample=n, num_samples=options.num_samples
            )
            for n in range(options.num_samples)
        ]
        places = [
            draw_places((height, width), options.size, generator(options.seed, "crop", key)) for key in keys
        ]
        # Rows that no crop can take are not worked on.
        top = min(row for drawn in places for row, _ in drawn)
        bottom = max(row for drawn in places for row, _ in drawn) + options.size
        size, rows = (height, width), (top, bottom)
        if mirrored:
            make = partial(_forward_mask, recipe, size, rows)
        else:
            make = partial(_backward_mask, estimators.backward, recipe, size, rows)
        mask = torch.cat(list(pool.map(make, seen.depth.split(1))))
        for key, drawn, sample in zip(keys, places, range(options.num_samples), strict=True):
            crop = best_crop(mask, [(row - top, column) for row, column in drawn], options.size)
            if crop.mask_area_px <= MIN_MASK_AREA_PX * options.seq:
                found = (
                    f"{crop.mask_area_px / options.seq:.0f} px a frame, more than {MIN_MASK_AREA_PX} wanted"
                )
                rejects.append(Reject(key, REJECT_SMALL_MASK, found))
                continue
            masks = _mask_of(mask, crop, options.size)
            crop = crop._replace(row=crop.row + top)
            colour = _colour_of(seen.frames, crop, options.size, mirrored=mirrored)
            metadata = _metadata(clip, info, options, estimators, recipe)
            metadata |= {
                "key": key,
                "view": view,
                "sample": sample,
                "crop": {"top": crop.row, "left": crop.column, "size": options.size, "mirrored": mirrored},
                "mask": {
                    "method": FORWARD_METHOD if mirrored else estimators.backward.name,
                    "area_px": [int(np.count_nonzero(frame)) for frame in masks],
                },
            }
            pngs = list(pool.map(encode_png, [*colour, *masks]))
            records.append(
                Record(key, metadata_bytes(metadata), tuple(pngs[: options.seq]), tuple(pngs[options.seq :]))
            )
    return Made(number, tuple(records), tuple(rejects))


def _as_it_is(clip: Clip) -> Clip:
    return clip


def _at_fault(sequence: Sequence, options: GenerateOptions) -> Made:
    assert sequence.fault is not None
    return _nothing(sequence.number, options, *sequence.fault)


def _nothing(sequence: int, options: GenerateOptions, reason: str, found: str) -> Made:
    key = names.record_key(
        options.stem, sequence=sequence, view=names.VIEWS[0], sample=0, num_samples=options.num_samples
    )
    return Made(sequence, (), (Reject(key, reason, found),))


def _as_drawn(recipe: Recipe, rgb: np.ndarray) -> np.ndarray:
    """Turn and resize one frame (H, W, 3) uint8 by the recipe: (H', W', 3) uint8."""
    frame = torch.from_numpy(rgb).permute(2, 0, 1)[None].to(torch.float32).div_(255)
    if recipe.rotation_degrees is not None:
        frame = rotate_and_crop(frame, recipe.rotation_degrees)
    frame = resize_short_side(frame, recipe.short_side, recipe.resize_mode).clamp_(0, 1)
    return np.ascontiguousarray(_quantize(frame)[0].transpose(1, 2, 0))


def _backward_mask(
    backward: BackwardMask, recipe: Recipe, size: tuple[int, int], rows: Rows, depth: torch.Tensor
) -> torch.Tensor:
    """Give rows [start, stop) of the mask of one frame as filmed: (1, 1, rows, W)."""
    return backward.make(depth, size, recipe)[..., rows[0] : rows[1], :]


def _forward_mask(recipe: Recipe, size: tuple[int, int], rows: Rows, depth: torch.Tensor) -> torch.Tensor:
    """Give rows [start, stop) of the closed forward mask of one mirrored frame: (1, 1, rows, W)."""
    start, stop = max(rows[0] - CLOSING_REACH_PX, 0), min(rows[1] + CLOSING_REACH_PX, size[0])
    mask = nonwarp_mask(
        map_depth(depth.flip(-1), recipe.mapper),
        size,
        divergence=recipe.divergence,
        convergence=recipe.convergence,
        view=recipe.view,
        rows=(start, stop),
    )
    return close_mask(mask)[..., rows[0] - start : rows[1] - start, :]


def _mask_of(mask: torch.Tensor, crop: Crop, size: int) -> np.ndarray:
    """Cut the crop out of masks (T, 1, H, W) in [0, 1]: (T, size, size) uint8."""
    cut = mask[:, :, crop.row : crop.row + size, crop.column : crop.column + size]
    return _quantize(cut)[:, 0]


def _colour_of(frames: np.ndarray, crop: Crop, size: int, *, mirrored: bool) -> np.ndarray:
    """Cut the crop out of (T, H, W, 3); ``mirrored``: the crop's place is meant on the mirrored frames."""
    left = frames.shape[2] - crop.column - size if mirrored else crop.column
    cut = frames[:, crop.row : crop.row + size, left : left + size]
    return cut[:, :, ::-1] if mirrored else cut


def _quantize(images: torch.Tensor) -> np.ndarray:
    """Round [0, 1] to 0..255 uint8, halves to even."""
    return (images * 255).round().to(torch.uint8).cpu().numpy()


def _metadata(
    clip: Clip, info: VideoInfo, options: GenerateOptions, estimators: Estimators, recipe: Recipe
) -> dict[str, Any]:
    """Give what all records of a sequence share: enough, with the video, to make them again."""
    depth = estimators.depth
    return {
        "schema": SCHEMA,
        "source": {
            "name": info.path.name,
            "size_bytes": info.size_bytes,
            "fingerprint": info.fingerprint,
            "width": info.width,
            "height": info.height,
            "fps": str(info.fps),
            "codec": info.codec,
            "pixel_format": info.pixel_format,
            "matrix": info.matrix,
            "transfer": info.transfer,
            "full_range": info.full_range,
            "interlaced": info.interlaced,
            "rotation_degrees": info.rotation_degrees,
            "pixel_aspect": str(info.pixel_aspect),
        },
        "sequence": clip.sequence.number,
        "frames": options.seq,
        "height": options.size,
        "width": options.size,
        "seconds": list(clip.seconds),
        "pts": list(clip.sequence.pts),
        "recipe": recipe.to_dict(),
        "depth": {"model": depth.name, "about": depth.about, "weights": depth.weights},
        "options": options.recipe_options(),
        "made_by": {
            "vshard": __version__,
            "av": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
            "torch": torch.__version__,
        },
    }
