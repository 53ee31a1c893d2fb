"""What does a training sample cost, loaded by ours and by others? CPU ms of the whole process tree, and samples/s.

    python benchmarks/stream.py DATA [--form ours] [--form pillow] [--records 32] [--samples 100] [--rounds 3]

DATA is a split, or a dataset with train/. Its records are coded anew, in our form (recode_png) and as Pillow saves PNGs
by default; each form is measured alone. Every loader gives 12 frames of 256x256 with 2 worker processes, in turn with
the others, in a process of its own (vshard/stream/measure.py, where our loader, the directory loader, stock webdataset
and the floor are). Here are:

- webdataset_opencv: webdataset, decoding the 12 frames and masks drawn with OpenCV, floats, crop last;
- webdataset_tuned: what a patient expert makes of it: masks first, the colour frames cropped as they are decoded, uint8
  over the border, colours left to the GPU; only that OpenCV decodes whole pictures stays;
- litdata, streaming: LitData and MosaicML Streaming, their fastest storage (PNG bytes), else as webdataset_opencv;
  left out where not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import pickle
import platform
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from vshard_cli.console import console

from vshard.base.report import Report, Silent
from vshard.records.png import recode_png
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.measure import Benched, MeasureOptions, measure
from vshard.stream.measure_data import Inputs, open_training, prepared
from vshard.stream.measure_directory import FloatSample, draw_frames, float_sample, sample_generator
from vshard.stream.measure_loaders import OPENERS, Opened, Opener, member_pairs, run_webdataset
from vshard.stream.samples import CROP_CANDIDATES, CROP_PX, INNER_DILATION_MAX_PX, OUTER_DILATION_MAX_PX
from vshard.stream.split import open_split

FORMS = ("ours", "pillow")
# As their guides show them, with no work of one's own on what a sample is.
DOCUMENTED = ("webdataset", "webdataset_opencv", "litdata", "streaming")
PACKAGES = {"litdata": "litdata", "streaming": "mosaicml-streaming"}

Pngs = list[tuple[bytes, bytes]]
ByteSample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def decode(png: bytes, flags: int) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), flags)


def opencv_sample(record: Pngs) -> FloatSample:
    """12 frames decoded, made floats, changed, and cropped last."""
    rng = sample_generator()
    drawn = draw_frames(record, rng)
    frames = np.stack([decode(frame, cv2.IMREAD_COLOR_RGB) for frame, _ in drawn])
    masks = np.stack([decode(mask, cv2.IMREAD_GRAYSCALE) for _, mask in drawn])
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
    return float_sample(x, torch.from_numpy(masks)[:, None].to(torch.float32).div_(255), rng)


def tuned_sample(record: Pngs) -> ByteSample:
    """The same sample in uint8, with as little work as OpenCV allows: colours' scale and bias go along."""
    rng = sample_generator()
    drawn = draw_frames(record, rng)
    masks = [decode(mask, cv2.IMREAD_GRAYSCALE) for _, mask in drawn]
    if rng.random() < 0.5:
        masks = [grown(mask, rng.randint(1, OUTER_DILATION_MAX_PX), 0) for mask in masks]
    if rng.random() < 0.25:
        masks = [grown(mask, 0, rng.randint(1, INNER_DILATION_MAX_PX)) for mask in masks]
    top, left = fullest(masks, rng)
    rows, columns = slice(top, top + CROP_PX), slice(left, left + CROP_PX)
    rgb = np.empty((len(drawn), CROP_PX, CROP_PX, 3), np.uint8)
    for out, (frame, _) in zip(rgb, drawn, strict=True):
        out[...] = decode(frame, cv2.IMREAD_COLOR_RGB)[rows, columns]
    hole = np.stack([mask[rows, columns] > 0 for mask in masks])
    scale = np.array([rng.uniform(0.7, 0.9) for _ in range(3)], np.float32)
    return rgb, hole, scale, (1 - scale) * np.float32(rng.random())


def grown(mask: np.ndarray, right: int, left: int) -> np.ndarray:
    """Let a mask grow by pixels to the right and to the left."""
    return cv2.dilate(mask, np.ones((1, right + left + 1), np.uint8), anchor=(right, 0))


def fullest(masks: Sequence[np.ndarray], rng: random.Random) -> tuple[int, int]:
    """The (row, column) of the best of four crops."""
    height, width = masks[0].shape
    total = np.add.reduce(masks, axis=0, dtype=np.uint16)
    places = [
        (rng.randint(0, height - CROP_PX), rng.randint(0, width - CROP_PX)) for _ in range(CROP_CANDIDATES)
    ]
    return max(
        places, key=lambda place: total[place[0] :, place[1] :][:CROP_PX, :CROP_PX].sum(dtype=np.int64)
    )


def of_members(make: Callable[[Pngs], object], members: Mapping[str, Any]) -> object:
    return make([(members[frame], members[mask]) for frame, mask in member_pairs(members)])


def open_webdataset_opencv(inputs: Inputs, workers: int) -> Opened:
    return partial(run_webdataset, inputs, workers, None, partial(of_members, opencv_sample))


def open_webdataset_tuned(inputs: Inputs, workers: int) -> Opened:
    return partial(run_webdataset, inputs, workers, None, partial(of_members, tuned_sample))


