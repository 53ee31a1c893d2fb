from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from making import make_record

from vshard.base.errors import RecordError
from vshard.records.record import (
    list_record_folders,
    metadata_bytes,
    parse_metadata,
    read_folder,
    remove_record,
    write_record,
)


def test_a_folder_holds_the_record(tmp_path: Path) -> None:
    record = make_record("a_000000")
    write_record(tmp_path, record)
    assert read_folder(tmp_path / "a_000000") == record
    assert (tmp_path / "a_000000" / "meta.json").read_bytes() == record.metadata
    write_record(tmp_path, record)
    with pytest.raises(RecordError, match="is there already with other contents"):
        write_record(tmp_path, replace(make_record("a_000000", seed=1)))
    assert read_folder(tmp_path / "a_000000") == record


def test_a_record_of_the_original_has_no_metadata_and_gets_none(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a_1_0"))
    (tmp_path / "a_1_0" / "meta.json").unlink()
    record = read_folder(tmp_path / "a_1_0")
    assert record.derived
    assert parse_metadata(record.metadata, "a") == {
        "schema": "vshard.record/1", "key": "a_1_0", "derived": True, "frames": 12, "height": 32, "width": 32,
    }  # fmt: skip
    write_record(tmp_path / "again", record)
    assert sorted(p.name for p in (tmp_path / "again" / "a_1_0").iterdir()) == sorted(
        p.name for p in (tmp_path / "a_1_0").iterdir()
    )


def test_thumbnails_and_notes_are_left_out(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a_000000"))
    (tmp_path / "a_000000" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    assert [p.name for p in list_record_folders(tmp_path)] == ["a_000000"]
    assert read_folder(tmp_path / "a_000000") == make_record("a_000000")


@pytest.mark.parametrize("lost", ["0003_M.png", "0011_C.png", "0000_C.png"])
def test_unpaired_files_are_an_error(tmp_path: Path, lost: str) -> None:
    write_record(tmp_path, make_record("a_000000"))
    (tmp_path / "a_000000" / lost).unlink()
    with pytest.raises(RecordError, match="do not pair up"):
        read_folder(tmp_path / "a_000000")


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b"{}", b'{"schema": "vshard.record/9"}', b"[" * 100_000]
)
def test_bad_metadata_is_an_error(metadata: bytes) -> None:
    with pytest.raises(RecordError, match="a_000000: its metadata") as caught:
        parse_metadata(metadata, "a_000000")
    assert "\n" not in str(caught.value)


def test_a_name_that_no_shard_can_carry_is_an_error(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a_000000"))
    (tmp_path / "a_000000").rename(tmp_path / "a.b_000000")
    with pytest.raises(RecordError, match="rename the folder"):
        list_record_folders(tmp_path)


def test_metadata_is_written_one_way() -> None:
    assert metadata_bytes({"b": 1, "a": "ü"}) == '{"a": "ü", "b": 1}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        metadata_bytes({"a": float("nan")})


def test_removing(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a_000000"))
    remove_record(tmp_path, "a_000000")
    assert list_record_folders(tmp_path) == []
