"""The loaders that are measured: name -> how to open one on prepared data.

An opened loader is called with a number of samples, a multiple of the workers, and gives that many out of fresh worker
processes. All of them draw 12 frames, change the colour, let holes grow and cut the best of four crops out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from ..base.memory import keep_freed_memory
from ..base.report import Silent
from .measure_data import Inputs
from .measure_directory import (
    DirectoryRecords,
    FloatSample,
    draw_frames,
    float_sample,
    sample_generator,
    to_tensor,
)
from .measure_stages import Floor, draw_samples
from .samples import Sample, finish
from .training import StreamOptions, TrainingStream

Opened = Callable[[int], Iterator[object]]
Opener = Callable[[Inputs, int], Opened]

_SEED = 1


def open_vshard(inputs: Inputs, workers: int) -> Opened:
    """Our stream: uint8 handed over."""

    def run(count: int) -> Iterator[Sample]:
        options = StreamOptions(_SEED, draws=count, workers=workers)
        return iter(TrainingStream(inputs.split, options, Silent()))

    return run


def open_vshard_finished(inputs: Inputs, workers: int) -> Opened:
    """Our stream with floats, colour and target made on the CPU, as a trainer without a GPU does."""
    samples = open_vshard(inputs, workers)
    keep_freed_memory()  # as a trainer does

    def run(count: int) -> Iterator[object]:
        for sample in samples(count):
            assert isinstance(sample, Sample)
            yield finish(sample, torch.device("cpu"))

    return run


def open_directory(inputs: Inputs, workers: int) -> Opened:
    """Record folders with Pillow, see :mod:`.measure_directory`."""
    records = DirectoryRecords(inputs.folders)

    def run(count: int) -> Iterator[object]:
        sampler = RandomSampler(records, replacement=True, num_samples=count)
        return iter(DataLoader(records, batch_size=1, sampler=sampler, num_workers=workers))

    return run


def open_webdataset(inputs: Inputs, workers: int) -> Opened:
    """Plain shards with webdataset and its Pillow decoder, as its guide shows: every member is decoded."""
    return partial(run_webdataset, inputs, workers, "pil", _pillow_sample)


def run_webdataset(
    inputs: Inputs,
    workers: int,
    decoder: str | None,
    make: Callable[[Mapping[str, Any]], object],
    count: int,
) -> Iterator[object]:
    """Run a pipeline of webdataset over the shards.

    Args:
        inputs: what to load.
        workers: processes.
        decoder: for ``decode``; None leaves bytes.
        make: a record's members by their name without the key -> a sample.
        count: samples, a multiple of ``workers``.
    """
    data = webdataset.WebDataset([str(shard) for shard in inputs.shards], resampled=True, shardshuffle=False)
    if decoder is not None:
        data = data.decode(decoder)
    epoch = data.map(make).batched(1).with_epoch(count // workers)
    return iter(webdataset.WebLoader(epoch, batch_size=None, num_workers=workers))


def open_floor(inputs: Inputs, workers: int) -> Opened:
    """Inflating the bytes needed, nothing else."""
    draws = draw_samples(inputs.split)
    return lambda count: iter(DataLoader(Floor(draws, count), batch_size=None, num_workers=workers))


OPENERS: dict[str, Opener] = {
    "vshard": open_vshard,
    "vshard_finished": open_vshard_finished,
    "directory": open_directory,
    "webdataset": open_webdataset,
    "floor": open_floor,
}


def _pillow_sample(members: Mapping[str, Any]) -> FloatSample:
    """Take 12 of a record's decoded pictures, which webdataset makes RGB, masks too."""
    rng = sample_generator()
    drawn = draw_frames(member_pairs(members), rng)
    x = torch.stack([to_tensor(members[frame]) for frame, _ in drawn])
    mask = torch.stack([to_tensor(_first_channel(members[mask])) for _, mask in drawn])
    return float_sample(x, mask, rng)


def member_pairs(members: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the names of a record's frames and masks, in order."""
    frames = sorted(name for name in members if name.endswith("_c.png"))
    masks = sorted(name for name in members if name.endswith("_m.png"))
    return list(zip(frames, masks, strict=True))


def _first_channel(mask: Image.Image) -> Image.Image:
    return mask.getchannel(0)
