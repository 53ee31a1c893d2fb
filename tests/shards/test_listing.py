from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from making import Listening, make_record
from PIL import Image
from store_servers import s3_bucket, web_folder
from vshard_cli.main import run as run_command
from vshard_cli.main import vshard

from vshard.base.errors import DatasetError, OptionError, VshardError
from vshard.base.report import Silent
from vshard.records.png import encode_png
from vshard.records.record import Record, metadata_bytes, write_record
from vshard.shards.index import index_place, load_index
from vshard.shards.listing import Facts, Listing, list_records
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions

AREA_PX = 100


def record_of(key: str, number: int, **more: Any) -> Record:
    """A record of 2 frames whose metadata says more; without ``more`` it tells neither a video nor an area."""
    record = make_record(key, frames=2, size=16, seed=number)
    return replace(record, metadata=metadata_bytes(json.loads(record.metadata) | more))


def told(video: str, view: str, area_px: int = AREA_PX) -> dict[str, Any]:
    return {
        "source": {"name": f"{video}.mp4", "fingerprint": video * 16},
        "view": view,
        "mask": {"method": "forward", "area_px": [area_px, 3 * area_px]},
    }


def counted_px(record: Record) -> int:
    return sum(int((np.array(Image.open(io.BytesIO(mask))) > 0).sum()) for mask in record.masks)


