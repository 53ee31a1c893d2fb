from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import make_record

from vshard.base.errors import RecordError
from vshard.records.png import decode_png, encode_png
from vshard.records.record import SCHEMA, Record, metadata_bytes, write_record
from vshard.stream.holes import grow, to_frames, to_planes
from vshard.stream.reader import Reader
from vshard.stream.samples import Sample, evaluation_sample, finish, training_sample
from vshard.stream.split import Split, open_split

GOLDEN = Path(__file__).parent.parent / "golden"
FACTS = json.loads((GOLDEN / "dataset.json").read_text(encoding="utf-8"))
ARRAYS = np.load(GOLDEN / "dataset.npz")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = tmp_path_factory.mktemp("golden")
    shutil.copy(GOLDEN / "dataset_records.tar", root)
    return open_split(root)


def index_of(split: Split, key: str) -> int:
    return split.keys.tolist().index(key)


@pytest.mark.parametrize("case", FACTS["records"], ids=lambda case: case["record"])
def test_evaluation_samples_are_those_of_the_original(split: Split, case: dict) -> None:
    record = index_of(split, case["record"])
    assert split.frame_count(record) == case["frames_in_record"]
    sample = evaluation_sample(Reader(split), record, position=0)
    first = int(case["frames_used"][0][:4])
    row, column = case["chosen_row_col"]
    for place, file in enumerate(Reader(split).read(record, first, 12).frames):
        image = decode_png(bytes(file.data), file.name)
        assert (sample.rgb[place] == image[row : row + 256, column : column + 256]).all()
    x, mask, y = finish(sample, CPU)
    assert np.array_equal(x[:, :, ::32, ::32].numpy(), ARRAYS[f"x:{case['record']}"])
    assert np.array_equal(y[:, :, ::32, ::32].numpy(), ARRAYS[f"y:{case['record']}"])
    hole = mask[:, 0].numpy().astype(int)
    assert np.array_equal(hole.sum(axis=2), ARRAYS[f"mask_rows:{case['record']}"])
    assert np.array_equal(hole.sum(axis=1), ARRAYS[f"mask_cols:{case['record']}"])
    assert int(hole.sum()) == case["mask_true_count"]


def grown(mask: np.ndarray, steps: int, *, leftwards: bool = False) -> np.ndarray:
    found = np.empty(mask.shape, bool)
    to_frames(grow(to_planes(mask), steps, leftwards=leftwards), found)
    return found


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_growing_right_is_that_of_the_original(steps: int) -> None:
    mask = (ARRAYS["dil:input"][:, 0] * 255).round().astype(np.uint8)
    assert np.array_equal(grown(mask, steps), ARRAYS[f"dil:right:{steps}"][:, 0])


@pytest.mark.parametrize("steps", [1, 4])
def test_growing_left_is_that_of_the_original(steps: int) -> None:
    mask = (ARRAYS["dil:input"][:, 0] * 255).round().astype(np.uint8)
    assert np.array_equal(grown(mask, steps, leftwards=True), ARRAYS[f"dil:left:{steps}"][:, 0])


def test_half_holes_are_holes() -> None:
    mask = np.array([[[0, 128, 255]]], np.uint8)
    assert grown(mask, 0).tolist() == [[[False, True, True]]]
    assert grown(mask[..., ::-1], 1).tolist() == [[[True, True, True]]]


