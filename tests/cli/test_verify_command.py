from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import make_record
from vshard_cli.main import run

from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.index import index_place, load_index
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of three records, as folders and as shards of two."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "eval"):
        for number in range(3):
            write_record(Path("data") / split, make_record(f"{split}_{number:06d}", frames=2, seed=number))
        folder = f"data/{split}"
        pack(PackOptions((folder,), Path(folder), split, shard_records=2), Silent())
    return Path("data")


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[load_index(shard).records[1].members[1].offset + 300] ^= 1
    shard.write_bytes(content)


def test_what_is_whole_is_a_table_and_a_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_place(data / "eval" / "eval-000001.tar").unlink()
    assert run(["verify", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["records", "pictures", "size", "index"],
        ["data/train/train-000000.tar", "2", "8", *lines[1].split()[3:5], "ok"],
        ["data/train/train-000001.tar", "1", "4", *lines[2].split()[3:5], "ok"],
        ["data/eval/eval-000000.tar", "2", "8", *lines[3].split()[3:5], "ok"],
        ["data/eval/eval-000001.tar", "1", "4", *lines[4].split()[3:5], "missing"],
        ["data/train:", "3", "record", "folders", "3", "12", *lines[5].split()[6:8], "-"],
        ["data/eval:", "3", "record", "folders", "3", "12", *lines[6].split()[6:8], "-"],
    ]
    assert len({line.index("kB") for line in lines[1:-1]}) == 1
    assert lines[-1] == "4 shards, 12 records, 48 pictures: no damage"


def test_damage_is_told_with_its_place_and_mended(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / "train" / "train-000000.tar")
    (data / "eval" / "eval_000001" / "0001_M.png").unlink()
    assert run(["verify", "data/train", "data/eval"]) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    place = next(
        number for number, line in enumerate(lines) if line.startswith("data/train/train-000000.tar")
    )
    assert lines[place + 1].startswith("  train_000001/0000_C.png: damaged (wrong checksum")
    assert any(line.startswith("data/eval/eval_000001 ") for line in lines)
    assert told.err.splitlines()[-1] == (
        "vshard: error: 2 of 12 records damaged, in 1 of 4 shards and 1 of 6 record folders; mend with: "
        "vshard verify --repair data/train data/eval"
    )
    assert run(["verify", "--repair", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "data/eval/eval_000001: moved; what was damaged is in data/eval/.vshard/damaged/eval_000001; eval-000000.tar "
        "holds it whole, make it again with: vshard unpack data/eval/eval-000000.tar -o data/eval --only eval_000001",
        "data/train/train-000000.tar: written anew with 1 record; 1 record no longer in it; what was damaged is in "
        "data/train/.vshard/damaged/train-000000.tar",
    ]
    assert lines[-1] == "4 shards, 10 records, 40 pictures: no damage; 2 records had been damaged or lost"
    assert run(["verify", "data"]) == 0


def test_everything_as_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / "train" / "train-000000.tar")
    assert run(["verify", "--json", "data"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["damaged_records"], told["whole"], told["mended"]) == (12, 1, False, [])
    first = told["places"][0]
    assert (first["place"], first["form"], first["index"]) == (
        "data/train/train-000000.tar",
        "shard",
        "differs",
    )
    assert [problem["record"] for problem in first["problems"]] == ["train_000001"]
    assert run(["verify", "--json", "--repair", "data"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["whole"]
    assert [done["records"] for done in told["mended"]] == [["train_000001"]]


def test_a_shard_that_held_nothing_whole_goes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = data / "train" / "train-000001.tar"
    shard.write_bytes(b"no tar")
    assert run(["verify", "--repair", str(shard)]) == 0
    assert "removed, for it held no whole record" in capsys.readouterr().out
    assert not shard.exists()
    assert not index_place(shard).exists()
    assert run(["verify", "nothing-*.tar"]) == 1
    assert "matches no file" in capsys.readouterr().err


def test_many_damaged_records_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        write_record(tmp_path / "r", make_record(f"a_{number:06d}", frames=1, size=8))
    pack(PackOptions((str(tmp_path / "r"),), tmp_path, "a"), Silent())
    (tmp_path / "a-000000.tar").write_bytes(bytes(1024))
    assert run(["verify", str(tmp_path / "a-000000.tar")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "  … and 11 more; --json tells all"


def test_pipes_run_only_where_allowed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = f"pipe:cat {data}/train/train-000000.tar"
    assert run(["verify", pipe]) == 1
    assert "--allow-pipe" in capsys.readouterr().err
    assert run(["verify", "--allow-pipe", pipe]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 shard, 2 records, 8 pictures: no damage"


def test_no_advice_to_mend_what_a_command_writes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = data / "train" / "train-000000.tar"
    damage(shard)
    assert run(["verify", "--allow-pipe", f"pipe:cat {shard}"]) == 1
    assert "--repair" not in capsys.readouterr().err
    assert run(["verify", "--allow-pipe", f"pipe:cat {shard}", str(shard)]) == 1
    assert capsys.readouterr().err.strip().endswith(f"vshard verify --repair {shard}")


def test_names_of_strangers_are_printed_plainly(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = data / "train" / "\x1b[31m\n.tar"
    (data / "train" / "train-000000.tar").rename(odd)
    for command in ("verify", "index"):
        run([command, "data"])
        out = capsys.readouterr().out
        assert "\\x1b[31m\\n.tar" in out
        assert "\x1b" not in out


def test_indexes_are_built_and_damage_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (data / "train" / f"train-00000{number}.tar" for number in range(2))
    wanted = index_place(first).read_bytes()
    index_place(first).unlink()
    assert run(["index", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{first}: 2 records, ")
    assert [line.rpartition(", ")[2] for line in lines[:-1]] == [
        "index built",
        *["index up to date by size"] * 3,
    ]
    assert lines[-1] == "4 shards: 1 built, 3 up to date by size (`vshard verify` compares contents)"
    assert index_place(first).read_bytes() == wanted
    second.write_bytes(second.read_bytes()[:-1000])
    assert run(["index", "--force", "data"]) == 1
    told = capsys.readouterr()
    assert f"see what is wrong with: vshard verify {second}" in told.out
    assert sum("index built" in line for line in told.out.splitlines()) == 3
    assert "1 of 4 shards not indexed; the others are" in told.err
    assert run(["index", "data/train/train_000000"]) == 1
    assert "no shard" in capsys.readouterr().err