RECORDS = [
    record_of("p_M_aaaaaaaa_000000", 0, **told("a", "backward")),
    record_of("p_M_aaaaaaaa_000001", 1, **told("a", "forward")),
    record_of("p_M_bbbbbbbb_000000", 2, **told("b", "backward", 50)),
    record_of("p_M_cccccccc_1_0", 3),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Records in both forms, in one each, and (the original's, without metadata) as a folder."""
    root = tmp_path / "data"
    for record in (*RECORDS[:2], RECORDS[3]):
        write_record(root / "train", record)
    (root / "train" / "p_M_cccccccc_1_0" / "meta.json").unlink()
    write_record(tmp_path / "source", RECORDS[2])
    for record, split in ((RECORDS[0], "train"), (RECORDS[2], "eval")):
        shutil.rmtree(tmp_path / "source")
        write_record(tmp_path / "source", record)
        pack(PackOptions((str(tmp_path / "source"),), root / split, "s"), Silent())
    return root


def listing_of(*places: object, only: str | None = None, jobs: int = 2) -> Listing:
    return list_records([str(place) for place in places], only, jobs, Silent())


def facts_of(listing: Listing) -> dict[str, Facts]:
    found = {}
    for record in listing.records:
        assert isinstance(record.facts, Facts), record
        found[record.key] = record.facts
    return found


def test_every_record_is_one_line_by_place_and_key(data: Path) -> None:
    listing = listing_of(data)
    assert [(r.place.name, r.key, r.forms) for r in listing.records] == [
        ("train", RECORDS[0].key, ("folder", "s-000000.tar")),
        ("train", RECORDS[1].key, ("folder",)),
        ("train", RECORDS[3].key, ("folder",)),
        ("eval", RECORDS[2].key, ("s-000000.tar",)),
    ]
    facts = facts_of(listing)
    assert facts[RECORDS[1].key] == Facts(2, 16, 16, 4 * AREA_PX, "forward", "a.mp4", "a" * 16)
    assert facts[RECORDS[3].key] == Facts(2, 16, 16, counted_px(RECORDS[3]))
    for record, size in ((r, sum(map(len, r.files().values()))) for r in RECORDS[:3]):
        assert next(r.size_bytes for r in listing.records if r.key == record.key) == size
    totals = listing.totals
    area = 4 * AREA_PX * 2 + 200 + counted_px(RECORDS[3])
    assert (totals.records, totals.videos) == (4, 3)
    assert totals.mask_area_px == pytest.approx(area / 8)
    assert totals.mask_part == pytest.approx(area / 8 / 256)
    assert totals.size_bytes == sum(record.size_bytes for record in listing.records)


def test_a_line_a_video(data: Path) -> None:
    first, second, third = listing_of(data).videos
    assert (first.name, first.file_hashes, first.splits) == ("a.mp4", ("aaaaaaaa",), {"train": 2})
    assert first.views == {"backward": 1, "forward": 1}
    assert first.totals.mask_area_px == 2 * AREA_PX
    assert (second.name, second.splits, second.views) == ("b.mp4", {"eval": 1}, {"backward": 1})
    assert (third.name, third.file_hashes, third.views) == ("video cccccccc", ("cccccccc",), {})


def test_what_may_be_named(data: Path) -> None:
    def keys(*places: object, **more: Any) -> list[str]:
        return [record.key for record in listing_of(*places, **more).records]

    everything = keys(data)
    assert keys(data / "eval", data / "train") == everything
    assert keys(data / "train", data / "train", data / "train" / "*.tar") == everything[:-1]
    assert keys(data / "train" / RECORDS[3].key) == [RECORDS[3].key]
    assert keys(data / "train" / "s-{000000..000000}.tar") == [RECORDS[0].key]
    assert keys(data / "train" / "s-*") == [RECORDS[0].key]
    assert keys(data / "train" / "s-000000.tar", data / "train" / RECORDS[0].key) == [RECORDS[0].key]
    assert keys(data, only="*_000000", jobs=1) == [RECORDS[0].key, RECORDS[2].key]
    with web_folder(data) as (place, _):
        assert keys(place) == everything
        assert facts_of(listing_of(place)) == facts_of(listing_of(data))


def test_what_names_no_record(data: Path) -> None:
    with pytest.raises(DatasetError, match="--only x: no record is named so"):
        listing_of(data, only="x")
    with pytest.raises(DatasetError, match=r"named so; for all names that begin so write 'p_\*'$"):
        listing_of(data, only="p_")
    with pytest.raises(DatasetError, match="none: no such folder or file"):
        listing_of(data / "none")
    with pytest.raises(DatasetError, match=r"index\.txt: is no shard and no folder"):
        (data / "index.txt").touch()
        listing_of(data / "index.txt")
    with pytest.raises(DatasetError, match=r"tar\.idx: is no shard and no folder"):
        listing_of(data / "train" / "*.idx")
    with pytest.raises(OptionError, match="matches no file"):
        listing_of(data / "*.nothing")
    (data / "bare" / "thumbs").mkdir(parents=True)
    with pytest.raises(DatasetError, match="bare: holds no record folders"):
        listing_of(data / "bare")
    with pytest.raises(DatasetError, match=f"{data.parent}: holds the dataset data; give that: {data}$"):
        listing_of(data.parent)
    for name in ("b", "a"):
        (data.parent / name / "eval").mkdir(parents=True)
    with pytest.raises(
        DatasetError, match=f"holds the datasets a, b and data; give one of them: {data.parent}/a$"
    ):
        listing_of(data.parent)
    for number in range(6):
        (data.parent / f"c{number}" / "train").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds the datasets a, b, c0, c1, c2 and 4 more; give"):
        listing_of(data.parent)


def test_records_of_both_splits_are_warned_of(data: Path) -> None:
    def warned(*places: Path, only: str | None = None) -> list[str]:
        report = Listening()
        list_records(map(str, places), only, 2, report)
        return report.warned

    assert warned(data) == []
    for record in RECORDS[:2]:
        write_record(data / "eval", record)
    (line,) = warned(data)
    assert line == (
        f"{data}: 2 of the records of train/ are in eval/ too, the first is {RECORDS[0].key}; training counts them for "
        "eval only"
    )
    assert warned(data / "train") == []
    data.rename(data.with_name("other"))
    assert warned(data.with_name("other") / "train", data.parent / "other" / "eval") != []
    assert warned(data.with_name("other"), only="*_bbbbbbbb_*") == []


def test_in_a_shard_metadata_alone_is_read(data: Path) -> None:
    shard = data / "eval" / "s-000000.tar"
    before = facts_of(listing_of(shard))
    content = bytearray(shard.read_bytes())
    for member in load_index(shard).records[0].members:
        if member.file != "meta.json":
            content[member.offset : member.offset + member.length] = bytes(member.length)
    shard.write_bytes(content)
    assert facts_of(listing_of(shard)) == before


@pytest.mark.parametrize("compress", ["none", "zst"])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards_of_many_records(tmp_path: Path, compress: str, indexed: bool) -> None:
    records = [record_of(f"k_{n:03d}", n, **(told("a", "forward") if n % 2 else {})) for n in range(70)]
    for record in records:
        write_record(tmp_path / "source", record)
    pack(PackOptions((str(tmp_path / "source"),), tmp_path / "out", "s", compress=compress), Silent())
    (shard,) = (
        path for path in (tmp_path / "out").iterdir() if ".tar" in path.name and path.suffix != ".idx"
    )
    if not indexed:
        index_place(shard).unlink()
    facts = facts_of(listing_of(tmp_path / "out"))
    assert facts == facts_of(listing_of(tmp_path / "source"))
    assert [facts[r.key].mask_area_px for r in records[::2]] == [counted_px(r) for r in records[::2]]
    assert {facts[r.key].mask_area_px for r in records[1::2]} == {4 * AREA_PX}


@pytest.mark.parametrize(
    "mask", [None, 5, {}, {"area_px": "1"}, {"area_px": [1]}, {"area_px": [1, -1]}, {"area_px": [1, True]}]
)
def test_areas_that_tell_nothing_are_counted(tmp_path: Path, mask: object) -> None:
    record = record_of("k", 1, mask=mask, source=["x"], view=3, height="a")
    write_record(tmp_path, record)
    assert facts_of(listing_of(tmp_path)) == {"k": Facts(2, 16, 16, counted_px(record))}


def test_a_mask_in_colour_counts_as_training_sees_it(tmp_path: Path) -> None:
    record = record_of("k", 1)
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:3, :5, 0], mask[8:, :, 1] = 1, 255
    write_record(tmp_path, replace(record, masks=(encode_png(mask),) * 2))
    assert facts_of(listing_of(tmp_path))["k"].mask_area_px == 2 * 15


def damage(data: Path) -> None:
    """Spoil a record's metadata, take a mask from another, and cut a shard that has no index."""
    (data / "train" / RECORDS[1].key / "meta.json").write_bytes(b'{"schema": 5}')
    (data / "train" / RECORDS[3].key / "0001_M.png").unlink()
    shard = data / "eval" / "s-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])


def test_what_is_damaged_is_told_in_its_line(data: Path) -> None:
    damage(data)
    listing = listing_of(data)
    problems = {r.key: str(r.facts) for r in listing.records if isinstance(r.facts, VshardError)}
    assert problems.keys() == {RECORDS[1].key, RECORDS[3].key}
    assert "has schema 5" in problems[RECORDS[1].key]
    assert "is not whole" in problems[RECORDS[3].key]
    assert len(listing.damage) == 1
    assert "s-000000.tar: is cut off" in listing.damage[0]
    assert listing.damaged == 3
    assert listing.totals.mask_area_px == 2 * AREA_PX


def test_a_compressed_shard_damaged_behind_its_index(tmp_path: Path) -> None:
    write_record(tmp_path / "source", RECORDS[0])
    pack(PackOptions((str(tmp_path / "source"),), tmp_path / "out", "s", compress="zst"), Silent())
    shard = tmp_path / "out" / "s-000000.tar.zst"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 0xFF
    shard.write_bytes(content)
    (record,) = listing_of(shard).records
    assert "compression is damaged" in str(record.facts) or "is cut off" in str(record.facts)


def test_a_folder_of_a_name_that_no_record_may_have(data: Path) -> None:
    shutil.copytree(data / "train" / RECORDS[0].key, data / "train" / "my.record")
    (line,) = listing_of(data).damage
    assert "my.record: this record's name may hold only" in line


def test_the_command_prints_aligned_columns(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for heading, text in (("FORM", "folder+shard"), ("VIDEO", "a.mp4")):
        assert lines[1].index(text) == lines[0].index(heading)
    for heading in ("FRAMES", "PICTURE", "SIZE", "MASK PX"):
        end = lines[0].index(heading) + len(heading)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines[:-1]), heading
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[1].split() == [
        str(data / "train"), RECORDS[0].key, "folder+shard", "a.mp4", "2", "16x16",
        *f"{sum(map(len, RECORDS[0].files().values())) / 1000:.1f} kB 200 78.1 %".split(),
    ]  # fmt: skip
    assert lines[-1].startswith("4 records of 3 videos, ")
    assert run_command(["ls", str(data / "train"), "--sources"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["VIDEO", "HASH", "SPLITS", "RECORDS"]
    assert lines[1].startswith("a.mp4           aaaaaaaa  train         2 ")
    assert lines[1].endswith("1 backward, 1 forward")
    assert len(lines) == 4


def test_the_command_prints_json(data: Path) -> None:
    def printed(*more: str) -> dict[str, Any]:
        result = CliRunner().invoke(vshard, ["ls", str(data), "--json", *more], catch_exceptions=False)
        assert result.exit_code == 0
        return json.loads(result.stdout)

    content = printed()
    assert content["records"][0] == {
        "key": RECORDS[0].key,
        "place": str(data / "train"),
        "forms": ["folder", "s-000000.tar"],
        "size_bytes": sum(map(len, RECORDS[0].files().values())),
        "file_hash": "aaaaaaaa",
        "video": "a.mp4",
        "fingerprint": "a" * 16,
        "view": "backward",
        "frames": 2,
        "height": 16,
        "width": 16,
        "mask_area_px": 200.0,
    }
    assert content["totals"]["records"] == 4
    assert content["damage"] == []
    videos = printed("--sources")["videos"]
    assert [video["video"] for video in videos] == ["a.mp4", "b.mp4", "video cccccccc"]
    assert (videos[0]["records"], videos[0]["splits"], videos[0]["mask_area_px"]) == (2, {"train": 2}, 200.0)


def test_the_command_fails_at_the_end_where_something_is_damaged(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(data)
    for more in ([], ["--json"], ["--sources"]):
        assert run_command(["ls", str(data), *more]) == 1
        said = capsys.readouterr()
        assert said.err.splitlines()[-1] == (
            f"vshard: error: 3 of these cannot be read; see what is wrong with: vshard verify {data}"
        )
        assert "s-000000.tar: is cut off" in said.out
        if more == ["--json"]:
            errors = [r["error"] for r in json.loads(said.out)["records"] if "error" in r]
            assert len(errors) == 2
    assert run_command(["ls", str(data / "train")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(RECORDS[1].key) and "has schema 5" in line for line in lines)
    assert any(line.startswith(RECORDS[0].key) and "200" in line for line in lines)


def test_a_strangers_name_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, record_of("k_1", 1, source={"name": "\x1b[2J\n東京.mp4"}, view="\x07"))
    for more in ([], ["--sources"]):
        assert run_command(["ls", str(tmp_path), *more]) == 0
        out = capsys.readouterr().out
        assert "\\x1b[2J\\n東京.mp4" in out
        assert not {"\x1b", "\x07"} & set(out)


def test_in_a_store(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        for path in data.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                key = path.relative_to(data).as_posix()
                bucket.client.put_object(Bucket=bucket.place.name, Key=f"d/{key}", Body=path.read_bytes())
        place = bucket.place / "d"
        here, there = listing_of(data), listing_of(place)
        assert [(r.key, r.forms, r.size_bytes, r.facts) for r in there.records] == [
            (r.key, r.forms, r.size_bytes, r.facts) for r in here.records
        ]
        assert there.totals == here.totals
        assert facts_of(listing_of(place / "eval" / "s-*.tar")).keys() == {RECORDS[2].key}


@pytest.mark.parametrize(
    "odd", [{"mask": {"area_px": [10**400, 1]}}, {"height": 10**200}, {"width": -1}, {"height": True}]
)
def test_numbers_that_no_picture_has_are_counted_anew(tmp_path: Path, odd: dict[str, Any]) -> None:
    record = record_of("r_1", 1, **odd)
    write_record(tmp_path, record)
    assert facts_of(listing_of(tmp_path)) == {"r_1": Facts(2, 16, 16, counted_px(record))}
    assert run_command(["ls", str(tmp_path)]) == 0
