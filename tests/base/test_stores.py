"""Files in stores against real servers and failing ones on the loopback (``store_servers.py``)."""

from __future__ import annotations

import gc
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from store_servers import (
    Faults,
    GcsBucket,
    S3Bucket,
    gcs_bucket,
    nginx_folder,
    quick_tries,
    s3_bucket,
    web_folder,
)

from vshard.base import remote, remote_files
from vshard.base.errors import OptionError, OutputError, StoreError
from vshard.base.stores import (
    Entry,
    Place,
    Remote,
    expand,
    facts,
    list_folder,
    make_place,
    open_reading,
    parse_place,
    read_file,
    remove,
    write_whole,
    writing_whole,
)

MIB = 1 << 20
# The least that Google's resumable uploads take, and our moto.
PART = 1 << 18
FOREVER = 99


@dataclass
class Folder:
    """A place to write to, with ways to look at it that do not go through vshard."""

    place: Place
    names: Callable[[], list[str]]
    unfinished: Callable[[], int]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_tries(monkeypatch)
    monkeypatch.setattr(remote_files, "PART_BYTES", PART)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsBucket]:
    with gcs_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, Remote, Faults]]:
    with web_folder(tmp_path) as (place, faults):
        yield tmp_path, place, faults


@pytest.fixture(params=["local", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":

        def names() -> list[str]:
            return sorted(str(p.relative_to(tmp_path).as_posix()) for p in tmp_path.rglob("*") if p.is_file())

        return Folder(tmp_path, names, lambda: sum(name.endswith(".part") for name in names()))
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")
        return Folder(bucket.place, bucket.keys, bucket.open_uploads)
    store: GcsBucket = request.getfixturevalue("gcs")
    return Folder(store.place, lambda: sorted(store.objects), lambda: len(store.uploads))


@pytest.fixture(params=["s3", "web"])
def shelf(request: pytest.FixtureRequest) -> tuple[Callable[[str, bytes], Remote], Faults]:
    """Put a file into a store behind vshard's back, and the faults of reading it."""
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")

        def put(name: str, data: bytes) -> Remote:
            bucket.client.put_object(Bucket=bucket.place.name, Key=name, Body=data)
            return bucket.place / name

        return put, bucket.faults
    root, place, faults = request.getfixturevalue("web")

    def lay(name: str, data: bytes) -> Remote:
        (root / name).write_bytes(data)
        return place / name

    return lay, faults


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a/b.tar", Path("a/b.tar")),
        ("s3:b", Path("s3:b")),
        ("a::b", Path("a::b")),
        ("./pipe:x", Path("pipe:x")),
        ("C:\\clips\\a.mp4", Path("C:\\clips\\a.mp4")),
        ("file:///x/a%20b", Path("/x/a b")),
        ("file://localhost/x", Path("/x")),
        ("s3://b/k/", Remote("s3://b/k")),
        ("S3://b/K", Remote("s3://b/K")),
        ("gs://b", Remote("gs://b")),
        ("gcs://b/k", Remote("gcs://b/k")),
        ("s3://b/a::b?c", Remote("s3://b/a::b?c")),
        ("http://h:1/x/", Remote("http://h:1/x")),
        ("https://h/x/?X-Amz-Signature=a/b", Remote("https://h/x?X-Amz-Signature=a/b")),
    ],
)
def test_a_url_is_told_from_a_path(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pipe:cat x", "--allow-pipe"),
        ("ftp://h/x", "s3://"),
        ("zip://a.zip::s3://b/x", "s3://"),
        ("simplecache::s3://b/x", "chained"),
        ("s3://", "no bucket"),
        ("gs:///x", "no bucket"),
        ("http://?x", "no server"),
        ("file://other/x", "another machine"),
    ],
)
def test_other_schemes_are_refused(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        parse_place(text)
    one_line(error)


def test_names_are_taken_apart_and_put_together() -> None:
    place = Remote("s3://b/x/a ?%.tar")
    assert (place.name, place.parent, place.parent / place.name) == ("a ?%.tar", Remote("s3://b/x"), place)
    assert place.with_name("c") == Remote("s3://b/x/c")
    assert Remote("gs://b").parent == Remote("gs://b") and Remote("gs://b").name == "b"
    page = Remote("https://h/x") / "a ?%.tar"
    assert page.url == "https://h/x/a%20%3F%25.tar"
    assert (page.name, page.parent) == ("a ?%.tar", Remote("https://h/x"))


def test_a_signature_is_kept_and_not_shown() -> None:
    place = Remote("https://me:PASSWORD@h/x/a.tar?sig=SECRET/%2F")
    for shown in (place, place.parent, place / "b", place.with_name("a.json")):
        assert "SECRET" not in f"{shown} {shown!r}" and "PASSWORD" not in f"{shown} {shown!r}"
        assert shown.url.endswith("?sig=SECRET/%2F") and "me:PASSWORD@h" in shown.url
    assert place.name == "a.tar" and str(place) == "https://h/x/a.tar"
    assert place.with_name("a.json").url == "https://me:PASSWORD@h/x/a.json?sig=SECRET/%2F"


def test_importing_loads_no_store() -> None:
    code = "import sys, vshard.base.stores; print(*{'fsspec', 'aiohttp', 's3fs', 'gcsfs'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b""


# --- writing, on the disk and in stores -----------------------------------------------------------------------------


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


# --- the disk --------------------------------------------------------------------------------------------------------


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


# --- writing through faults ------------------------------------------------------------------------------------------

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


# --- reading through faults ------------------------------------------------------------------------------------------

PASSING = [
    {"cut_after": 3},
    {"cut_after": 70_000, "reset": True},
    {"cut_after": 0},
    {"status": 500},
    {"status": 503},
    {"status": 429},
    {"dropped": True},
    {"dropped": True, "reset": True},
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_reading_survives(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], fault: dict[str, object]
) -> None:
    put, faults = shelf
    data = noise(200_000)
    place = put("a.bin", data)
    with open_reading(place) as file:
        faults.add(times=3, **fault)
        assert file.read() == data
        assert faults.coming[0].times == 0


@pytest.mark.parametrize(
    ("fault", "said", "tries"),
    [
        ({"cut_after": 3}, r"sent 3 of 200000 bytes \(5 tries\)", 5),
        ({"status": 500}, r"answers 500 \(5 tries\)", 5),
        ({"dropped": True}, r"not reachable: .* \(5 tries\)", 5),
        ({"status": 403}, r"access denied \(403\)", 1),
        ({"status": 404}, "no such object", 1),
        ({"status": 400}, "answers 400", 1),
        ({"etag": "another"}, "changed while it was read", 1),
    ],
)
def test_reading_gives_up_in_one_line(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], fault: dict[str, object], said: str, tries: int
) -> None:
    put, faults = shelf
    place = put("a.bin", noise(200_000))
    with open_reading(place) as file:
        faults.add(times=FOREVER, **fault)
        with pytest.raises(StoreError, match=f"a.bin: .*{said}") as error:
            file.read()
        one_line(error)
        # aiohttp repeats a request by itself when the server hangs up without a word.
        assert FOREVER - faults.coming[0].times == tries * (2 if "dropped" in fault else 1)
        faults.coming.clear()
        if tries == 5:
            file.seek(0)
            assert file.read() == noise(200_000)


