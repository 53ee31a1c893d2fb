"""Depth networks of Hugging Face `transformers`: find their weights, load them, run frames through them.

Weights come from a local folder, from the hub's cache, or from the hub, in this order; only ``config.json`` and one
``model.safetensors`` are read, never a pickle or code from a repository. The hub's own image processors are not
used: the sizes are the original's (:mod:`vshard.depth.sizes`), the colours as each network was trained. Frames stay
bytes until their batch's turn, so 16 frames of 1080p cost 0.1 GB, not 0.4.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import DepthModelError, VshardError
from .builtin import PARALLAX
from .sizes import View, depth_anything_view, depth_pro_view, zoe_view

Network = Callable[[Tensor], Tensor]  # (N, 3, h, w) float32, colours normalised -> (N, h', w'), any range
Accept = Callable[[dict[str, Any]], None]  # raises where a configuration will not do
Warn = Callable[[str], None]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADVICE = f"give a folder that holds them with --depth-weights, or use --model-type {PARALLAX}"
LUMA = (0.299, 0.587, 0.114)
# Parameters that no output depends on (the first fusion step has nothing to add its residual to; mask tokens serve
# training). Files made by other versions may lack them; any other gap would leave random weights in the network.
UNUSED = re.compile(r"embeddings\.mask_token$|fusion_stage\.(layers|intermediate)\.0\.residual_layer1\.")
# Letters, digits and -_. around one slash; a local path that exists is tried first.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Family:
    """Networks that see frames in the same way.

    ``view`` sizes a frame of (height, width) at a resolution; ``mean`` and ``std`` are taken off colours in [0, 1];
    ``changes`` are made to the configuration that comes with the weights.
    """

    title: str
    view: Callable[[int, int, int | None], View]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    changes: dict[str, Any] = field(default_factory=dict)


_HALF = (0.5, 0.5, 0.5)
# Keyed by what a configuration calls its `model_type`.
FAMILIES = {
    "depth_anything": Family(
        "Depth Anything", depth_anything_view, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    "zoedepth": Family("ZoeDepth", zoe_view, mean=_HALF, std=_HALF),
    # Its second network, for the field of view, only scales whole frames, which are normalised anyway.
    "depth_pro": Family("Depth Pro", depth_pro_view, mean=_HALF, std=_HALF, changes={"use_fov_model": False}),
}
GRAY = Family("gray resize", depth_anything_view, mean=(0, 0, 0), std=(1, 1, 1))


class Weights(NamedTuple):
    """A folder with ``config.json`` and ``model.safetensors``, and what identifies it in metadata."""

    folder: Path
    label: str


def given_weights(source: str, accept: Accept, warn: Warn) -> Weights:
    """Find what ``--depth-weights`` names: a folder, or else a repository, as :func:`hub_weights`.

    Raises:
        DepthModelError: it is neither; one line says what was looked for.
    """
    folder = Path(source)
    if not folder.exists() and REPOSITORY.fullmatch(source):
        advice = f"there is no folder of that name either; {ADVICE}"
        return hub_weights(source, accept, warn, advice=advice)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise DepthModelError(
            f"--depth-weights {source}: {found}; give the folder that holds {CONFIG} and {WEIGHTS}, "
            "or a repository as OWNER/NAME"
        )
    with one_line(f"{folder}: cannot be read", "make its files readable"):
        there = sorted(entry.name for entry in folder.iterdir())
        if not {CONFIG, WEIGHTS} <= set(there):
            raise DepthModelError(
                f"{folder}: needs {CONFIG} and {WEIGHTS} (no other format is read, pickles least of all); "
                f"found {', '.join(there[:5]) or 'nothing'}"
            )
        accept(_read_config(folder / CONFIG))
        return Weights(folder, f"{folder.resolve().name} {_digest(folder / WEIGHTS)}")


def hub_weights(
    repository: str, accept: Accept, warn: Warn, *, what: str = "depth model", advice: str = ADVICE
) -> Weights:
    """Find a repository's files in the Hugging Face cache, where they are used as they are, or fetch them.

    Args:
        repository: OWNER/NAME.
        accept: is shown the configuration before weights are fetched.
        warn: is told before weights are fetched, which can take minutes.
        what: what their network is, for the user.
        advice: what to do where they cannot be had.

    Raises:
        DepthModelError: they cannot be had.
    """
    trouble = (
        f"{repository}: its {CONFIG} and {WEIGHTS} are not in the Hugging Face cache and cannot be fetched"
    )
    with quiet(), one_line(trouble, advice):
        hub = import_module("huggingface_hub")
        try:
            config = Path(hub.hf_hub_download(repository, CONFIG, local_files_only=True))
            weights = Path(hub.hf_hub_download(repository, WEIGHTS, local_files_only=True))
            accept(_read_config(config))
        except hub.errors.LocalEntryNotFoundError:
            # Where there is no network this fails at once; the downloads would try for 23 s.
            size_bytes = hub.get_hf_file_metadata(hub.hf_hub_url(repository, WEIGHTS)).size or 0
            config = Path(hub.hf_hub_download(repository, CONFIG))
            accept(_read_config(config))
            size = f"{size_bytes / 1e6:.0f} MB"
            warn(f"fetching the {what} {repository} ({size}) into the Hugging Face cache")
            # The commit of the configuration, whatever is published in between.
            weights = Path(hub.hf_hub_download(repository, WEIGHTS, revision=config.parent.name))
        return Weights(config.parent, f"{repository} {_digest(weights)}")


def load_network(weights: Weights, family: Family, device: torch.device) -> Network:
    """Load a network for ``device``: half precision where it gains by it on a GPU, float32 on the CPU.

    Raises:
        DepthModelError: the weights are damaged, of another network, or do not fill it.
    """
    with quiet(), one_line(f"{weights.folder}: cannot be loaded", "fetch the files again"):
        model, gaps = import_module("transformers").AutoModelForDepthEstimation.from_pretrained(
            weights.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # to name them below instead of a table of them
            output_loading_info=True,
            **family.changes,
        )
        model = model.eval().to(device)
    missing = sorted(key for key in gaps["missing_keys"] if not UNUSED.search(key))
    misfits = sorted(key for key, *_ in gaps["mismatched_keys"])
    for keys, what in ((missing, "are missing"), (misfits, "have another shape")):
        if keys:
            raise DepthModelError(
                f"{weights.folder / WEIGHTS}: {len(keys)} of the network's weights {what}, the first {keys[0]}; "
                f"the file does not belong to its {CONFIG}, take both from one place"
            )

    def network(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
            return model(pixel_values=pixels).predicted_depth

    return network


def transformers_version() -> str:
    """Give the version of the package that computes depth: other versions may round differently."""
    return version("transformers")


def gray_network(pixels: Tensor) -> Tensor:
    """Give the luma of (N, 3, h, w) in [0, 1] as if it were depth."""
    return (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(1)


def infer(
    frames: Tensor, network: Network, family: Family, *, resolution: int | None, metric: bool
) -> Tensor:
    """Run one batch through a network (golden section 13).

    Args:
        frames: (N, 3, H, W) uint8 RGB, on the network's device.
        metric: the network gives metres, which are negated.

    Returns:
        (N, 1, h, w) float32, larger = nearer, finite, of the network's own size.

    Raises:
        DepthModelError: a frame came out without a single finite number.
    """
    height, width = frames.shape[-2:]
    view = family.view(height, width, resolution)
    inner = view.height - 2 * view.pad_height, view.width - 2 * view.pad_width
    pixels = F.interpolate(frames / 255, inner, mode="bilinear", antialias=True)
    pixels -= pixels.new_tensor(family.mean)[:, None, None]
    pixels /= pixels.new_tensor(family.std)[:, None, None]
    pixels = _reflect(_reflect(pixels, -2, view.pad_height), -1, view.pad_width)
    with torch.no_grad():
        depth = network(pixels)[:, None].to(torch.float32)
    rows, columns = depth.shape[-2:]
    depth = depth[..., view.pad_height : rows - view.pad_height, view.pad_width : columns - view.pad_width]
    return _finite(-depth if metric else depth)


def make_estimator(
    network: Network,
    family: Family,
    *,
    device: torch.device,
    resolution: int | None,
    metric: bool,
    batch_size: int,
    threads: int,
    warn: Warn,
) -> Callable[[Tensor], Tensor]:
    """Join a network to what it takes: (T, 3, H, W) uint8 on the CPU -> (T, 1, h, w) as :func:`infer`, on ``device``.

    On a GPU in batches, of fewer frames than ``batch_size`` where its memory is short (``warn`` is told); on the CPU
    frame by frame in ``threads`` threads, which leaves no trace in the bytes as long as the caller has set torch
    to one thread.
    """

    def work(frames: Tensor) -> Tensor:
        return infer(frames.to(device), network, family, resolution=resolution, metric=metric)

    def side_by_side(frames: Tensor) -> Tensor:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(work, frames.split(1))))

    return GpuBatches(work, batch_size, warn) if device.type == "cuda" else side_by_side


@dataclass
class GpuBatches:
    """Runs frames through ``work`` in batches; a size that the GPU's memory does not hold is halved, and stays so.

    Raises:
        DepthModelError: it does not even hold one frame.
    """

    work: Callable[[Tensor], Tensor]
    batch_size: int
    warn: Warn

    def __call__(self, frames: Tensor) -> Tensor:
        depths: list[Tensor] = []
        start, told = 0, self.batch_size
        while start < len(frames):
            batch = frames[start : start + self.batch_size]
            depth = self._attempt(batch)
            if depth is None:
                torch.cuda.empty_cache()
                self.batch_size = len(batch) // 2
                continue
            depths.append(depth)
            start += len(batch)
            if self.batch_size < told:
                told = self.batch_size
                self.warn(f"the GPU's memory is short: depth goes on with --batch-size {told}")
        return torch.cat(depths)

    def _attempt(self, batch: Tensor) -> Tensor | None:
        """None: out of memory. The error goes no further, since it holds on to the tensors of the attempt."""
        try:
            return self.work(batch)
        except torch.cuda.OutOfMemoryError as error:
            if len(batch) > 1:
                return None
            raise DepthModelError(
                f"the GPU's memory does not hold the depth network and one frame of {batch.shape[-1]}x"
                f"{batch.shape[-2]}; give a smaller --resolution, a smaller model, or --gpu -1"
            ) from error


def _finite(depth: Tensor) -> Tensor:
    """Replace what half precision may leave in (N, 1, h, w): inf by the frame's nearest, the rest by its farthest."""
    known = depth.isfinite()
    if known.all():
        return depth
    frame = (1, 2, 3)
    if not known.any(-1).any(-1).all():
        raise DepthModelError(
            "the depth network gave a frame without any finite number; its weights are damaged"
        )
    low = depth.where(known, torch.inf).amin(frame, keepdim=True)
    high = depth.where(known, -torch.inf).amax(frame, keepdim=True)
    return depth.where(known, torch.where(depth == torch.inf, high, low))


