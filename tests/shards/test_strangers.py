"""Folders and files of a stranger, and commands that get in each other's way."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from making import make_record
from store_servers import quick_tries, web_folder

from vshard.base.errors import OutputError, RecordError, ShardError, StoreError, VshardError
from vshard.base.fetch import local_copy
from vshard.base.report import Silent
from vshard.base.stores import list_folder, open_reading, parse_place, write_whole
from vshard.records.png import SIGNATURE, check_pixels, decode_png, recode_png
from vshard.records.record import Record, write_record
from vshard.shards import unpack as unpacking
from vshard.shards.index import index_place, load_index, read_index, scan_shard
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.unpack import UnpackOptions, unpack
from vshard.shards.write import ShardStream


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    for number in range(3):
        write_record(tmp_path / "train", make_record(f"a_{number:06d}", seed=number))
    pack(PackOptions((str(tmp_path / "train"),), tmp_path / "shards", "train"), Silent())
    return tmp_path / "shards" / "train-000000.tar"


def write_shard(path: Path, *records: Record) -> Path:
    with path.open("wb") as file:
        stream = ShardStream(file, path.name)
        for record in records:
            stream.add(record)
        stream.end()
    return path


@pytest.mark.parametrize("compress", ["none", "zst"])
def test_overwriting_does_not_remove_what_is_packed(shard: Path, compress: str) -> None:
    out = shard.parent
    if compress == "zst":
        pack(PackOptions((str(shard),), out.parent / "zst", "train", compress="zst"), Silent())
        out = out.parent / "zst"
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(OutputError, match="--overwrite would remove it first"):
        pack(PackOptions((str(out),), out, "train", shuffle=1, overwrite=True), Silent())
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_records_that_an_index_leaves_out_are_not_lost(shard: Path, tmp_path: Path) -> None:
    whole = shard.with_name(f"{shard.name}.idx").read_bytes()
    for kept in ([], [0], [1], [0, 2], [0, 1]):
        index = json.loads(whole)
        index["records"] = [index["records"][i] for i in kept]
        shard.with_name(f"{shard.name}.idx").write_text(json.dumps(index))
        assert len(load_index(shard).records) == 3
    pack(PackOptions((str(shard),), tmp_path / "again", "train"), Silent())
    assert (tmp_path / "again" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("huge", [1 << 62, 1 << 80])
def test_an_index_of_absurd_places_is_not_believed(shard: Path, huge: int) -> None:
    place = shard.with_name(f"{shard.name}.idx")
    index = json.loads(place.read_bytes())
    index["tar_bytes"] = 2 * huge
    for record in index["records"]:
        for member in record[2]:
            member[1] += huge
    place.write_text(json.dumps(index))
    assert load_index(shard) == scan_shard(shard)


def test_an_index_of_a_tar_with_extended_headers_is_believed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in make_record("a_000000").files().items():
            info = tarfile.TarInfo(f"a_000000.{name}" if name != "meta.json" else "a_000000.json")
            info.size, info.mtime = len(data), 1234.5
            tar.addfile(info, io.BytesIO(data))
    index = scan_shard(tmp_path / "pax.tar")
    write_whole(index_place(tmp_path / "pax.tar"), index.to_bytes())
    assert load_index(tmp_path / "pax.tar") == index
    place = read_index(tmp_path / "pax.tar")
    assert place is not None
    assert place == index


def test_one_key_in_two_shards_never_makes_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a_000000"
    ours, theirs = make_record(key, seed=1), make_record(key, seed=2)
    one, other = write_shard(tmp_path / "a.tar", ours), write_shard(tmp_path / "b.tar", theirs)
    for trial in range(10):
        out = tmp_path / f"out-{trial}"
        with pytest.raises(RecordError, match="is there already with other contents"):
            unpack(UnpackOptions((one, other), out, jobs=2), Silent())
        found = {path.name: path.read_bytes() for path in (out / key).iterdir()}
        assert found in (ours.files(), theirs.files())
    same = write_shard(tmp_path / "c.tar", ours)
    assert unpack(UnpackOptions((one, same), tmp_path / "same", jobs=2), Silent()) == 2


def test_two_unpacks_into_one_folder_are_refused(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = Event(), Event()
    write = unpacking.write_record

    def slow(split: Path, record: Record) -> None:
        begun.set()
        assert go_on.wait(20)
        write(split, record)

    monkeypatch.setattr(unpacking, "write_record", slow)
    options = UnpackOptions((shard,), tmp_path / "out")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(unpack, options, Silent())
        assert begun.wait(20)
        try:
            with pytest.raises(OutputError, match="another vshard is unpacking into this folder"):
                unpack(options, Silent())
        finally:
            go_on.set()
        assert first.result() == 3
    assert unpack(options, Silent()) == 3


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_of_a_stranger_lead_nowhere(shard: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "a_000000.part").mkdir(parents=True)
    (victim / "a_000000.part" / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".vshard").symlink_to(victim)
    with pytest.raises(OutputError, match="is a link to another folder"):
        unpack(UnpackOptions((shard,), tmp_path / "out"), Silent())
    assert [path.name for path in victim.rglob("*")] == ["a_000000.part", "mine"]
    (tmp_path / "rc").write_text("mine")
    (tmp_path / "index.idx.part").symlink_to(tmp_path / "rc")
    write_whole(tmp_path / "index.idx", b"index")
    assert ((tmp_path / "rc").read_text(), (tmp_path / "index.idx").read_bytes()) == ("mine", b"index")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes there")
def test_a_named_pipe_is_refused_without_waiting(shard: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(VshardError, match="is no plain file"):
        unpack(UnpackOptions((tmp_path / "pipe.tar",), tmp_path / "out"), Silent())
    with pytest.raises(StoreError, match="is no plain file"):
        open_reading(tmp_path / "pipe.tar")
    index_place(shard).unlink()  # type: ignore[union-attr]
    os.mkfifo(str(index_place(shard)))
    with pytest.raises(StoreError, match="is no plain file"):
        load_index(shard)


def test_a_web_address_cannot_choose_where_its_copy_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_tries(monkeypatch)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "clip.mp4").write_bytes(b"film")
    with web_folder(tmp_path / "served") as (place, _):
        for name in ("clip.mp4", "..%2Fserved%2Fclip.mp4", "%2E%2E%2Fserved%2Fclip.mp4"):
            try:
                with local_copy(parse_place(f"{place.url}/{name}"), Silent()) as copy:
                    assert copy.read_bytes() == b"film"
                    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
                    assert copy.parent.name.startswith("vshard-")
            except StoreError:
                assert name != "clip.mp4"
    assert sorted(entry.name for entry in list_folder(tmp_path)) == ["served"]


def test_a_record_of_endless_files_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "many.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(10_001):
            tar.addfile(tarfile.TarInfo(f"a.{number:05d}_C.png"))
    with pytest.raises(ShardError, match="10000 files"):
        unpack(UnpackOptions((tmp_path / "many.tar",), tmp_path / "out"), Silent())


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_pictures_that_confuse_a_decoder_are_one_line() -> None:
    small = chunk(b"IHDR", (8).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 1]))
    large = chunk(b"IHDR", (60000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 1]))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 9)))
    end = chunk(b"IEND", b"")
    for picture in (
        SIGNATURE + small + large + pixels + end,
        SIGNATURE + small + pixels + chunk(b"iCCP", b"\0") + end,
        SIGNATURE + small + chunk(b"PLTE", b"\0") + chunk(b"tRNS", b"") + pixels + end,
    ):
        for read in (decode_png, check_pixels, recode_png):
            try:
                read(picture, "x.png")
            except RecordError as error:
                assert "\n" not in str(error)
    with pytest.raises(RecordError, match="a second header"):
        check_pixels(SIGNATURE + small + large + pixels + end, "x.png")
