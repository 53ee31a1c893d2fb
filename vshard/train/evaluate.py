"""Scores of a trained model on records it has not seen, always beside fills that need no training.

In: a model file and a split. Out: a frozen :class:`Evaluation`, from which the commands print tables and
:mod:`.evaluation_page` makes JSON and pictures.

Of each record the 12 frames in the middle are filled, whole frames at a time, as training evaluates them but for its
crop. Scored is the frame less a border of 16 pixels, which training does not look at either; all fills see the border.
Everything is float32. Cost of a record of 512×512 with the narrow network on one CPU core: 8 s, half of it SSIM.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.devices import choose_device
from ..base.errors import CheckpointError, DatasetError, OptionError, RecordError
from ..base.memory import keep_freed_memory
from ..base.report import Report
from ..base.seeds import generator
from ..base.stores import Place, facts
from ..records.png_crop import decode_crop, decode_mask
from ..shards.holdings import refuse_dataset
from ..shards.videos import video_ids, video_names
from ..stream.cache import OpenShards, cache_for
from ..stream.reader import Reader
from ..stream.split import Split, open_split
from .baselines import BASELINES
from .export import open_model
from .metrics import Estimate, PerceptualMap, estimates, score
from .network import BORDER_PX, CLIP_FRAMES, LightVideoInpaint
from .sources import origins_of, trained_on, trained_videos
from .steps import mixed

MODEL = "model"
# The model's column first, then those it has to beat.
METHODS = (MODEL, *BASELINES)
# Less than this leaves SSIM no window inside the border.
LEAST_PX = 2 * BORDER_PX + 11
SPEED_SIZE_PX = (1080, 1920)
_SPEED_RUNS = 3
_OPEN_SHARDS = 2
_JOBS = 8
_NAMED_VIDEOS = 3
_NOT_ASKED = "speed is not timed on a CPU, where it takes a minute; ask for it with --speed"


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate; names and defaults are those of the command line.

    ``data``: a split, or a dataset, of which eval/ is taken. ``records``: how many, drawn by ``seed``; None: all.
    ``gpu``: as :func:`vshard.base.devices.choose_device` takes it. ``speed``: time it on a CPU too, where that takes a
    minute and gigabytes. ``pictures``: of how many records. ``allow_trained``: score videos that were trained on.
    """

    model: Path
    data: Place
    records: int | None = None
    gpu: int | None = None
    seed: int = 71
    speed: bool = False
    pictures: int = 8
    allow_trained: bool = False

    def __post_init__(self) -> None:
        """Check each option.

        Raises:
            OptionError: one is out of its range.
        """
        if self.records is not None and self.records < 1:
            raise OptionError(f"--records {self.records}: allowed is 1 or more")
        if self.pictures < 0:
            raise OptionError(f"--pictures {self.pictures}: allowed is 0 or more")


@dataclass(frozen=True, repr=False)
class Clip:
    """The middle of a record: ``rgb`` (12, H, W, 3) uint8, ``hole`` (12, H, W) bool, True = to fill."""

    key: str
    rgb: np.ndarray
    hole: np.ndarray

    def __repr__(self) -> str:
        return f"Clip({self.key}: {self.rgb.shape})"


@dataclass(frozen=True, repr=False)
class Filled:
    """A clip without its border, as the truth, its holes and each method's fill show it.

    ``target``: (12, 3, h, w) float32 in [0, 1]; ``hole``: (12, 1, h, w) bool; ``fills``: as ``target``, by method.
    """

    target: Tensor
    hole: Tensor
    fills: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"Filled({tuple(self.target.shape)}, {', '.join(self.fills)})"


class Scored(NamedTuple):
    """One record: its video, and its scores by method and metric."""

    key: str
    video: str
    scores: dict[str, dict[str, float]]


