"""Writing, facts and patterns, on the disk and in stores that may fail (``store_servers.py``)."""

from __future__ import annotations

import gc
from concurrent.futures import Future
from pathlib import Path

import pytest
from gcs_server import GcsBucket
from store_folders import FOREVER, PART, Folder, noise, one_line
from store_servers import Faults, S3Bucket

from vshard.base import remote, remote_files
from vshard.base.errors import OptionError, OutputError, StoreError
from vshard.base.stores import (
    Remote,
    expand,
    facts,
    list_folder,
    make_place,
    open_reading,
    read_file,
    remove,
    write_whole,
    writing_whole,
)

pytestmark = pytest.mark.usefixtures("quick")


def test_what_is_written_is_read(folder: Folder) -> None:
    place = folder.place / "x" / "a.bin"
    make_place(folder.place / "x")
    assert folder.names() == [] and folder.unfinished() == 0
    for size in (0, 1, PART - 1, PART, PART + 1, 3 * PART + 5):
        data = noise(size)
        write_whole(place, b"before")
        with writing_whole(place) as file:
            for start in range(0, size, 100_000):
                file.write(memoryview(data)[start : start + 100_000])
                assert file.tell() == min(start + 100_000, size)
            assert read_file(place, 100) == b"before"
        assert read_file(place, size) == data
        assert folder.names() == ["x/a.bin"] and folder.unfinished() == 0


def test_a_broken_write_leaves_what_was_there(folder: Folder) -> None:
    write_whole(folder.place / "old", b"before")
    for failure in (ValueError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "no", "other")):
        for size in (0, 10, 2 * PART + 10):
            for name in ("old", "new"):
                with pytest.raises(type(failure)) as error, writing_whole(folder.place / name) as file:
                    file.write(noise(size))
                    raise failure
                assert error.value is failure
                del file, error
    gc.collect()
    assert folder.names() == ["old"] and folder.unfinished() == 0
    assert read_file(folder.place / "old", 100) == b"before"


def test_facts_and_listings(folder: Folder) -> None:
    for name, data in (("b", b"12"), ("a", b"123"), ("a.d/c", b"1"), ("a.d/.e", b"")):
        if "/" in name:
            make_place(folder.place / "a.d")
        write_whole(folder.place / name, data)
    top = list_folder(folder.place)
    assert [(e.name, e.is_folder, e.size_bytes) for e in top] == [
        ("a", False, 3),
        ("a.d", True, 0),
        ("b", False, 2),
    ]
    assert [e.name for e in list_folder(folder.place / "a.d")] == [".e", "c"]
    for entry in (top[0], top[2]):
        assert entry.stamp and facts(folder.place / entry.name) == entry
    directory = facts(folder.place / "a.d")
    assert directory is not None and (directory.name, directory.is_folder) == ("a.d", True)
    before = facts(folder.place / "b")
    write_whole(folder.place / "b", b"34")
    assert facts(folder.place / "b") != before
    assert facts(folder.place / "none") is None and facts(folder.place / "none" / "deeper") is None
    remove(folder.place / "b")
    remove(folder.place / "b")
    assert facts(folder.place / "b") is None and "b" not in folder.names()
    for wrong in ("none", "a"):
        with pytest.raises(StoreError, match=wrong) as error:
            list_folder(folder.place / wrong)
        one_line(error)
    for missing in ("none", "a.d"):
        with pytest.raises(StoreError, match=missing):
            open_reading(folder.place / missing)
    with pytest.raises(StoreError, match="holds 3 bytes, more than the 2"):
        read_file(folder.place / "a", 2)


def test_patterns(folder: Folder) -> None:
    make_place(folder.place / "d1")
    make_place(folder.place / "d2")
    for name in ("s-0.tar", "s-1.tar", "s-1.json", ".hidden.tar", "d1/s-0.tar", "d2/s-0.tar", "d2/t", "d3"):
        write_whole(folder.place / name, b"x")

    def found(pattern: str) -> list[str]:
        prefix = f"{folder.place}/"
        return [str(place).removeprefix(prefix) for place in expand(prefix + pattern)]

    assert found("*.tar") == ["s-0.tar", "s-1.tar"]
    assert found("s-?.[jt]*") == ["s-0.tar", "s-1.json", "s-1.tar"]
    assert found("d*/s-0.tar") == ["d1/s-0.tar", "d2/s-0.tar"]
    assert found("d*/t*") == found("d*/t") == ["d2/t"]
    assert found("s-{1,0}.{json,tar}") == ["s-0.json", "s-0.tar", "s-1.json", "s-1.tar"]
    assert found("{d1,d2}/*0.tar") == ["d1/s-0.tar", "d2/s-0.tar"]
    assert found("new-{008..010}.tar") == ["new-008.tar", "new-009.tar", "new-010.tar"]
    assert found("plain") == ["plain"]
    for nothing in ("z*", "none/*", "d*/u"):
        with pytest.raises(OptionError, match="matches no file"):
            found(nothing)
    for many in ("{0..100000}", "{0..999}{0..999}", "{0..99999999999}"):
        with pytest.raises(OptionError, match="100000"):
            found(many)
    with pytest.raises(OptionError, match="other half"):
        found("{a,b")


def test_a_local_name_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "a{1,2}[b].tar").touch()
    assert expand(str(tmp_path / "a{1,2}[b].tar")) == [tmp_path / "a{1,2}[b].tar"]


