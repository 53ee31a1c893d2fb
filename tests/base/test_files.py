from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vshard.base import files
from vshard.base.errors import OutputError
from vshard.base.files import (
    check_folder,
    check_output,
    fingerprint,
    make_folder,
    part_of,
    write_file,
    write_folder,
)
from vshard.base.stores import writing_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"one")
    part_of(path).write_bytes(b"left by a crash")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="links need no right there")
def test_a_link_is_followed_and_one_that_leads_nowhere_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.json")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("link", "circle"):
        write_file(tmp_path / name, b"one")
        assert (tmp_path / name).read_bytes() == b"one"
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "circle").is_symlink()


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


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="may write everywhere")
def test_a_folder_that_nothing_can_be_put_into_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for check in (check_folder, check_output):
        with pytest.raises(OutputError, match="permission denied"):
            check(tmp_path / "a")
    tmp_path.chmod(0o700)


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_output(tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []
    for wrong in (tmp_path, tmp_path / "no" / "a.pth"):
        with pytest.raises(OutputError):
            check_output(wrong)


def test_trying_a_folder_leaves_what_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".vshard-write-test").symlink_to(outside)
    (folder / ".vshard-write-test-mine").write_bytes(b"mine")
    assert make_folder(folder) == folder
    assert not outside.exists()
    assert (folder / ".vshard-write-test").is_symlink()
    assert sorted(p.name for p in folder.iterdir()) == [".vshard-write-test", ".vshard-write-test-mine"]


@pytest.mark.skipif(os.name != "posix", reason="always so elsewhere")
def test_where_no_file_is_without_a_name_a_new_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    folder.mkdir()
    names = iter(["taken", "free"])
    monkeypatch.setattr("tempfile._O_TMPFILE_WORKS", False)
    monkeypatch.setattr("tempfile._get_candidate_names", lambda: names)
    (folder / ".vshard-write-test-taken").symlink_to(outside)
    make_folder(folder)
    assert next(names, None) is None
    assert not outside.exists()
    assert [p.name for p in folder.iterdir()] == [".vshard-write-test-taken"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="may write everywhere")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        make_folder(tmp_path)
    tmp_path.chmod(0o700)


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