def test_a_slow_and_steady_answer_is_waited_for(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, faults = shelf
    place = put("a.bin", noise(1000))
    quick_tries(monkeypatch, silent_seconds=0.4)
    with open_reading(place) as file:
        faults.add(pause_seconds=0.08, piece_bytes=100)
        before = time.monotonic()
        assert file.read() == noise(1000)
        assert time.monotonic() - before > 0.6


def test_a_silent_store_is_left(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, faults = shelf
    place = put("a.bin", noise(1000))
    quick_tries(monkeypatch, silent_seconds=0.1)
    with open_reading(place) as file:
        faults.add(pause_seconds=0.6, piece_bytes=300, times=FOREVER)
        with pytest.raises(StoreError, match=r"sent 0 of 1000 bytes \(5 tries\)"):
            file.read()


def test_an_object_replaced_by_one_of_the_same_size_is_an_error(
    shelf: tuple[Callable[[str, bytes], Remote], Faults],
) -> None:
    put, _ = shelf
    with open_reading(put("a", noise(2 * MIB))) as file:
        assert file.read(1000) == noise(2 * MIB)[:1000]
        put("a", noise(2 * MIB, seed=1))
        with pytest.raises(StoreError, match="changed while it was read"):
            file.read()
    with open_reading(put("a", noise(2 * MIB))) as file:
        put("a", b"short")
        file.seek(MIB)
        with pytest.raises(StoreError, match="changed while it was read"):
            file.read()


def test_a_server_without_ranges_is_found_out_early(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "a").write_bytes(bytes(8 * MIB))
    faults.add(ignore_range=True, pause_seconds=0.1, times=FOREVER)
    before = time.monotonic()
    with pytest.raises(StoreError, match="ignores Range.*; download the file first") as error:
        open_reading(place / "a")
    one_line(error)
    assert time.monotonic() - before < 2
    faults.coming[0].times = 0
    with open_reading(place / "a") as file:
        faults.coming[0].times = FOREVER
        with pytest.raises(StoreError, match="ignores Range"):
            file.read()
    (root / "empty").touch()
    assert read_file(place / "empty", 0) == b""


def test_no_message_holds_a_signature(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "a").write_bytes(bytes(100_000))
    signed = Remote((place / "a").url.replace("//", "//me:SECRET@") + "?sig=SECRET%2Fx&b=c d")
    assert read_file(signed, 100_000) == bytes(100_000)
    assert {path for _, path, _ in faults.asked} == {"/a?sig=SECRET%2Fx&b=c%20d"}
    final = [{"status": 403}, {"status": 405}, {"status": 404}, {"status": 302}, {"ignore_range": True}]
    for fault in (*PASSING, *final):
        faults.coming.clear()
        faults.add(times=FOREVER, **fault)
        with pytest.raises(StoreError, match="/a: ") as error:
            open_reading(signed).read()
        assert "SECRET" not in one_line(error)
    for unreachable in (
        "http://127.0.0.1:1/a?sig=SECRET",
        "http://no.invalid/a?sig=SECRET",
        "http://[/a?sig=SECRET",
    ):
        with pytest.raises(StoreError) as error:
            facts(Remote(unreachable))
        assert "SECRET" not in one_line(error)


# --- reading by ranges -----------------------------------------------------------------------------------------------


def test_a_remote_file_is_like_any_other(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", 900)
    monkeypatch.setattr(remote_files, "SMALL_BYTES", 70)
    data = noise(5000)
    chance = random.Random(3)
    with open_reading(shelf[0]("a", data)) as file, io.BytesIO(data) as clear:
        for step in range(150):
            if chance.random() < 0.5:
                whence = chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
                offset = {os.SEEK_SET: clear.tell(), os.SEEK_CUR: 0, os.SEEK_END: clear.tell() - len(data)}[
                    whence
                ]
                move = offset + chance.randrange(-min(clear.tell(), 400), 400)
                assert file.seek(move, whence) == clear.seek(move, whence)
            length = chance.choice([0, 1, 50, 300, 2000, -1 if step % 10 == 0 else 5])
            assert file.read(length) == clear.read(length)
            assert file.tell() == clear.tell()
        with pytest.raises(ValueError, match="seek"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_reading_on_asks_for_each_byte_once_and_holds_two_blocks(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, faults = shelf
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", MIB)
    place = put("a", bytes(16 * MIB))
    read_file(put("small", b"x"), 1)  # the package loads
    faults.asked.clear()
    with open_reading(place) as file:
        tracemalloc.start()
        total = 0
        while total < 300_000:
            total += len(file.read(10_000))
        for _ in range(200):  # the next block is asked for before it is needed
            if len(faults.asked_bytes()) == 3:
                break
            time.sleep(0.01)
        assert len(faults.asked_bytes()) == 3
        while piece := file.read(10_000):
            total += len(piece)
        # The servers answer from this process too.
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, remote.__file__)])
        tracemalloc.stop()
    assert total == 16 * MIB
    lengths = faults.asked_bytes()
    assert sum(lengths) == 16 * MIB and max(lengths) == MIB and len(lengths) == 17
    assert sum(trace.size for trace in ours.traces) < 3.5 * MIB


def test_closing_ends_what_is_on_its_way(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, faults = shelf
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", PART)
    with open_reading(put("a", noise(MIB))) as file:
        file.read(10)
        faults.add()
        faults.add(pause_seconds=0.2, times=FOREVER)
        file.read(PART)
        assert isinstance(file, remote_files.RemoteFile) and file._ahead is not None
        on_its_way = file._ahead[3]
        assert not on_its_way.done()
    assert on_its_way.cancelled()


def test_reading_here_and_there_asks_for_little(
    shelf: tuple[Callable[[str, bytes], Remote], Faults],
) -> None:
    put, faults = shelf
    data = noise(12 * MIB)
    with open_reading(put("a", data)) as file:
        for position in (11 * MIB, 5 * MIB, 5 * MIB + 3000, 0, 8 * MIB, 8 * MIB + 2 * MIB):
            file.seek(position)
            assert file.read(512) == data[position : position + 512]
        assert faults.asked_bytes() == [remote_files.SMALL_BYTES] * 5
        file.seek(3 * MIB)
        assert file.read(MIB) == data[3 * MIB : 4 * MIB]
        assert faults.asked_bytes()[5:] == [MIB]


def test_a_tar_is_listed_by_its_headers(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "PART_BYTES", 2 * MIB)
    with writing_whole(s3.place / "a.tar") as raw, tarfile.open(fileobj=raw, mode="w") as tar:
        for number in range(6):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = MIB
            tar.addfile(member, io.BytesIO(noise(MIB, number)))
    s3.faults.asked.clear()
    with open_reading(s3.place / "a.tar") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        assert tar.getnames() == [f"{number}.bin" for number in range(6)]
        assert sum(s3.faults.asked_bytes()) < 2.5 * MIB
        member_file = tar.extractfile("4.bin")
        assert member_file is not None and member_file.read() == noise(MIB, 4)


# --- listings --------------------------------------------------------------------------------------------------------


def test_an_s3_folder_lists_only_names(s3: S3Bucket) -> None:
    for key in ("d/", "d/a", "d/../b", "d/sub/", "d/a\\b"):
        s3.client.put_object(Bucket=s3.place.name, Key=key, Body=b"")
    assert [entry.name for entry in list_folder(s3.place / "d")] == ["a", "sub"]
    s3.faults.add(status=403, match="list-type")
    with pytest.raises(StoreError, match=r"access denied \(403\)"):
        list_folder(s3.place / "d")


def test_a_missing_bucket_is_named(monkeypatch: pytest.MonkeyPatch, s3: S3Bucket) -> None:
    missing = Remote("s3://no-such-bucket-here")
    assert facts(missing) is None and facts(missing / "k") is None
    for attempt in (list_folder, make_place, lambda place: write_whole(place / "k", b"")):
        with pytest.raises(StoreError, match="s3://no-such-bucket-here.*: no such bucket") as error:
            attempt(missing)
        one_line(error)


ODD_NAMES = ["a b.tar", "a&b;c.tar", "50%.tar", "a%20b", "ü.tar", "q?x=1", "h#1", "plus+.tar", "emp;ty"]


def check_web_listing(root: Path, place: Remote) -> None:
    inside = root / "in side"
    (inside / "sub").mkdir(parents=True)
    for number, name in enumerate(ODD_NAMES):
        (inside / name).write_bytes(bytes(number))
    entries = list_folder(place / "in side")
    expected = sorted([*((name, False, number) for number, name in enumerate(ODD_NAMES)), ("sub", True, 0)])
    assert [(e.name, e.is_folder, e.size_bytes) for e in entries] == expected
    for entry in entries:
        found = facts(place / "in side" / entry.name)
        assert found is not None and (found.size_bytes, found.is_folder) == (
            entry.size_bytes,
            entry.is_folder,
        )
        if not entry.is_folder:
            assert entry == found and entry.stamp
            assert read_file(place / "in side" / entry.name, 100) == bytes(entry.size_bytes)
    assert facts(place / "none") is None
    with pytest.raises(StoreError, match="none: no such object"):
        list_folder(place / "none")


def test_a_web_folder_is_listed(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    check_web_listing(root, place)
    (root / "file").write_bytes(b"x")
    (root / "file.d").mkdir()
    with pytest.raises(StoreError, match="not a page that lists files"):
        list_folder(place / "file")
    before = faults.connections
    faults.add(pause_seconds=0.01, times=30)
    for _ in range(10):
        assert facts(place / "file") is not None
        assert read_file(place / "file", 10) == b"x"
    assert faults.connections <= before + 1
    faults.coming.clear()
    signed = Remote((place / "in side").url + "?sig=x")
    faults.asked.clear()
    assert [entry.name for entry in list_folder(signed)] == sorted([*ODD_NAMES, "sub"])
    assert all(path.endswith("?sig=x") for _, path, _ in faults.asked)


def test_web_patterns_are_braces(web: tuple[Path, Remote, Faults]) -> None:
    _, place, faults = web
    assert expand(f"{place}/a-{{1,0}}.tar?x={{1}}") == [Remote(f"{place}/a-{n}.tar?x={{1}}") for n in "01"]
    assert not faults.asked
    with pytest.raises(OptionError, match="web server"):
        expand(f"{place}/*.tar")


def test_nginx(tmp_path: Path) -> None:
    scratch, root = tmp_path / "nginx", tmp_path / "root"
    scratch.mkdir()
    root.mkdir()
    data = noise(20 * MIB)
    (root / "big").write_bytes(data)
    with nginx_folder(root, scratch) as place:
        check_web_listing(root, place)
        with open_reading(place / "big") as file:
            assert file.read() == data
            file.seek(-10, os.SEEK_END)
            assert file.read(20) == data[-10:]


# --- settings, threads, forks ----------------------------------------------------------------------------------------


def test_the_environment_leads_to_the_store(monkeypatch: pytest.MonkeyPatch, s3: S3Bucket) -> None:
    write_whole(s3.place / "a", b"x")
    true_address = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"not reachable: .*127\.0\.0\.1:1"):
        facts(s3.place / "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", true_address)
    assert facts(s3.place / "a") is not None


def test_absent_credentials_are_told(monkeypatch: pytest.MonkeyPatch, s3: S3Bucket, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no credentials found; set AWS_ACCESS_KEY_ID") as error:
        read_file(s3.place / "a", 10)
    one_line(error)
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(
        "[mine]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert facts(s3.place / "a") is None
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StoreError, match="other"):
        facts(s3.place / "a")


@pytest.mark.parametrize(
    ("url", "package"), [("s3://b/k", "s3fs"), ("gs://b/k", "gcsfs"), ("http://h/k", "aiohttp")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setattr(remote, "_connected", {})
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.core", None)
    with pytest.raises(StoreError, match=f"needs the package {package} .*: pip install '{package}'") as error:
        read_file(Remote(url), 10)
    one_line(error)


def test_threads_work_at_once(s3: S3Bucket, web: tuple[Path, Remote, Faults]) -> None:
    root, place, _ = web
    (root / "shared").write_bytes(noise(MIB))
    together = threading.Barrier(8)

    def work(number: int) -> bool:
        together.wait(20)
        data = noise(2 * PART + number, number)
        write_whole(s3.place / f"{number}", data)
        same = read_file(s3.place / f"{number}", MIB) == data and read_file(place / "shared", MIB) == noise(
            MIB
        )
        remove(s3.place / f"{number}")
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert s3.keys() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_reads_on(
    shelf: tuple[Callable[[str, bytes], Remote], Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, faults = shelf
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", MIB)
    data = noise(3 * MIB)
    place = put("a", data)
    with open_reading(place) as file:
        assert file.read(10) == data[:10]
        faults.add()
        faults.add(pause_seconds=0.05)
        assert file.read(300_000) == data[10:300_010]  # the next block is on its way, slowly
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if file.read() == data[300_010:] and read_file(place, 3 * MIB) == data else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        assert file.read() == data[300_010:]
    assert facts(place) == Entry("a", False, 3 * MIB, facts(place).stamp)
