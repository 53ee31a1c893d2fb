"""What several tests make or need: records without a video, weights of the mask network, a report that listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vshard.base.report import Silent
from vshard.masks.mlbw import MaskNetwork
from vshard.records.png import encode_png
from vshard.records.record import SCHEMA, Record, metadata_bytes, write_record


class Listening(Silent):
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.warned.append(line)


def save_mask_network(path: Path) -> Path:
    """Save the mask network with random weights in the original's form of file."""
    torch.manual_seed(1)
    network = MaskNetwork()
    # Fresh weights see holes nearly nowhere or nearly everywhere.
    torch.nn.init.normal_(network.lv1_out[1].weight, std=0.3)
    kwargs = {
        "num_layers": 2,
        "base_dim": 32,
        "small": False,
        "cycle": False,
        "hole_mask": True,
        "kwargs": {},
    }
    content = {"nunif_model": 1, "name": "sbs.mlbw", "updated_at": "", "kwargs": kwargs, "train_kwargs": {}}
    torch.save(content | {"state_dict": network.state_dict()}, path)
    return path


def make_record(key: str, *, frames: int = 12, size: int = 32, seed: int = 0) -> Record:
    """A record of smooth frames with a bar for a hole, different for each seed."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (size // 8, size // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    colours, masks = [], []
    for t in range(frames):
        colours.append(encode_png(np.roll(base, t, axis=1) + rng.integers(0, 8, base.shape, dtype=np.uint8)))
        mask = np.zeros((size, size), np.uint8)
        left = (seed * 5 + t) % (size - 6)
        mask[size // 4 :, left : left + 6] = 255
        mask[size // 4, left] = 128
        masks.append(encode_png(mask))
    metadata = {
        "schema": SCHEMA,
        "key": key,
        "frames": frames,
        "height": size,
        "width": size,
        "note": "Überblick",
    }
    return Record(key, metadata_bytes(metadata), tuple(colours), tuple(masks))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, without what vshard keeps for itself."""
    return {name: data for name, data in all_files(folder).items() if ".vshard" not in Path(name).parts}


def all_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, but locks, which are empty and may stay."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".lock"
    }


def write_dataset(root: Path, *, train: int, evaluation: int) -> Path:
    """Write a dataset of records of 256×256, numbered through both splits; give its folder."""
    for number in range(train + evaluation):
        split = "train" if number < train else "eval"
        write_record(root / split, make_record(f"a_{number:06d}", size=256, seed=number))
    return root
