"""Reading from stores: what it asks for, and what it survives."""

from __future__ import annotations

import gzip
import io
import os
import random
import shlex
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from store_folders import FOREVER, MIB, PART, Shelf, noise, one_line
from store_servers import Faults, S3Bucket, quick_tries

from vshard.base import remote, remote_files
from vshard.base.errors import ShardError, StoreError
from vshard.base.pipes import Pipe, open_pipe
from vshard.base.stopping import StoppedError
from vshard.base.stores import Remote, facts, open_reading, read_file, writing_whole

pytestmark = pytest.mark.usefixtures("quick")


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
def test_reading_survives(shelf: Shelf, fault: dict[str, object]) -> None:
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
def test_reading_gives_up_in_one_line(shelf: Shelf, fault: dict[str, object], said: str, tries: int) -> None:
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


def test_a_slow_and_steady_answer_is_waited_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    put, faults = shelf
    place = put("a.bin", noise(1000))
    quick_tries(monkeypatch, silent_seconds=0.4)
    with open_reading(place) as file:
        faults.add(pause_seconds=0.08, piece_bytes=100)
        before = time.monotonic()
        assert file.read() == noise(1000)
        assert time.monotonic() - before > 0.6


def test_a_silent_store_is_left(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    put, faults = shelf
    place = put("a.bin", noise(1000))
    quick_tries(monkeypatch, silent_seconds=0.1)
    with open_reading(place) as file:
        faults.add(pause_seconds=0.6, piece_bytes=300, times=FOREVER)
        with pytest.raises(StoreError, match=r"sent 0 of 1000 bytes \(5 tries\)"):
            file.read()


def test_an_object_replaced_by_one_of_the_same_size_is_an_error(
    shelf: Shelf,
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


def test_an_answer_that_goes_on_is_left(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "a").write_bytes(noise(1000))
    for ask, asked in ((lambda: facts(place / "a"), 1), (lambda: file.read(), 1000)):
        with open_reading(place / "a") as file:
            faults.add(goes_on=True)
            with pytest.raises(StoreError, match=f"sent more than the {asked} bytes asked for") as error:
                ask()
            one_line(error)
            assert faults.coming[-1].times == 0
    assert read_file(place / "a", 1000) == noise(1000)


def test_a_compressed_answer_is_refused(web: tuple[Path, Remote, Faults]) -> None:
    root, place, faults = web
    (root / "a").write_bytes(gzip.compress(bytes(10**6)))
    faults.add(encoding="gzip", times=FOREVER)
    with pytest.raises(StoreError, match=r"compressed \(Content-Encoding: gzip\); download") as error:
        open_reading(place / "a")
    one_line(error)
    found = facts(place / "a")
    assert found is not None and found.size_bytes == len((root / "a").read_bytes())
    faults.coming.clear()
    with open_reading(place / "a") as file:
        faults.add(encoding="gzip")
        with pytest.raises(StoreError, match="Content-Encoding: gzip"):
            file.read()


def test_an_endless_redirect_is_told(web: tuple[Path, Remote, Faults]) -> None:
    _, place, faults = web
    faults.add(status=302, times=FOREVER)
    with pytest.raises(StoreError, match="/a: the server redirects without end; check the address"):
        facts(place / "a")


def python_pipe(code: str) -> Pipe:
    return Pipe(f"{shlex.quote(sys.executable)} -Sc {shlex.quote(code)}")


posix = pytest.mark.skipif(os.name == "nt", reason="the commands are written for a POSIX shell")


@posix
@pytest.mark.parametrize(("command", "code"), [("false", 1), ("no-such-program-here 2>&-", 127)])
def test_a_failed_command_is_told_and_not_what_it_left(command: str, code: int) -> None:
    with (
        pytest.raises(StoreError, match=rf"the command failed \(exit code {code}\)") as error,
        open_pipe(Pipe(command)) as file,
    ):
        raise ShardError(f"is cut off after {len(file.read())} bytes")
    one_line(error)
    assert "cut off after 0 bytes" in str(error.value.__cause__)


@posix
@pytest.mark.parametrize(
    "code", ["while True: print('x' * 9999)", "import time; time.sleep(60)", "print('xxx')"]
)
def test_a_command_that_is_ended_here_did_not_fail(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vshard.base.pipes._END_SECONDS", 0.3)
    with (
        pytest.raises(ShardError, match="not a shard"),
        open_pipe(python_pipe(code)) as raw,
        io.BufferedReader(raw) as file,  # closes it before the error is seen
    ):
        assert "sleep" in code or file.read(3) == b"xxx"
        raise ShardError("not a shard")


@posix
def test_a_stop_is_told_though_it_ends_the_command_too() -> None:
    with pytest.raises(StoppedError), open_pipe(Pipe("exit 130")) as file:
        file.read()
        raise StoppedError("stopped")


@posix
def test_what_follows_the_end_of_an_archive_is_no_failure() -> None:
    with open_pipe(Pipe("yes")) as file:  # writes on, and is ended
        assert file.read(2) == b"y\n"
    with open_pipe(Pipe("head -c 300000 /dev/zero")) as file:
        assert file.read(2) == bytes(2)
    with (
        pytest.raises(StoreError, match="exit code 3"),
        open_pipe(Pipe("head -c 300000 /dev/zero; exit 3")) as file,
    ):
        file.read(2)


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


def test_a_remote_file_is_like_any_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
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
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
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


def test_closing_ends_what_is_on_its_way(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
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
    shelf: Shelf,
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
