"""Frames -> records: the one place that joins clips, depth and masks.

For every sequence one recipe is drawn; its frames are turned and resized, their depth is estimated, and two
records come of it: the frames as they are, and mirrored (facts of the original, section 3). Nothing is written
here: the run that keeps them is :mod:`vshard.shards.run`. Memory: about 0.9 GB at 1080p for 16 frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch

from .. import __version__
from ..base.devices import choose_device
from ..base.seeds import generator
from ..clips.decode import Clip, read_clips
from ..clips.plan import Sequence
from ..clips.probe import VideoInfo
from ..depth.edges import dilate_edges, normalize
from ..depth.models import DepthModel, open_depth_model
from ..masks.crops import MIN_MASK_AREA_PX, Crop, best_crop, resize_short_side, rotate_and_crop
from ..masks.mappers import map_depth
from ..masks.recipe import Recipe, draw_recipe
from ..masks.warp import close_mask, nonwarp_mask
from . import names
from .plan import GenerateOptions
from .png import encode_png
from .record import SCHEMA, Record, metadata_bytes

MASK_METHOD = "forward_nonwarp"
REJECT_DAMAGED = "frames missing"
REJECT_SMALL_MASK = "mask too small"


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


def generate_records(info: VideoInfo, sequences: list[Sequence], options: GenerateOptions) -> Iterator[Made]:
    """Make the records of ``sequences`` (ascending), one :class:`Made` a sequence, in order.

    A record's bytes depend on the video, the options and its own key alone.

    Raises:
        DepthModelError: ``options.model_type`` cannot be had.
        OptionError: the GPU is not there.
        VideoError: the video changes its frame size.
    """
    device = choose_device(options.gpu)
    model = open_depth_model(options.model_type, options.resolution)
    # Torch rounds differently with other numbers of threads: each frame gets one, and the frames run side by side.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for clip in read_clips(info, sequences):
                yield _make(clip, info, options, model, device, pool)
    finally:
        torch.set_num_threads(threads)


def _make(
    clip: Clip,
    info: VideoInfo,
    options: GenerateOptions,
    model: DepthModel,
    device: torch.device,
    pool: ThreadPoolExecutor,
) -> Made:
    number = clip.sequence.number
    if clip.missing:
        seconds = float(clip.missing[0] * info.time_base)
        found = f"{len(clip.missing)} of {options.seq}, the first at {seconds:.2f} s"
        key = _key(options, number, names.VIEWS[0], 0)
        return Made(number, (), (Reject(key, REJECT_DAMAGED, found),))
    recipe = draw_recipe(
        generator(options.seed, "recipe", options.stem, number),
        width=info.width,
        divergence_level=options.divergence_level,
        metric_depth=model.metric,
        resolution=options.resolution,
    )
    frames = _frames_as_drawn(clip, recipe, device, pool)
    depth = normalize(dilate_edges(model.estimate(frames), recipe.edge_dilation))
    depth = map_depth(depth, recipe.mapper)
    records: list[Record] = []
    rejects: list[Reject] = []
    for view in names.VIEWS:
        mirrored = view == "forward"
        seen = depth.flip(-1) if mirrored else depth
        mask = _by_frame(pool, lambda frame: _hole_mask(frame, frames.shape[-2:], recipe), seen)
        for sample in range(options.num_samples):
            key = _key(options, number, view, sample)
            crop = best_crop(mask, options.size, generator(options.seed, "crop", key))
            if crop.mask_area_px <= MIN_MASK_AREA_PX * options.seq:
                found = (
                    f"{crop.mask_area_px / options.seq:.0f} px a frame, more than {MIN_MASK_AREA_PX} wanted"
                )
                rejects.append(Reject(key, REJECT_SMALL_MASK, found))
                continue
            masks = _quantize(_cut(mask, crop, options.size, mirrored=False))[:, 0]
            colour = _quantize(_cut(frames, crop, options.size, mirrored=mirrored)).transpose(0, 2, 3, 1)
            metadata = _metadata(clip, info, options, model, recipe)
            metadata |= {
                "key": key,
                "view": view,
                "sample": sample,
                "crop": {"top": crop.row, "left": crop.column, "size": options.size, "mirrored": mirrored},
                "mask": {
                    "method": MASK_METHOD,
                    "area_px": [int(np.count_nonzero(frame)) for frame in masks],
                },
            }
            pngs = list(pool.map(encode_png, [*colour, *masks]))
            records.append(
                Record(key, metadata_bytes(metadata), tuple(pngs[: options.seq]), tuple(pngs[options.seq :]))
            )
    return Made(number, tuple(records), tuple(rejects))


def _key(options: GenerateOptions, sequence: int, view: str, sample: int) -> str:
    return names.record_key(
        options.stem, sequence=sequence, view=view, sample=sample, num_samples=options.num_samples
    )


def _by_frame(
    pool: ThreadPoolExecutor, work: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor
) -> torch.Tensor:
    """Apply ``work`` to each frame (1, C, H, W) of (T, C, H, W) and put the results together."""
    return torch.cat(list(pool.map(work, frames.split(1))))


def _frames_as_drawn(
    clip: Clip, recipe: Recipe, device: torch.device, pool: ThreadPoolExecutor
) -> torch.Tensor:
    """Give the sequence's frames turned and resized by the recipe: (T, 3, H, W) float32 in [0, 1]."""

    def draw(rgb: torch.Tensor) -> torch.Tensor:
        frame = rgb.to(device).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        if recipe.rotation_degrees is not None:
            frame = rotate_and_crop(frame, recipe.rotation_degrees)
        return resize_short_side(frame, recipe.short_side, recipe.resize_mode).clamp_(0, 1)

    return _by_frame(pool, draw, torch.from_numpy(clip.rgb))


def _hole_mask(depth: torch.Tensor, size: torch.Size, recipe: Recipe) -> torch.Tensor:
    """Give the closed forward mask of mapped depth (T, 1, h, w) for frames of ``size``: (T, 1, H, W)."""
    mask = nonwarp_mask(
        depth,
        (size[0], size[1]),
        divergence=recipe.divergence,
        convergence=recipe.convergence,
        view=recipe.view,
    )
    return close_mask(mask)


def _cut(images: torch.Tensor, crop: Crop, size: int, *, mirrored: bool) -> torch.Tensor:
    """Cut the crop out of (T, C, H, W); ``mirrored``: the crop's place is meant on the mirrored images."""
    left = images.shape[-1] - crop.column - size if mirrored else crop.column
    cut = images[..., crop.row : crop.row + size, left : left + size]
    return cut.flip(-1) if mirrored else cut


def _quantize(images: torch.Tensor) -> np.ndarray:
    """Round [0, 1] to 0..255 uint8, halves to even."""
    return (images * 255).round().to(torch.uint8).cpu().numpy()


def _metadata(
    clip: Clip, info: VideoInfo, options: GenerateOptions, model: DepthModel, recipe: Recipe
) -> dict[str, Any]:
    """Give what all records of a sequence share: enough, with the video, to make them again."""
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
        "depth": {"model": model.name, "about": model.about},
        "options": options.recipe_options(),
        "made_by": {
            "vshard": __version__,
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
            "torch": torch.__version__,
        },
    }
