"""Words that name a folder one level too high or too low are answered with the one that is meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_record
from vshard_cli.main import run

from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of two records, as folders and in a shard."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "eval"):
        for number in range(2):
            write_record(Path("data") / split, make_record(f"{split}_{number}", frames=2, seed=number))
        pack(PackOptions((f"data/{split}",), Path("data") / split, split), Silent())
    return Path("data")


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(list(words)) == 1
    return capsys.readouterr().err.splitlines()[-1].removeprefix("vshard: error: ")


def test_a_dataset_in_place_of_a_split(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "data: holds the splits train and eval; give one of them: data/train"
    assert failure(capsys, "show", "data") == said
    assert failure(capsys, "unpack", "data", "-o", "out") == said
    assert failure(capsys, "unpack", "dat[a]", "data/train", "-o", "out") == said
    assert failure(capsys, "unpack", "pipe:cat x", "data", "--allow-pipe", "-o", "out") == said
    (data / "train").rename(data / "other")
    said = "data: holds the split eval; give that: data/eval"
    assert failure(capsys, "show", "data") == said
    assert "no such folder" in failure(capsys, "show", "nothing")
    assert "holds no record and no shard" in failure(capsys, "show", ".")
    assert "holds no shard" in failure(capsys, "unpack", ".", "-o", "out")
    (data / "other" / "train-000000.tar").rename(data / "a-000000.tar")
    assert run(["show", "data"]) == run(["unpack", "data", "-o", "out"]) == 0
    assert "records.png: 2 records of data" in capsys.readouterr().out


def test_what_is_damaged_stays_the_error_where_splits_are_too(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a-000000.tar", "b-000000.tar"):
        (data / name).write_bytes((data / "train" / "train-000000.tar").read_bytes())
    assert "record train_0 is in a-000000.tar too" in failure(capsys, "show", "data")


def test_a_split_in_place_of_the_dataset(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "data/train: is a split of a dataset; give the folder that holds train/: data"
    assert failure(capsys, "split", "-i", "data/train") == said
    assert failure(capsys, "split", "-i", "data/train/") == said
    assert "no such folder" in failure(capsys, "split", "-i", "none/train")
    assert run(["split", "-i", "data", "--eval", "3", "--dry-run"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="such names are for file systems of bytes")
def test_names_of_files_do_not_steer_the_terminal(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bad\udcff", "\x1b(0\nx"):
        odd = Path(name)
        shown = name.replace("\udcff", "\\udcff").replace("\x1b", "\\x1b").replace("\n", " ")
        assert failure(capsys, "ls", name) == f"{shown}: no such folder or file; check the path"
        assert run([name]) == run(["ls", f"--{name}", "x"]) == 2
        assert not {"\x1b", "\udcff"} & set(capsys.readouterr().err)
        (data / "train").rename(odd)
        escaped = ascii(name)[1:-1]
        for words, told in (
            (["ls", name], "2 records of"),
            (["ls", name, "data"], escaped),
            (["show", name], f"2 records of {escaped}"),
            (["unpack", f"{name}/train-000000.tar", "-o", f"{name}/x"], f"{escaped}/x: 2 records"),
        ):
            assert run(words) == 0, words
            out = capsys.readouterr().out
            assert told in out
            assert not {"\x1b", "\udcff"} & set(out)
        odd.rename(data / "train")


@pytest.mark.skipif(os.name != "posix", reason="such names are for file systems of bytes")
@pytest.mark.parametrize("coding", ["ascii", "utf-8", "utf-8:strict", "ascii:strict"])
def test_an_error_is_told_whatever_the_terminal_can_write(tmp_path: Path, coding: str) -> None:
    script = Path(sys.executable).with_name("vshard")
    result = subprocess.run(
        [script, "ls", b"\xff\x1b.tar"],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": coding},
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == b"vshard: error: \\udcff\\x1b.tar: no such folder or file; check the path\n"
