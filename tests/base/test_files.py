from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vshard.base import files
from vshard.base.errors import OutputError
from vshard.base.files import fingerprint, make_folder, part_of, write_file, write_folder
from vshard.base.stores import writing_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"one")
    part_of(path).write_bytes(b"left by a crash")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"one")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"a\.json: the disk is full"):
        write_file(path, b"two")
    with pytest.raises(OutputError, match="the disk is full"):
        write_folder(tmp_path / "key", {"0000_C.png": b"x"}, scratch=tmp_path / "scratch")
    monkeypatch.undo()
    assert path.read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "scratch"]


def test_a_folder_appears_whole_over_leftovers(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "key.part"
    left.mkdir(parents=True)
    (left / "0009_C.png").write_bytes(b"left by a crash")
    write_folder(tmp_path / "key", {"0000_C.png": b"x"}, scratch=tmp_path / "scratch")
    assert [p.name for p in (tmp_path / "key").iterdir()] == ["0000_C.png"]
    assert not left.exists()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        make_folder(tmp_path / "file" / "below")


def test_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    path = tmp_path / "big"
    data = bytearray(3_000_000)
    path.write_bytes(data)
    first = fingerprint(path)
    assert first == fingerprint(path)
    for position in (0, 1_400_000, 2_999_999):
        changed = data.copy()
        changed[position] = 1
        path.write_bytes(changed)
        assert fingerprint(path) != first
    path.write_bytes(data[:-1])
    assert fingerprint(path) != first
    path.write_bytes(b"")
    assert len(fingerprint(path)) == 16


def test_a_large_file_that_the_disk_refuses_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(handle: int) -> None:
        asked.append(handle)
        if len(asked) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "SYNC_BYTES", 1000)
    monkeypatch.setattr(files.os, "fsync", refuse)
    with (
        pytest.raises(OutputError, match="Input/output error"),
        writing_whole(tmp_path / "large.tar") as file,
    ):
        for _ in range(10):
            file.write(bytes(100_000))
    assert list(tmp_path.iterdir()) == []
    assert asked
