"""Files of a shard are those that are asked for, whatever its index says, one by one or at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_record

from vshard.base.errors import RecordError
from vshard.base.report import Silent
from vshard.records import names
from vshard.records.record import Record, write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.reader import Reader
from vshard.stream.split import open_split

# Of one seed, so that the records' files have the same sizes, and an index could be of either.
KEYS = ("one_000000", "two_000000")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [make_record(key, frames=5, size=64, seed=3) for key in KEYS]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    root = tmp_path_factory.mktemp("reader")
    for record in records:
        write_record(root / "records", record)
    pack(PackOptions((str(root / "records"),), root / "shards", "some"), Silent())
    return root / "shards"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1), st.integers(0, 4), st.integers(1, 5), st.sampled_from([1, -1]))
def test_any_files_in_any_order(
    split: Path, records: list[Record], number: int, first: int, count: int, step: int
) -> None:
    wanted = range(first, min(first + count, 5))[::step]
    for root in (split, split.parent / "records"):
        reader = Reader(open_split(root))
        frames = [(file.name, bytes(file.data)) for file in reader.frames(number, wanted)]
        masks = [(file.name, bytes(file.data)) for file in reader.masks(number, wanted)]
        assert [data for _, data in frames] == [records[number].frames[index] for index in wanted]
        assert [data for _, data in masks] == [records[number].masks[index] for index in wanted]
        window = reader.read(number, min(wanted), len(wanted))
        assert [(file.name, bytes(file.data)) for file in window.frames[::step]] == frames
        assert [(file.name, bytes(file.data)) for file in window.masks[::step]] == masks


def swap_members(records: list[Any]) -> None:
    """The places of a frame and of another record's."""
    one, other = records[0][2][3], records[1][2][5]
    one[1:], other[1:] = other[1:], one[1:]


def swap_kinds(records: list[Any]) -> None:
    """The places of a frame and of its mask."""
    frame, mask = (
        next(member for member in records[0][2] if member[0] == name(1))
        for name in (names.frame_file, names.mask_file)
    )
    frame[1:], mask[1:] = mask[1:], frame[1:]


def swap_keys(records: list[Any]) -> None:
    records[0][0], records[1][0] = records[1][0], records[0][0]


@pytest.mark.parametrize("lie", [swap_members, swap_kinds, swap_keys])
def test_an_index_that_lies_gives_no_other_files(
    split: Path, tmp_path: Path, lie: Callable[[list[Any]], None]
) -> None:
    (shard,) = split.glob("*.tar")
    told = json.loads((split / f"{shard.name}.idx").read_bytes())
    lie(told["records"])
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / f"{shard.name}.idx").write_text(json.dumps(told))
    reader = Reader(open_split(tmp_path))
    wrong = r"some-000000\.tar:(one|two)_000000\.\d{4}_[CM]\.png: is not at byte \d+, where its index says"
    with pytest.raises(RecordError, match=wrong):
        for _ in reader.frames(0, range(5)):
            pass
    with pytest.raises(RecordError, match=wrong):
        reader.read(0, 0, 5)