class Speed(NamedTuple):
    """A network's pace on 12 frames of 1080p.

    ``peak_bytes``: on a GPU what torch had taken of its memory at most, on a CPU the whole process; None where the
    system does not tell.
    """

    precision: str
    ms_a_frame: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    ``videos``: their names. ``trained``: those among them that the model was trained on. ``sources_known``: whether the
    model's file tells all that it was trained on. ``means``: by method and metric; None where no record had a pixel to
    count. ``lpips``: which weights, None without. ``speeds``: empty where it was not timed. ``notes``: what a reader of
    the numbers has to know, a line each.
    """

    model: str
    architecture: str
    data: str
    device: str
    seed: int
    lpips: str | None
    records: tuple[Scored, ...]
    videos: tuple[str, ...]
    trained: tuple[str, ...]
    sources_known: bool
    means: dict[str, dict[str, Estimate | None]]
    speeds: tuple[Speed, ...]
    notes: tuple[str, ...]


def evaluate(
    options: EvaluateOptions,
    report: Report,
    perceptual: Callable[[torch.device], PerceptualMap] | None = None,
    show: Callable[[Clip, Filled, Scored], None] = lambda _clip, _filled, _scored: None,
) -> Evaluation:
    """Score a model.

    Args:
        options: what to evaluate.
        report: for progress.
        perceptual: gives LPIPS on a device; without it LPIPS is left out.
        show: given some records, evenly spread, as they are scored.

    Raises:
        CheckpointError: the model cannot be read, or what it fills with is not a number.
        DatasetError: there are no records, or their videos were trained on.
        RecordError, ShardError, StoreError: the data cannot be read.
    """
    keep_freed_memory()
    trained = open_model(options.model)
    device = choose_device(options.gpu)
    split = open_evaluation(options.data)
    chosen = choose_records(len(split), options.records, options.seed)
    origins = origins_of(split, chosen, _JOBS, report)
    videos = video_ids(origins)
    called = video_names(origins, videos)
    known = trained_on(trained.train_kwargs)
    seen = tuple(sorted(called[video] for video in trained_videos(known, origins, videos)))
    if seen and not options.allow_trained:
        count = f"{len(called)} video{'s' if len(called) > 1 else ''}"
        raise DatasetError(
            f"{split.root}: {options.model.name} was trained on {len(seen)} of its {count} "
            f"({_some(seen)}); score it on others, or on these with --allow-trained"
        )

    model = trained.model.to(device)
    distance = perceptual(device) if perceptual is not None else None
    shown = {chosen[i] for i in _spread(len(chosen), options.pictures)}
    cache = cache_for(split.root, None)
    reader = Reader(split, None if cache is None else OpenShards(cache, _OPEN_SHARDS))
    scored: list[Scored] = []
    report.start("evaluating", len(chosen), "records")
    for record in chosen:
        clip = read_clip(reader, record)
        filled = fill(clip, model, device)
        if not bool(filled.fills[MODEL].isfinite().all()):
            raise CheckpointError(
                f"{options.model}: fills {clip.key} with what are not numbers, its weights are spoilt; take an earlier "
                "model"
            )
        scores = {
            name: score(out, filled.target, filled.hole, distance) for name, out in filled.fills.items()
        }
        scored.append(Scored(clip.key, called[videos[clip.key]], scores))
        if record in shown:
            show(clip, filled, scored[-1])
        report.advance(len(scored), f"PSNR in the hole {scores[MODEL]['psnr_hole']:.2f} dB")
    reader.close()
    report.finish()

    of_video = [videos[one.key] for one in scored]
    means = {
        name: estimates([one.scores[name] for one in scored], of_video, options.seed) for name in METHODS
    }
    timed = device.type == "cuda" or options.speed
    if timed:
        report.start(f"timing {CLIP_FRAMES} frames of 1080p", None, "frames")
    speeds, untimed = _speeds(model, device) if timed else ((), (_NOT_ASKED,))
    report.finish()
    return Evaluation(
        model=str(options.model),
        architecture=f"{trained.model.name} {trained.model.kwargs}",
        data=str(split.root),
        device=device_name(device),
        seed=options.seed,
        lpips=None if distance is None else distance.source,
        records=tuple(scored),
        videos=tuple(sorted(called.values())),
        trained=seen,
        sources_known=known.complete,
        means=means,
        speeds=speeds,
        notes=(*_notes(seen, known.complete, len(called), distance is not None), *untimed),
    )


def open_evaluation(data: Place) -> Split:
    """Open a split, or eval/ of a dataset.

    Raises:
        DatasetError: there is no record.
    """
    if facts(data / "eval") is not None:
        return open_split(data / "eval")
    try:
        return open_split(data)
    except DatasetError:
        refuse_dataset(data)
        raise


def choose_records(count: int, wanted: int | None, seed: int) -> list[int]:
    """Draw ``wanted`` of ``count`` records, ascending; None, or as many as there are: all."""
    if wanted is None or wanted >= count:
        return list(range(count))
    drawn: list[int] = generator(seed, "evaluated records").choice(count, wanted, replace=False).tolist()
    return sorted(drawn)


def read_clip(reader: Reader, record: int) -> Clip:
    """Read the 12 frames in the middle of a record, whole.

    Raises:
        RecordError: it has fewer frames, is smaller than 43 pixels, its pictures differ in size, or it is damaged.
    """
    split = reader.split
    key = str(split.keys[record])
    count = split.frame_count(record)
    if count < CLIP_FRAMES:
        raise RecordError(
            f"{split.root}/{key}: has {count} frames, {CLIP_FRAMES} are scored; remove it, or choose others"
        )
    window = reader.read(record, (count - CLIP_FRAMES) // 2, CLIP_FRAMES)
    masks = [decode_mask(file.data, file.name) for file in window.masks]
    height, width = masks[0].shape
    if min(height, width) < LEAST_PX or any(mask.shape != (height, width) for mask in masks):
        raise RecordError(
            f"{split.root}/{key}: its masks are not all of one size of at least {LEAST_PX}x{LEAST_PX} pixels; "
            "remove it, or make it again"
        )
    rgb = np.empty((CLIP_FRAMES, height, width, 3), np.uint8)
    for out, file in zip(rgb, window.frames, strict=True):
        decode_crop(file.data, file.name, 0, 0, out)
    return Clip(key, rgb, np.stack(masks) > 0)


@torch.no_grad()
def fill(clip: Clip, model: LightVideoInpaint, device: torch.device) -> Filled:
    """Fill a clip by the network (out of training mode, on ``device``) and by each baseline."""
    hole = torch.from_numpy(clip.hole)[:, None].to(device)
    x = _floats(clip.rgb, device)
    fills = {MODEL: model(*model.preprocess(x, hole))}
    fills |= {name: _inner(_floats(make(clip.rgb, clip.hole), device)) for name, make in BASELINES.items()}
    return Filled(_inner(x), _inner(hole), fills)


def measure_speed(
    model: LightVideoInpaint, device: torch.device, size: tuple[int, int] = SPEED_SIZE_PX
) -> Iterator[Speed]:
    """Time the network on 12 frames: in float32, on a GPU in mixed fp16 too.

    On a GPU the best of three after one to warm up, on a CPU a single one, as it takes half a minute.
    """
    height, width = size
    x = torch.rand(CLIP_FRAMES, 3, height, width, device=device)
    mask = torch.zeros(CLIP_FRAMES, 1, height, width, device=device)
    mask[..., width // 2 : width // 2 + width // 20] = 1
    on_gpu = device.type == "cuda"
    for precision, amp in (("float32", None), ("fp16", torch.float16)) if on_gpu else (("float32", None),):
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(1 + _SPEED_RUNS if on_gpu else 1):
            started = time.perf_counter()
            with torch.no_grad(), mixed(device, amp):
                model.infer(x, mask)
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_of_process()
        yield Speed(precision, 1000 * min(seconds) / CLIP_FRAMES, peak)


def device_name(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _speeds(model: LightVideoInpaint, device: torch.device) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
    """Time the network; what does not fit into memory costs the speeds and a note, not the scores."""
    speeds: list[Speed] = []
    try:
        speeds.extend(measure_speed(model, device))
    except (torch.OutOfMemoryError, MemoryError):
        return tuple(speeds), (f"{CLIP_FRAMES} frames of 1080p did not fit into memory, so not all is timed",)
    return tuple(speeds), ()


def _notes(trained: Sequence[str], complete: bool, videos: int, with_lpips: bool) -> Iterator[str]:
    if trained:
        yield f"the model was trained on {len(trained)} of these {videos} videos ({_some(trained)})"
    if not complete:
        yield (
            "what the model was trained on is not all known: its file, or that of its first weights, does not tell; "
            "these videos may be among it"
        )
    if videos == 1:
        yield "no intervals: all records are of one video, and an interval is over videos"
    yield "100 dB means equal: simple fills change nothing outside the holes"
    if not with_lpips:
        yield "no LPIPS: it was not asked for"


def _some(videos: Sequence[str]) -> str:
    """Name a few videos."""
    more = len(videos) - _NAMED_VIDEOS
    return ", ".join(videos[:_NAMED_VIDEOS]) + (f" and {more} more" if more > 0 else "")


def _spread(count: int, wanted: int) -> list[int]:
    places: list[int] = np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()
    return places


def _floats(rgb: np.ndarray, device: torch.device) -> Tensor:
    """Give (T, H, W, 3) uint8 as (T, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(rgb).to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


def _inner(clip: Tensor) -> Tensor:
    return clip[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX].contiguous()


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
