"""Splits of datasets in which something lies: damaged records, indexes, plans, names and links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from splitting import build, check_indexes, hold, record_of, split_up, tree
from vshard_cli.main import vshard

from vshard.base.errors import DatasetError, RecordError, ShardError
from vshard.shards import index
from vshard.shards.index import index_place, scan_shard, write_index
from vshard.shards.split import choose_records

KEYS = [f"r_{n}" for n in range(3)]
SHARD = "plain-000000.tar"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three records in one shard."""
    return build(tmp_path / "data", [record_of(key, n) for n, key in enumerate(KEYS)], ["shard"] * 3)


def write_plan(root: Path, **fields: Any) -> None:
    plan = {
        "schema": "vshard.split/1",
        "choice": {"eval": 1, "by_video": False, "seed": 71},
        "keys": [],
        "folders": [],
        "shards": [],
        "made": [],
    }
    (root / ".vshard").mkdir()
    (root / ".vshard" / "split.json").write_text(json.dumps(plan | fields))


@pytest.mark.parametrize("form", ["folder", "shard", "both"])
def test_a_damaged_record_does_not_move(tmp_path: Path, form: str) -> None:
    root = build(tmp_path, [record_of(key, n) for n, key in enumerate(KEYS)], [form] * 3)
    (key,) = choose_records(KEYS, 1, 71)
    if form in ("folder", "both"):
        picture = root / "train" / key / "0001_C.png"
        data = bytearray(picture.read_bytes())
        data[data.index(b"IDAT") + 9] ^= 255
        picture.write_bytes(data)
    else:
        (shard,) = (path for path in (root / "train").iterdir() if path.suffix != ".idx" and path.is_file())
        data = bytearray(shard.read_bytes())
        data[data.index(f"{key}.0001_C.png".encode()) + 512 + 60] ^= 255
        shard.write_bytes(data)
    before = tree(root)
    with pytest.raises(RecordError, match=r"nothing was moved; .*vshard verify --repair") as caught:
        split_up(root, 1)
    assert "\n" not in str(caught.value)
    assert tree(root) == before


@pytest.mark.parametrize("listed", [1, 2])
def test_what_an_index_does_not_list_is_not_lost(
    packed: Path, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Even where the index passes for possible.
    monkeypatch.setattr(index, "index_possible", lambda _: True)
    shard = packed / "train" / SHARD
    content = json.loads(index_place(shard).read_text())
    content["records"] = content["records"][:listed]
    index_place(shard).write_text(json.dumps(content))
    before = shard.read_bytes()
    build(packed / "more", [record_of("s", 9)], ["folder"])
    (packed / "more" / "train" / "s").rename(packed / "train" / "s")
    seed = next(seed for seed in range(100) if choose_records([*KEYS[:listed], "s"], 1, seed) == [KEYS[0]])
    with pytest.raises(ShardError, match=rf"{SHARD}: holds 3 records, .*vshard index --force"):
        split_up(packed, 1, seed=seed)
    assert shard.read_bytes() == before
    write_index(shard, scan_shard(shard))
    split_up(packed, 1, seed=seed)
    assert hold(packed / "train").keys() == {*KEYS[1:], "s"}
    assert hold(packed / "eval").keys() == {KEYS[0]}
    check_indexes(packed)


def test_a_plan_that_copies_nothing_removes_nothing(packed: Path) -> None:
    write_plan(packed, keys=KEYS, shards=[SHARD])
    before = hold(packed / "train")
    with pytest.raises(ShardError, match=rf"{SHARD}: record r_0 stays, .*holds no record r_0"):
        split_up(packed, 1)
    assert hold(packed / "train") == before
    # Another record of that name is no copy of it.
    build(packed / "more", [record_of(key, 7) for key in KEYS], ["folder"] * 3)
    for key in KEYS:
        (packed / "more" / "train" / key).rename(packed / "eval" / key)
    with pytest.raises(ShardError, match=r"record r_0 stays, .*not the same there"):
        split_up(packed, 1)
    assert hold(packed / "train") == before


def test_a_plan_of_unknown_records_is_one_line(packed: Path) -> None:
    write_plan(packed, keys=["nosuch"])
    before = tree(packed)
    for dry_run in (True, False):
        with pytest.raises(DatasetError, match=r"split\.json: record nosuch is in neither split"):
            split_up(packed, 1, dry_run=dry_run)
    assert tree(packed) == before


def test_names_of_videos_cannot_steer_the_terminal(tmp_path: Path) -> None:
    records = [record_of(key, n, name="\x1b[2J\nvideo") for n, key in enumerate(KEYS)]
    root = build(tmp_path, records, ["folder"] * 3)
    meta = root / "train" / "r_0" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_bytes()) | {"source": {"name": "\ud800"}}))
    told = CliRunner().invoke(
        vshard, ["split", "-i", str(root), "--eval", "2", "--dry-run"], catch_exceptions=False
    )
    assert told.exit_code == 0
    assert "\x1b" not in told.output
    assert "\\x1b[2J\\nvideo" in told.output


@pytest.mark.parametrize("name", ["train", "eval", ".vshard"])
def test_links_that_lead_out_are_refused(packed: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (packed / name).exists():
        (packed / name).rename(outside)
    outside.mkdir(exist_ok=True)
    (packed / name).symlink_to(outside)
    before = tree(outside)
    with pytest.raises(DatasetError, match=rf"{name}: is a link that leads out of"):
        split_up(packed, 1)
    assert tree(outside) == before


def test_the_dataset_itself_may_be_a_link(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(packed)
    assert split_up(tmp_path / "link", 1).evaluation.records == 1
