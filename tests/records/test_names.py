from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vshard.base.errors import OptionError
from vshard.records.names import (
    KEY_LENGTH_MAX,
    file_hash,
    frame_file,
    is_frame_or_mask,
    is_record_key,
    mask_file,
    member_name,
    record_key,
    record_stem,
    shard_file,
    split_member,
)

NAMING = json.loads((Path(__file__).parent.parent / "golden" / "naming.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", NAMING["hash"])
def test_file_hash_is_that_of_the_original(case: dict) -> None:
    assert file_hash(case["dataset_dir"]) == case["file_hash"]


@pytest.mark.parametrize("case", NAMING["records"])
def test_stem_is_that_of_the_original(case: dict) -> None:
    original = case["record_dirs"][0].rsplit("_", 2)[0]
    try:
        stem = record_stem(case["prefix"], case["model_type"], case["dataset_dir"])
    except OptionError:
        assert not is_record_key(case["prefix"]), "only prefixes that no shard can carry are refused"
    else:
        assert stem == original


def test_files_are_those_of_the_original() -> None:
    listing = NAMING["files"]["listing_of_one_record_dir"]
    ours = [name for i in range(NAMING["files"]["seq"]) for name in (frame_file(i), mask_file(i))]
    assert ours == listing
    assert all(is_frame_or_mask(name) for name in ours)
    assert not is_frame_or_mask("meta.json")
    assert not is_frame_or_mask("0000_C.png.part")


@pytest.mark.parametrize("prefix", ["a/b", "a.b", "a b", "../x", "ü", "a\nb", "a\\b"])
def test_a_prefix_that_no_shard_can_carry_is_refused(prefix: str) -> None:
    with pytest.raises(OptionError, match="--prefix .* only letters A-Z a-z, digits, '_' and '-'") as caught:
        record_stem(prefix, "Parallax", "v.mp4")
    assert "\n" not in str(caught.value)


def test_a_long_prefix_is_refused() -> None:
    longest = KEY_LENGTH_MAX - 7 - len("_Parallax_16b248c7")
    stem = record_stem("x" * longest, "Parallax", "video.mp4")
    key = record_key(stem, sequence=0, view="backward", sample=0, num_samples=1)
    assert len(key) == KEY_LENGTH_MAX
    with pytest.raises(OptionError, match="shorter prefix"):
        record_stem("x" * (longest + 1), "Parallax", "video.mp4")


@given(
    st.integers(1, 5),
    st.sets(st.tuples(st.integers(0, 50), st.sampled_from(["backward", "forward"]), st.integers(0, 4))),
)
def test_numbers_are_unique(num_samples: int, places: set[tuple[int, str, int]]) -> None:
    places = {place for place in places if place[2] < num_samples}
    keys = {record_key("s", sequence=q, view=v, sample=n, num_samples=num_samples) for q, v, n in places}
    assert len(keys) == len(places)
    assert record_key("s", sequence=3, view="forward", sample=0, num_samples=2) == "s_000014"


def test_members_split_as_they_were_joined() -> None:
    for file in ("meta.json", "0000_C.png", "0015_M.png"):
        assert split_member(member_name("a_b-1", file)) == ("a_b-1", file)
    for wrong in (
        "../a.json",
        "a/b.json",
        "/a.json",
        "a.txt",
        "a.b.json",
        "a.000_C.png",
        "a.0000_C.png/x",
        ".json",
    ):
        assert split_member(wrong) is None
    assert split_member("x" * 81 + ".json") is None
    assert shard_file("train", 7) == "train-000007.tar"