def test_a_local_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "true").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "true")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    write_whole(tmp_path / "link", b"22")
    assert (tmp_path / "true").read_bytes() == b"22" and (tmp_path / "link").is_symlink()
    assert [(e.name, e.size_bytes) for e in list_folder(tmp_path)] == [("link", 2), ("true", 2)]


def test_local_refusals_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder or device"):
        write_whole(tmp_path / "folder", b"")
    with pytest.raises(OutputError, match=r"cannot write .*none"):
        write_whole(tmp_path / "none" / "a", b"")
    full = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="the disk is full") as error, writing_whole(tmp_path / "a"):
        raise full
    one_line(error)
    with pytest.raises(StoreError, match="theirs"), writing_whole(tmp_path / "a"):
        raise StoreError("theirs")
    with pytest.raises(OutputError, match="folder"):
        remove(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


UPLOAD_FAULTS = [
    {"method": "PUT", "match": "partNumber=2", "status": 500, "times": 3},
    {"method": "PUT", "match": "partNumber=2", "status": 503, "times": 1},
    {"method": "PUT", "match": "partNumber=2", "dropped": True, "times": 3},
    {"method": "PUT", "match": "partNumber=1", "dropped": True, "reset": True, "times": 2},
    {"method": "PUT", "match": "partNumber=3", "lost": True, "times": 2},
    {"method": "POST", "match": "uploads", "status": 500, "times": 2},
    {"method": "POST", "match": "uploadId", "status": 500, "times": 2},
    {"method": "POST", "match": "uploadId", "lost": True, "times": 1},
]
# What S3 says to the second try of a request whose first one ended the upload.
ENDED = {"method": "POST", "match": "uploadId", "status": 404, "times": 1}


@pytest.mark.parametrize("fault", UPLOAD_FAULTS, ids=str)
def test_an_upload_survives(s3: S3Bucket, fault: dict[str, object]) -> None:
    data = noise(2 * PART + 7)
    s3.faults.add(**fault)
    write_whole(s3.place / "a", data)
    assert s3.faults.coming[0].times == 0
    assert s3.client.get_object(Bucket=s3.place.name, Key="a")["Body"].read() == data
    assert s3.open_uploads() == 0


def test_the_end_of_an_upload_may_go_unheard(s3: S3Bucket) -> None:
    data = noise(2 * PART + 7)
    s3.faults.add(method="POST", match="uploadId", lost=True)
    s3.faults.add(**ENDED)
    write_whole(s3.place / "a", data)
    assert read_file(s3.place / "a", len(data)) == data
    s3.faults.add(**ENDED)
    with pytest.raises(StoreError, match="/a: no such object"):
        write_whole(s3.place / "a", data[::-1])
    assert read_file(s3.place / "a", len(data)) == data and s3.open_uploads() == 0


def test_an_interruption_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "wait", interrupted)
    request: Future[None] = Future()
    with pytest.raises(KeyboardInterrupt):
        remote.result_of(request)
    assert request.cancelled()


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"dropped": True}, {"status": 403}, {"lost": True}], ids=str
)
@pytest.mark.parametrize(("match", "size"), [("partNumber=2", 3 * PART), ("/a", 100)])
def test_an_upload_that_fails_leaves_nothing(
    s3: S3Bucket, fault: dict[str, object], match: str, size: int
) -> None:
    if match == "/a" and fault == {"lost": True}:
        pytest.skip("its work is done, though nobody hears of it")
    s3.client.put_object(Bucket=s3.place.name, Key="a", Body=b"before")
    s3.faults.add(method="PUT", match=match, times=FOREVER, **fault)
    with pytest.raises(StoreError, match="/a: ") as error:
        write_whole(s3.place / "a", noise(size))
    one_line(error)
    tries = FOREVER - s3.faults.coming[0].times
    assert tries == 1 if "status" in fault and fault["status"] == 403 else tries >= 5
    assert s3.client.get_object(Bucket=s3.place.name, Key="a")["Body"].read() == b"before"
    assert s3.keys() == ["a"] and s3.open_uploads() == 0


def test_an_object_of_another_size_is_found(
    s3: S3Bucket, gcs: GcsBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, place in ((remote_files._S3Parts, s3.place), (remote_files._GcsParts, gcs.place)):
        finish = kind.finish
        monkeypatch.setattr(kind, "finish", lambda self, rest, finish=finish: finish(self, rest[:3]))
        with pytest.raises(StoreError, match="holds 3 of 10 written bytes"):
            write_whole(place / "a", bytes(10))
    assert "DELETE" not in {method for method, _, _ in gcs.faults.asked}  # the upload has ended


def test_an_upload_to_google_that_fails_leaves_nothing(
    gcs: GcsBucket, caplog: pytest.LogCaptureFixture
) -> None:
    gcs.objects["a"] = b"before"
    for status, said in ((403, r"access denied \(403\)"), (400, "answers 400")):
        gcs.faults.coming.clear()
        gcs.faults.add(method="POST", match="upload_id", status=status, times=FOREVER)
        with pytest.raises(StoreError, match=f"gs://bucket/a: .*{said}"):
            write_whole(gcs.place / "a", noise(2 * PART))
    gc.collect()
    assert not caplog.records  # of tracebacks
    assert gcs.objects == {"a": b"before"} and gcs.uploads == {}


def test_the_web_is_not_written_to(web: tuple[Path, Remote, Faults]) -> None:
    _, place, faults = web
    for attempt in (lambda p: write_whole(p, b""), remove, make_place):
        with pytest.raises(StoreError, match="can only be read"):
            attempt(place / "a")
    assert not faults.asked
    with pytest.raises(StoreError, match="is a bucket"):
        remove(Remote("gs://bucket"))