def _reflect(pixels: Tensor, dim: int, pad: int) -> Tensor:
    """Mirror the border outwards, again and again where ``pad`` is wider than the picture, which torch refuses."""
    last = pixels.shape[dim] - 1
    if pad == 0:
        return pixels
    steps = torch.arange(-pad, last + 1 + pad, device=pixels.device) % max(2 * last, 1)
    return pixels.index_select(dim, torch.minimum(steps, 2 * last - steps))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise DepthModelError(f"{path}: is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise DepthModelError(f"{path}: holds a {type(config).__name__}, not a configuration; fetch it again")
    return config


def _digest(path: Path) -> str:
    """Give "sha256:" and 16 hex digits of the whole content; about 1 s a GB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


@contextmanager
def one_line(trouble: str, advice: str) -> Iterator[None]:
    """Turn whatever the hub's packages raise (errors of a dozen trees) into one line."""
    try:
        yield
    except VshardError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise DepthModelError(f"{trouble} ({type(error).__name__}: {reason[:200]}); {advice}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines, bars and warnings of the hub's packages off the terminal: errors say it in one line.

    Raises:
        DepthModelError: the packages are not installed.
    """
    try:
        log = import_module("transformers.utils.logging")
        hub = import_module("huggingface_hub.utils")
    except ImportError as error:
        raise DepthModelError(
            f"learned depth models need the package transformers ({error}): pip install 'transformers>=5', "
            f"or use --model-type {PARALLAX}"
        ) from error
    level, hub_level = log.get_verbosity(), hub.logging.get_verbosity()
    bars, no_hub_bars = log.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.set_verbosity_error()
        hub.logging.set_verbosity_error()
        log.disable_progress_bar()  # the hub's too
        try:
            yield
        finally:
            log.set_verbosity(level)
            hub.logging.set_verbosity(hub_level)
            if bars:
                log.enable_progress_bar()
            (hub.disable_progress_bars if no_hub_bars else hub.enable_progress_bars)()