class Stored(Dataset[FloatSample]):
    """A library's dataset of pickled records as samples; read at random, as it allows."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> FloatSample:
        return opencv_sample(pickle.loads(self._dataset[index]["record"]))


def run_stored(dataset: Any, workers: int, count: int) -> Iterator[object]:
    stored = Stored(dataset)
    sampler = RandomSampler(stored, replacement=True, num_samples=count)
    return iter(DataLoader(stored, batch_size=1, sampler=sampler, num_workers=workers))


def open_litdata(folder: Path, _inputs: Inputs, workers: int) -> Opened:
    import litdata

    return partial(run_stored, litdata.StreamingDataset(str(folder)), workers)


def open_streaming(folder: Path, _inputs: Inputs, workers: int) -> Opened:
    import streaming

    # Names of shared memory that the process of the round before left behind.
    streaming.base.util.clean_stale_shared_memory()
    return partial(run_stored, streaming.StreamingDataset(local=str(folder), batch_size=1), workers)


def write_litdata(inputs: Inputs, folder: Path) -> None:
    import litdata

    litdata.optimize(
        stored_record,
        list(map(str, inputs.folders)),
        str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def write_streaming(inputs: Inputs, folder: Path) -> None:
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"record": "bytes"}) as writer:
        for record in inputs.folders:
            writer.write(stored_record(str(record)))


def stored_record(folder: str) -> dict[str, bytes]:
    frames, masks = (sorted(Path(folder).glob(f"*_{kind}.png")) for kind in "CM")
    pngs = [(frame.read_bytes(), mask.read_bytes()) for frame, mask in zip(frames, masks, strict=True)]
    return {"record": pickle.dumps(pngs)}


LIBRARIES = {"litdata": (write_litdata, open_litdata), "streaming": (write_streaming, open_streaming)}


def code_anew(form: str, target: Path, folder: Path) -> None:
    """Write a record folder's PNGs in a form."""
    (target / folder.name).mkdir(parents=True)
    for path in sorted(folder.glob("*.png")):
        png = path.read_bytes()
        if form == "ours":
            png = recode_png(png, str(path))
        else:
            saved = io.BytesIO()
            Image.open(path).save(saved, "PNG")
            png = saved.getvalue()
        (target / folder.name / path.name).write_bytes(png)


def openers(inputs: Inputs, root: Path, only: Sequence[str]) -> dict[str, Opener]:
    """Every loader there is here, the libraries' data written to ``root``."""
    found: dict[str, Opener] = dict(OPENERS)
    found |= {"webdataset_opencv": open_webdataset_opencv, "webdataset_tuned": open_webdataset_tuned}
    for name, (write, opener) in LIBRARIES.items():
        if only and name not in only:
            continue
        if importlib.util.find_spec(name) is None:
            print(f"{PACKAGES[name]} is not installed: left out")
            continue
        write(inputs, root / name)
        found[name] = partial(opener, root / name)
    return {name: opener for name, opener in found.items() if not only or name in only}


def show(benched: Benched, form: str) -> None:
    loaders = benched.loaders
    cpu = {name: measured.cpu_ms_per_sample for name, measured in loaders.items()}
    print(f"\nPNGs of the form {form!r}; CPU ms a sample (of the rounds), samples/s, CPU times ours")
    for name, measured in loaders.items():
        runs = [run.cpu_ms_per_sample for run in measured.runs]
        ratio = f"{cpu[name] / cpu['vshard']:6.2f}" if "vshard" in cpu else ""
        spread = f"({min(runs):.1f} to {max(runs):.1f})"
        print(f"{name:18s} {cpu[name]:7.1f} {spread:18s} {measured.samples_per_s:7.1f} {ratio}")
    if benched.stages:
        print("ours: " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in benched.stages.items()))
    documented = min((cpu[name] for name in DOCUMENTED if name in cpu), default=None)
    pairs = [
        ("directory / vshard", cpu.get("directory"), cpu.get("vshard"), 10.0 if form == "ours" else 2.5),
        ("directory / vshard_finished", cpu.get("directory"), cpu.get("vshard_finished"), 8.0),
        ("best library as documented / vshard", documented, cpu.get("vshard"), 8.0),
        ("webdataset_tuned / vshard", cpu.get("webdataset_tuned"), cpu.get("vshard"), 4.0),
    ]
    for what, other, ours, least in pairs if form == "ours" else pairs[:1]:
        if other is not None and ours is not None:
            told(what, other / ours, "at least", least, other / ours >= least)
    if form == "ours" and {"vshard", "floor"} <= cpu.keys():
        ratio = cpu["vshard"] / cpu["floor"]
        told("vshard / floor", ratio, "at most", 1.4, ratio <= 1.4)


def told(what: str, ratio: float, bound: str, target: float, met: bool) -> None:
    print(f"  {what}: {ratio:.2f}, {bound} {target:g}: {'met' if met else 'MISSED'}")


def run(data: Path, form: str, options: MeasureOptions, only: Sequence[str], report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="vshard-bench-") as name:
        root = Path(name)
        with (
            prepared(open_training(data), options.records, 1, Silent()) as source,
            ProcessPoolExecutor() as pool,
        ):
            list(pool.map(partial(code_anew, form, root / "coded"), source.folders))
        pack(PackOptions((str(root / "coded"),), root / "split", "coded"), Silent())
        with prepared(open_split(root / "split"), options.records, options.workers, Silent()) as inputs:
            show(measure(openers(inputs, root, only), inputs, options, report), form)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--form", choices=FORMS, action="append", help="without it: both")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--only", choices=[*OPENERS, "webdataset_opencv", "webdataset_tuned", *LIBRARIES], action="append"
    )
    asked = parser.parse_args()
    options = MeasureOptions(asked.samples, asked.records, asked.workers, asked.rounds)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {asked.workers} workers")
    with console() as report:
        for form in asked.form or FORMS:
            run(asked.data, form, options, asked.only or (), report)


if __name__ == "__main__":
    main()
