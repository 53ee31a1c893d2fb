"""What pack says: of work that is done, of doubles, of names, of a split that was made before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from making import Listening, make_record

from cli.main import vshard
from vshard.base.errors import OptionError, ShardError
from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions


def records_at(split: Path, *keys: str) -> Path:
    for key in keys:
        write_record(split, make_record(key))
    return split


def test_a_second_pack_says_that_all_is_there(tmp_path: Path) -> None:
    split = records_at(tmp_path / "train", "a_000000", "b_000000")
    options = PackOptions((str(split),), tmp_path / "out", "train", shard_records=1)
    first, second = pack(options, Silent()), pack(options, Silent())
    assert (first.made, second.made) == (2, 0)
    assert (first.records, first.shards, first.size_bytes) == (
        second.records,
        second.shards,
        second.size_bytes,
    )
    told = CliRunner().invoke(
        vshard, ["pack", str(split), "-o", str(tmp_path / "out"), "--shard-records", "1"]
    )
    assert told.exit_code == 0
    assert "there already" in told.output


def test_doubles_in_the_sources_are_told(tmp_path: Path) -> None:
    one = records_at(tmp_path / "one", "a_000000", "b_000000")
    two = records_at(tmp_path / "two", "a_000000")
    report = Listening()
    assert pack(PackOptions((str(one), str(two)), tmp_path / "out", "x"), report).records == 2
    assert any("1 records more than once" in line for line in report.said + report.warned)


def test_packing_behind_a_split_warns_of_its_records(tmp_path: Path) -> None:
    source = records_at(tmp_path / "source", "a_000000", "b_000000")
    records_at(tmp_path / "data" / "eval", "b_000000")
    report = Listening()
    pack(PackOptions((str(source),), tmp_path / "data" / "train", "train"), report)
    assert any(
        "1 of these records too, the first is b_000000" in line for line in report.said + report.warned
    )


def test_a_folders_name_that_no_shard_can_have_asks_for_one(tmp_path: Path) -> None:
    split = records_at(tmp_path / "große Stadt", "a_000000")
    told = CliRunner().invoke(vshard, ["pack", str(split), "-o", str(tmp_path / "out")])
    assert isinstance(told.exception, OptionError)
    assert "give another with --name" in str(told.exception)
    assert not (tmp_path / "out").exists()


def test_a_megabyte_is_a_shard_size(tmp_path: Path) -> None:
    split = records_at(tmp_path / "train", "a_000000")
    assert pack(PackOptions((str(split),), tmp_path / "out", "x", shard_bytes=10**6), Silent()).records == 1
    with pytest.raises(OptionError, match="--shard-size 999999: allowed is 1000000"):
        pack(PackOptions((str(split),), tmp_path / "out", "x", shard_bytes=10**6 - 1), Silent())


def test_plain_sources_need_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = records_at(tmp_path / "train", "a_000000")

    def refuse(**_options: object) -> None:
        raise AssertionError("a temporary folder was made")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert pack(PackOptions((str(split),), tmp_path / "out", "x"), Silent()).records == 1
    with pytest.raises(AssertionError):
        shard = pack(PackOptions((str(split),), tmp_path / "zst", "x", compress="zst"), Silent()).shards[0]
        pack(PackOptions((str(shard),), tmp_path / "again", "x"), Silent())


def test_damage_in_a_source_tells_of_verify(tmp_path: Path) -> None:
    split = records_at(tmp_path / "train", "a_000000")
    (shard,) = pack(PackOptions((str(split),), tmp_path / "out", "x"), Silent()).shards
    assert isinstance(shard, Path)
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="all damage: vshard verify"):
        pack(PackOptions((str(shard),), tmp_path / "again", "x"), Silent())