def painted(values: np.ndarray, *, gray: bool, scale: list[float], bias: list[float]) -> torch.Tensor:
    """Give what `finish` makes of small frames, through a full-size sample."""
    frames, _, height, width = values.shape
    rgb = np.zeros((12, 256, 256, 3), np.uint8)
    rgb[:frames, :height, :width] = (values * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    hole = np.zeros((12, 256, 256), bool)
    sample = Sample(rgb, hole, gray, np.array(scale, np.float32), np.array(bias, np.float32), "k", 0)
    return finish(sample, CPU)[0][:frames, :, :height, :width]


def test_colour_changes_are_those_of_the_original() -> None:
    values = ARRAYS["jitter:input"]
    exact = np.abs(values * 255 - (values * 255).round()).max() < 1e-4
    tolerance = 1e-6 if exact else 0.5 / 255 + 1e-6
    _, _, *draws = FACTS["jitter"]["scaled"]["uniform_draws_in_order"]
    scaled = painted(values, gray=False, scale=draws[:3], bias=draws[3:])
    assert np.abs(scaled.numpy() - ARRAYS["jitter:scaled"]).max() <= tolerance
    gray = painted(values, gray=True, scale=[1, 1, 1], bias=[0, 0, 0])
    assert np.abs(gray.numpy() - ARRAYS["jitter:gray"]).max() <= tolerance
    assert (painted(values, gray=False, scale=[1, 1, 1], bias=[0, 0, 0]) >= 0).all()


def test_draws_follow_the_odds(split: Split) -> None:
    record = index_of(split, "rec_a_Any_B_00000000_1_0")
    samples = [training_sample(Reader(split), record, seed=9, epoch=1, position=p) for p in range(200)]
    share = {
        "gray": np.mean([s.gray for s in samples]),
        "scaled": np.mean([s.scale.min() < 1 for s in samples]),
    }
    assert abs(share["scaled"] - 0.475) < 4 * np.sqrt(0.25 / 200)
    assert abs(share["gray"] - 0.025) < 4 * np.sqrt(0.025 / 200)
    assert all(
        ((s.scale >= 0.7) & (s.scale <= 1) & (s.bias >= 0) & (s.bias <= 1 - s.scale + 1e-6)).all()
        for s in samples
    )


def test_any_twelve_frames_in_either_direction(tmp_path: Path) -> None:
    frames = [encode_png(np.full((256, 256, 3), 10 * i, np.uint8)) for i in range(16)]
    masks = [encode_png(np.full((256, 256), 255, np.uint8))] * 16
    metadata = metadata_bytes({"schema": SCHEMA, "key": "a_000000"})
    write_record(tmp_path, Record("a_000000", metadata, tuple(frames), tuple(masks)))
    split = open_split(tmp_path)
    runs: Counter[tuple[int, int]] = Counter()
    for position in range(400):
        shown = (
            training_sample(Reader(split), 0, seed=4, epoch=1, position=position).rgb[:, 0, 0, 0] // 10
        ).tolist()
        assert set(np.diff(shown).tolist()) in ({1}, {-1})
        runs[shown[0], shown[-1]] += 1
    # 5 starts, each forwards or backwards, equally likely.
    assert sorted(runs) == sorted([(i, i + 11) for i in range(5)] + [(i + 11, i) for i in range(5)])
    assert all(abs(count - 40) < 4 * np.sqrt(400 * 0.1 * 0.9) for count in runs.values())


def test_a_sample_is_reproducible_alone(split: Split) -> None:
    one = training_sample(Reader(split), 0, seed=3, epoch=2, position=17)
    again = training_sample(Reader(split), 0, seed=3, epoch=2, position=17)
    assert (one.rgb == again.rgb).all()
    assert (one.hole == again.hole).all()
    other = training_sample(Reader(split), 0, seed=3, epoch=3, position=17)
    assert not (
        one.rgb.shape == other.rgb.shape and (one.rgb == other.rgb).all() and (one.hole == other.hole).all()
    )


def test_records_that_cannot_be_trained_on(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a_000000", frames=11, size=256))
    write_record(tmp_path, make_record("b_000000", frames=12, size=248))
    write_record(tmp_path, make_record("c_000000", frames=12, size=256))
    (tmp_path / "c_000000" / "0003_C.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_record(tmp_path, make_record("d_000000", frames=12, size=256))
    (tmp_path / "d_000000" / "0004_C.png").unlink()
    split = open_split(tmp_path)
    messages = [
        "has 11 frames, training takes 12",
        "248x248 pixels",
        r"0003_C\.png: not a PNG",
        "cannot be read",
    ]
    for record, message in enumerate(messages[:3]):
        with pytest.raises(RecordError, match=message):
            evaluation_sample(Reader(split), record, position=0)
        with pytest.raises(RecordError, match=message):
            training_sample(Reader(split), record, seed=1, epoch=1, position=0)
    with pytest.raises(RecordError, match="has 11 frames|cannot be read"):
        evaluation_sample(Reader(split), 3, position=0)


def test_frames_are_as_large_as_their_masks(tmp_path: Path) -> None:
    small, large = (make_record("a_000000", frames=12, size=size) for size in (256, 264))
    write_record(tmp_path, replace(large, frames=(*large.frames[:7], small.frames[7], *large.frames[8:])))
    reader = Reader(open_split(tmp_path))
    with pytest.raises(RecordError, match=r"0007_C\.png: is 256x256 pixels, its mask 264x264"):
        training_sample(reader, 0, seed=1, epoch=1, position=0)
