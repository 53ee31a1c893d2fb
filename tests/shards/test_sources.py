"""Packing from everything that holds records, to everywhere, in every way; stopping and going on."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import Listening, make_record, tree
from PIL import Image
from store_servers import S3Bucket, quick_tries, s3_bucket, web_folder

from vshard.base.errors import DatasetError, OutputError, RecordError, ShardError, StoreError
from vshard.base.report import Silent
from vshard.records.png import decode_png
from vshard.records.record import list_record_folders, parse_metadata, read_folder, write_record
from vshard.shards import pack as module
from vshard.shards.index import ShardIndex, load_index, scan_shard
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.unpack import UnpackOptions, unpack
from vshard.shards.write import ShardStream

SHARD_BYTES = 1 << 20


def keys(shards: list[Path]) -> list[list[str]]:
    return [[record.key for record in scan_shard(shard).records] for shard in shards]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "train"
    for number in range(7):
        write_record(root, make_record(f"a_{number:06d}", seed=number, size=96))
    return root


def packed(output: Path, *sources: Path, **options: object) -> list[Path]:
    texts = tuple(map(str, sources))
    arguments = {"name": "train", "shard_bytes": SHARD_BYTES} | options
    pack(PackOptions(texts, output, **arguments), Silent())  # type: ignore[arg-type]
    return sorted(path for path in output.iterdir() if ".tar" in path.name and path.suffix != ".idx")


def test_shards_are_repacked_to_another_size_and_back(folders: Path, tmp_path: Path) -> None:
    small = packed(tmp_path / "small", folders)
    (large,) = packed(tmp_path / "large", tmp_path / "small", shard_bytes=10**9)
    assert keys([large]) == [[f"a_{n:06d}" for n in range(7)]]
    assert tree(tmp_path / "small") == tree_of(packed(tmp_path / "again", large))
    by_count = packed(tmp_path / "by_count", *small, shard_records=3, shard_bytes=10**9)
    assert [len(shard) for shard in keys(by_count)] == [3, 3, 1]


def tree_of(shards: list[Path]) -> dict[str, bytes]:
    return tree(shards[0].parent)


def test_folders_and_shards_are_packed_together_and_doubles_once(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "half")
    some = packed(tmp_path / "some", tmp_path / "half")
    for number in (0, 1, 2):
        shutil.rmtree(tmp_path / "half" / f"a_{number:06d}")
    together = packed(tmp_path / "out", tmp_path / "half", *some)
    assert tree_of(together) == tree(tmp_path / "some")
    picture = tmp_path / "half" / "a_000005" / "0000_M.png"
    picture.write_bytes((folders / "a_000006" / "0000_M.png").read_bytes())
    with pytest.raises(DatasetError, match=r"a_000005 is in .* too, with other contents"):
        packed(tmp_path / "other", tmp_path / "half", *some)


def test_shards_beside_folders_are_left_out_with_a_word(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "train")
    packed(tmp_path / "train", folders)
    shutil.rmtree(tmp_path / "train" / "a_000004")
    report = Listening()
    pack(PackOptions((str(tmp_path / "train"),), tmp_path / "out", "train"), report)
    assert keys([tmp_path / "out" / "train-000000.tar"])[0].count("a_000004") == 0
    (warning,) = report.warned
    assert "1 records of its shards have no folder there" in warning
    packed(tmp_path / "all", tmp_path / "train", tmp_path / "train" / "*.tar")
    assert tree(tmp_path / "all") == {
        k: v for k, v in tree(tmp_path / "train").items() if k.startswith("train-")
    }


def test_the_originals_records_get_metadata_that_says_it_was_derived(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "train")
    for path in (tmp_path / "train").rglob("meta.json"):
        path.unlink()
    (shard, *_) = packed(tmp_path / "shards", tmp_path / "train")
    with tarfile.open(shard) as tar:
        member = tar.extractfile("a_000000.json")
        assert member is not None
        metadata = parse_metadata(member.read(), "a")
    assert metadata["derived"] is True
    assert (metadata["frames"], metadata["height"], metadata["width"]) == (12, 96, 96)
    repacked = packed(tmp_path / "again", tmp_path / "shards")
    unpack(UnpackOptions(tuple(repacked), tmp_path / "back"), Silent())
    assert tree(tmp_path / "back") == tree(tmp_path / "train")


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), jobs=st.integers(1, 5), records=st.integers(1, 8))
def test_packing_is_a_function_of_its_input(
    folders: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, jobs: int, records: int
) -> None:
    root = tmp_path_factory.mktemp("function")
    one = packed(root / "one", folders, shuffle=seed, shard_records=records)
    shutil.copytree(folders, root / "elsewhere")
    other = packed(root / "other", root / "elsewhere", shuffle=seed, shard_records=records, jobs=jobs)
    assert tree_of(one) == tree_of(other)
    order = [key for shard in keys(one) for key in shard]
    assert sorted(order) == [f"a_{n:06d}" for n in range(7)]
    assert all(len(shard) <= records for shard in keys(one))


def test_seeds_shuffle_differently(folders: Path, tmp_path: Path) -> None:
    orders = {
        tuple(keys(packed(tmp_path / str(seed), folders, shuffle=seed, shard_bytes=10**9))[0])
        for seed in range(5)
    }
    assert len(orders) == 5


def test_compressed_shards_are_read_by_stock_tools_and_packed_again(folders: Path, tmp_path: Path) -> None:
    plain = packed(tmp_path / "plain", folders)
    zst = packed(tmp_path / "zst", folders, compress="zst", jobs=2)
    assert [path.name for path in zst] == [f"{path.name}.zst" for path in plain]
    for one, other in zip(plain, zst, strict=True):
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(other.read_bytes())).read()
        assert data == one.read_bytes()
        index = load_index(other)
        assert (index.size_bytes, index.tar_bytes) == (other.stat().st_size, len(data))
        assert index.records == load_index(one).records
        assert scan_shard(other) == index
    assert packed(tmp_path / "back", tmp_path / "zst")
    assert tree(tmp_path / "back") == tree(tmp_path / "plain")
    unpack(UnpackOptions(tuple(zst), tmp_path / "folders"), Silent())
    assert tree(tmp_path / "folders") == tree(folders)


def test_a_compressed_shard_that_is_cut_or_a_bomb_is_refused(folders: Path, tmp_path: Path) -> None:
    (shard, *_) = packed(tmp_path / "zst", folders, compress="zst", shard_bytes=10**9)
    for size in (0, 3, 1000, shard.stat().st_size // 2):
        cut = tmp_path / "cut.tar.zst"
        cut.write_bytes(shard.read_bytes()[:size])
        with pytest.raises(ShardError, match=r"cut\.tar\.zst"):
            unpack(UnpackOptions((cut,), tmp_path / "out"), Silent())
    record = make_record("a_000000")
    sink = io.BytesIO()
    stream = ShardStream(sink, "plain.tar")
    stream.add(record)
    # Behind the records a gigabyte of a member that claims to be a picture.
    info = tarfile.TarInfo("b_000000.0000_C.png")
    info.size = 1 << 28
    packer = zstandard.ZstdCompressor().compressobj()
    bomb = packer.compress(sink.getvalue() + info.tobuf(tarfile.USTAR_FORMAT))
    for _ in range(256):
        bomb += packer.compress(bytes(1 << 20))
    (tmp_path / "bomb.tar.zst").write_bytes(bomb + packer.flush())
    assert (tmp_path / "bomb.tar.zst").stat().st_size < 100_000
    with pytest.raises(ShardError, match="times its size"):
        unpack(UnpackOptions((tmp_path / "bomb.tar.zst",), tmp_path / "bombed"), Silent())


def pillow_record(folder: Path, modes: list[str]) -> None:
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    for number in range(12):
        image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        image.convert(modes[number % len(modes)]).save(folder / f"{number:04d}_C.png")
        Image.fromarray((rng.random((40, 40)) > 0.5).astype(np.uint8) * 255).save(
            folder / f"{number:04d}_M.png"
        )


def test_recoding_keeps_pixels_and_what_is_ours(folders: Path, tmp_path: Path) -> None:
    pillow_record(tmp_path / "theirs" / "b_000000", ["RGB", "P", "L"])
    (shard,) = packed(tmp_path / "out", tmp_path / "theirs", folders, recode=True, shard_bytes=10**9)
    unpack(UnpackOptions((shard,), tmp_path / "back"), Silent())
    assert {k: v for k, v in tree(tmp_path / "back").items() if k.startswith("a_")} == tree(folders)
    for path in (tmp_path / "theirs" / "b_000000").iterdir():
        recoded = (tmp_path / "back" / "b_000000" / path.name).read_bytes()
        assert recoded != path.read_bytes()
        assert np.array_equal(decode_png(recoded, "x"), decode_png(path.read_bytes(), "x"))
        with Image.open(io.BytesIO(recoded)) as ours, Image.open(path) as theirs:
            assert np.array_equal(np.array(ours), np.array(theirs.convert(ours.mode)))
    pillow_record(tmp_path / "alpha" / "c_000000", ["RGBA"])
    (shard,) = packed(tmp_path / "kept", tmp_path / "alpha", recode=True)
    frame = (tmp_path / "alpha" / "c_000000" / "0003_C.png").read_bytes()
    assert frame in shard.read_bytes()


class Stop(BaseException):
    """The user stops the work, or the system does."""


@pytest.mark.parametrize("after", range(4))
def test_a_stopped_pack_is_finished_by_the_same_command(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = tree_of(packed(tmp_path / "whole", folders, shard_records=2))
    made: list[str] = []
    limit = after
    write_index = module.write_index

    def counting(shard: Path, index: ShardIndex) -> None:
        if len(made) == limit:
            raise Stop
        made.append(shard.name)
        write_index(shard, index)

    monkeypatch.setattr(module, "write_index", counting)
    with pytest.raises(Stop):
        packed(tmp_path / "out", folders, shard_records=2)
    assert tree(tmp_path / "out") == {}
    limit = 99
    packed(tmp_path / "out", folders, shard_records=2)
    assert tree(tmp_path / "out") == whole
    assert len(made) == len(set(made)) == len(whole) // 2
    assert [path.name for path in (tmp_path / "out" / ".vshard").rglob("*")] == ["pack.lock"]


def test_a_stopped_pack_begins_anew_when_a_source_has_changed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders, tmp_path / "train")

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "_move_in", stop)
        with pytest.raises(Stop):
            packed(tmp_path / "out", tmp_path / "train")
    shutil.rmtree(tmp_path / "train" / "a_000002")
    write_record(tmp_path / "train", make_record("a_000002", seed=77, size=96))
    assert tree_of(packed(tmp_path / "out", tmp_path / "train")) == tree_of(
        packed(tmp_path / "fresh", tmp_path / "train")
    )


def test_other_shards_are_replaced_only_when_asked(folders: Path, tmp_path: Path) -> None:
    packed(tmp_path / "out", folders)
    with pytest.raises(OutputError, match="--overwrite"):
        packed(tmp_path / "out", folders, shard_records=2)
    (tmp_path / "out" / "train-000000.tar.notes").write_text("mine")
    packed(tmp_path / "out", folders, shard_records=2, overwrite=True)
    assert [len(shard) for shard in keys(sorted((tmp_path / "out").glob("*.tar")))] == [2, 2, 2, 1]
    assert (tmp_path / "out" / "train-000000.tar.notes").exists()
    with pytest.raises(OutputError, match=r"train-000000\.tar: holds record a_000000 already"):
        packed(tmp_path / "out", folders, name="second")


def test_names_that_differ_only_by_case_are_refused(tmp_path: Path) -> None:
    for key in ("Walk_000000", "walk_000000"):
        write_record(tmp_path / "train", make_record(key))
    if len(list_record_folders(tmp_path / "train")) == 2:
        with pytest.raises(DatasetError, match="differ only by case"):
            packed(tmp_path / "out", tmp_path / "train")
    with (tmp_path / "case.tar").open("wb") as file:
        stream = ShardStream(file, "case.tar")
        for key in ("Walk_000000", "walk_000000"):
            stream.add(make_record(key))
        stream.end()
    with pytest.raises(ShardError, match="differs from Walk_000000 only by case"):
        unpack(UnpackOptions((tmp_path / "case.tar",), tmp_path / "back"), Silent())


@pytest.mark.parametrize("indexed", [True, False])
def test_only_some_records_are_unpacked(folders: Path, tmp_path: Path, indexed: bool) -> None:
    shards = packed(tmp_path / "shards", folders)
    if not indexed:
        for shard in shards:
            shard.with_name(f"{shard.name}.idx").unlink()
    assert unpack(UnpackOptions(tuple(shards), tmp_path / "some", only="*_00000[25]"), Silent()) == 2
    assert tree(tmp_path / "some") == {
        name: data for name, data in tree(folders).items() if name.split("/")[0] in ("a_000002", "a_000005")
    }
    with pytest.raises(DatasetError, match="no record of these shards is named so"):
        unpack(UnpackOptions(tuple(shards), tmp_path / "none", only="b*"), Silent())
    assert not (tmp_path / "none").exists()


def test_an_index_that_lies_gives_an_error_and_no_wrong_record(folders: Path, tmp_path: Path) -> None:
    (shard, *_) = packed(tmp_path / "shards", folders, shard_bytes=10**9)
    place = shard.with_name(f"{shard.name}.idx")
    text = place.read_text()
    place.write_text(
        text.replace("a_000001", "a_00000x").replace("a_000002", "a_000001").replace("00x", "002")
    )
    with pytest.raises(ShardError, match="is not where its index says"):
        unpack(UnpackOptions((shard,), tmp_path / "out", only="a_000001"), Silent())


def test_other_bytes_than_the_index_was_made_of_are_told(folders: Path, tmp_path: Path) -> None:
    (shard,) = packed(tmp_path / "shards", folders, shard_bytes=10**9)
    data = bytearray(shard.read_bytes())
    place = data.index("Überblick".encode())
    data[place + 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="its bytes are not those that its index was made of"):
        unpack(UnpackOptions((shard,), tmp_path / "out"), Silent())


def test_a_command_is_read_as_a_shard(folders: Path, tmp_path: Path) -> None:
    from vshard.base.pipes import Pipe

    for compress in ("none", "zst"):
        (shard,) = packed(tmp_path / compress, folders, shard_bytes=10**9, compress=compress)
        out = tmp_path / f"out-{compress}"
        piped = Pipe(f"cat {shard}" if os.name != "nt" else f"type {shard}")
        assert unpack(UnpackOptions((piped,), out), Silent()) == 7
        assert tree(out) == tree(folders)
    with pytest.raises(StoreError, match="the command failed"):
        unpack(UnpackOptions((Pipe(f"cat {shard} && exit 3"),), tmp_path / "no"), Silent())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    quick_tries(monkeypatch)
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


def test_shards_go_to_s3_and_come_back(folders: Path, tmp_path: Path, store: S3Bucket) -> None:
    out = store.place / "walks" / "train"
    made = pack(PackOptions((str(folders),), out, "train", SHARD_BYTES, jobs=2), Silent())
    local = packed(tmp_path / "local", folders)
    assert [shard.name for shard in made.shards] == [shard.name for shard in local]
    assert store.keys() == [f"walks/train/{name}" for name in sorted(tree(tmp_path / "local"))]
    again = pack(PackOptions((str(folders),), out, "train", SHARD_BYTES), Silent())
    assert again.shards == made.shards
    unpack(UnpackOptions(made.shards, tmp_path / "back", jobs=2), Silent())
    assert tree(tmp_path / "back") == tree(folders)
    unpack(UnpackOptions(made.shards, store.place / "folders", only="a_00000[01]"), Silent())
    repacked = packed(tmp_path / "repacked", store.place / "folders", folders)
    assert tree_of(repacked) == tree(tmp_path / "local")


def test_a_store_that_fails_while_shards_are_written_gets_no_half_shard(
    folders: Path,
    tmp_path: Path,
    store: S3Bucket,
) -> None:
    out = store.place / "train"
    store.faults.add(method="PUT", match="train-000001.tar", status=403, times=100)
    with pytest.raises(StoreError, match="403"):
        pack(PackOptions((str(folders),), out, "train", SHARD_BYTES), Silent())
    assert not any("train-000001.tar" in key for key in sorted(store.keys()))
    store.faults.coming.clear()
    made = pack(PackOptions((str(folders),), out, "train", SHARD_BYTES), Silent())
    unpack(UnpackOptions(made.shards, tmp_path / "back"), Silent())
    assert tree(tmp_path / "back") == tree(folders)
    assert not any(".vshard" in key for key in sorted(store.keys()))
    assert store.open_uploads() == 0


def test_shards_on_a_web_server_are_unpacked(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_tries(monkeypatch)
    shards = packed(tmp_path / "web", folders)
    with web_folder(tmp_path / "web") as (place, faults):
        faults.add(method="GET", match=shards[0].name, status=500, times=2)
        unpack(UnpackOptions(tuple(place / shard.name for shard in shards), tmp_path / "back"), Silent())
        with pytest.raises(StoreError, match="only be read"):
            pack(PackOptions((str(folders),), place, "train"), Silent())
    assert tree(tmp_path / "back") == tree(folders)


def test_huge_pictures_are_refused_before_they_take_memory(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "a_000000", tmp_path / "train" / "a_000000")
    picture = tmp_path / "train" / "a_000000" / "0000_C.png"
    data = bytearray(picture.read_bytes())
    data[16:24] = (1 << 30).to_bytes(4, "big") * 2
    picture.write_bytes(data)
    with pytest.raises(RecordError, match="1073741824x1073741824"):
        read_folder(picture.parent)
    with pytest.raises(RecordError, match="1073741824x1073741824"):
        packed(tmp_path / "out", tmp_path / "train")
