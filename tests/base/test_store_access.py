"""Listings of stores, the settings that lead to them, threads and forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_folders import MIB, PART, Shelf, noise, one_line
from store_servers import Faults, S3Bucket, nginx_folder

from vshard.base import remote, remote_files
from vshard.base.errors import OptionError, StoreError
from vshard.base.stores import (
    Entry,
    Remote,
    expand,
    facts,
    list_folder,
    make_place,
    open_reading,
    read_file,
    remove,
    write_whole,
)

pytestmark = pytest.mark.usefixtures("quick")


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


def test_a_web_folder_that_is_not_listed(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "d").mkdir()
    (root / "a.tar").write_bytes(b"x")
    advice = r"name the shards one by one, or by a pattern with braces \(train-\{000000\.\.000012\}\.tar\)$"
    for status in (401, 403):
        for attempt in (facts, list_folder):
            faults.add(status=status, match="/d/")
            with pytest.raises(
                StoreError, match=f"/d: the server lists no folder there, it answers {status}; {advice}"
            ) as error:
                attempt(place / "d")
            one_line(error)
        faults.add(status=status, match="/a.tar")
        with pytest.raises(
            StoreError, match=rf"a\.tar: access denied \({status}\); check the address.*{advice}"
        ):
            facts(place / "a.tar")
    with pytest.raises(StoreError, match=f"it sends application/octet-stream, not a page that.*{advice}"):
        list_folder(place / "a.tar")


def test_a_hostile_page_is_left(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "d").mkdir()

    def refusal(**fault: object) -> str:
        faults.coming.clear()
        faults.add(**fault)
        with pytest.raises(StoreError, match="/d: ") as error:
            list_folder(place / "d")
        assert faults.coming[0].times == 0
        return one_line(error)

    assert "page that lists its files has over 16 MiB" in refusal(match="/d/", goes_on=True)
    assert "compressed (Content-Encoding: gzip)" in refusal(match="/d/", encoding="gzip", page=b"x")
    assert "over 100000 links" in refusal(match="/d/", page=b"<a href='a/'>" * 100_001)
    for page in (
        b"<a " * 500_000,
        b"<a href=" * 200_000,
        b"<a href='?" * 150_000,
        b"<a " + b" href" * 300_000,
    ):
        faults.coming.clear()
        faults.add(match="/d/", page=page)
        before = time.process_time()
        assert list_folder(place / "d") == []
        assert time.process_time() - before < 2  # of the processor: others may be using it too
    faults.add(match="/d/", page=b"<A class='x'\nHREF = 'sub/' ><a x><a href='b&amp;c/'>" + b"<a " * 1000)
    assert [entry.name for entry in list_folder(place / "d")] == ["b&c", "sub"]


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
def test_a_forked_process_reads_on(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
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
