"""A disk that is full or read-only: one line, nothing half-written, and the same command finishes later."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import make_record, tree
from small_disks import needs_mount, remount, small_disk
from vshard_cli.main import run

from vshard.records.record import write_record

pytestmark = needs_mount
RECORDS = 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "200m") as folder:
        yield folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number in range(RECORDS):
        write_record(tmp_path / "train", make_record(f"a_{number:06d}", seed=number, size=256))
    return tmp_path / "train"


def pack(source: Path, output: Path) -> list[str]:
    return ["pack", str(source), "-o", str(output), "--name", "s", "--shard-records", "2"]


def unpack(shards: Path, output: Path) -> list[str]:
    return ["unpack", *map(str, sorted(shards.glob("*.tar"))), "-o", str(output)]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vshard: error: ")
    return error


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_packing_and_unpacking_finish_when_there_is_room(
    disk: Path, folders: Path, tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    assert run(pack(folders, whole)) == 0
    for command, target, wanted in (
        (pack(folders, disk / "shards"), disk / "shards", whole),
        (unpack(whole, disk / "again"), disk / "again", folders),
    ):
        remount(disk, f"size={int(size_of(wanted) * share)}")
        assert "the disk is full; free some space" in refused(command, capsys)
        # Whatever has its final name is whole.
        assert tree(target).items() <= tree(wanted).items() if target.exists() else True
        remount(disk, "size=200m")
        assert run(command) == 0
        assert tree(target) == tree(wanted)
        shutil.rmtree(target)


def test_a_split_finishes_when_there_is_room(
    disk: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = disk / "data"
    assert run(pack(folders, data / "train")) == 0
    command = ["split", "-i", str(data), "--eval", "3"]
    before = tree(data / "train")
    remount(disk, f"size={int(size_of(data) * 1.1)}")
    assert "the disk is full; free some space" in refused(command, capsys)
    remount(disk, "size=200m")
    assert run(command) == 0
    capsys.readouterr()
    assert run(["ls", str(data), "--json"]) == 0
    assert run(["verify", str(data)]) == 0
    assert tree(data / "train") != before
    kept = tmp_path / "kept"
    for split in ("train", "eval"):
        assert run(unpack(data / split, kept)) == 0
    assert tree(kept) == tree(folders)


def test_a_read_only_disk_is_one_line_and_stays_as_it_is(
    disk: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = disk / "data"
    assert run(pack(folders, data / "train")) == 0
    index = next((data / "train").glob("*.idx"))
    index.write_bytes(b"{}")
    before = tree(disk)
    remount(disk, "ro")
    for command in (
        pack(folders, disk / "more"),
        unpack(data / "train", disk / "again"),
        ["split", "-i", str(data), "--eval", "3"],
        ["index", str(data / "train")],
        ["verify", str(data), "--repair"],
    ):
        assert "read-only" in refused(command, capsys).lower(), command
    assert tree(disk) == before
