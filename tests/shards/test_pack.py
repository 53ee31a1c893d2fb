from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_record
from PIL import Image

from vshard.base.errors import DatasetError, OptionError, OutputError, RecordError, ShardError
from vshard.base.report import Silent
from vshard.records.png import decode_png
from vshard.records.record import write_record
from vshard.shards.index import index_path, load_index, scan_shard
from vshard.shards.pack import pack, unpack

SHARD_BYTES = 1 << 20


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".vshard" not in p.parts
    }


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number in range(5):
        write_record(tmp_path / "train", make_record(f"a_{number:06d}", seed=number, size=96))
    return tmp_path / "train"


def pack_all(source: Path, output: Path, shard_bytes: int = SHARD_BYTES, name: str = "train") -> list[Path]:
    return list(pack(source, output, name=name, shard_bytes=shard_bytes, report=Silent()).shards)


def test_unpacking_gives_back_every_byte(folders: Path, tmp_path: Path) -> None:
    (folders / "a_000003" / "meta.json").unlink()  # as the original writes it
    shards = pack_all(folders, tmp_path / "shards")
    assert len(shards) > 1
    assert unpack(shards, tmp_path / "again", Silent()) == 5
    assert tree(tmp_path / "again") == tree(folders)
    assert pack_all(tmp_path / "again", tmp_path / "twice") != shards
    assert tree(tmp_path / "twice") == tree(tmp_path / "shards")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(12, 14), st.sampled_from([32, 64])), min_size=1, max_size=4))
def test_round_trip_of_any_records(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("round")
    for number, (frames, size) in enumerate(kinds):
        write_record(root / "a", make_record(f"k-{number}", frames=frames, size=size, seed=number))
    shards = pack_all(root / "a", root / "shards")
    assert unpack(shards, root / "b", Silent()) == len(kinds)
    assert tree(root / "b") == tree(root / "a")


def test_stock_tar_lists_contiguous_records_with_fixed_owners(folders: Path, tmp_path: Path) -> None:
    members = []
    for shard in pack_all(folders, tmp_path / "shards"):
        with tarfile.open(shard) as tar:
            members += tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    expected = []
    for number in range(5):
        key = f"a_{number:06d}"
        expected += [f"{key}.json", *(f"{key}.{i:04d}_{kind}.png" for i in range(12) for kind in "CM")]
    assert [m.name for m in members] == expected


def test_stock_webdataset_reads_one_sample_a_record_and_pillow_the_same_pixels(
    folders: Path, tmp_path: Path
) -> None:
    shards = [str(shard) for shard in pack_all(folders, tmp_path / "shards")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing to the collector
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"a_{n:06d}" for n in range(5)]
    for sample in samples:
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        for frame in range(12):
            for kind in "CM":
                data = sample[f"{frame:04d}_{kind.lower()}.png"]
                assert data == (folders / sample["__key__"] / f"{frame:04d}_{kind}.png").read_bytes()
                assert (np.array(Image.open(io.BytesIO(data))) == decode_png(data, "x")).all()


def test_the_index_points_at_the_bytes(folders: Path, tmp_path: Path) -> None:
    for shard in pack_all(folders, tmp_path / "shards"):
        index = load_index(shard)
        data = shard.read_bytes()
        assert index.size_bytes == len(data)
        for record in index.records:
            for member in record.members:
                original = (folders / record.key / member.file).read_bytes()
                assert data[member.offset : member.offset + member.length] == original
        assert scan_shard(shard) == index
        index_path(shard).write_bytes(b"{}")
        assert load_index(shard) == index
        index_path(shard).unlink()
        assert load_index(shard) == index


def test_packing_again_changes_nothing_and_other_records_are_refused(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack_all(folders, out)
    before = tree(out)
    pack_all(folders, out)
    assert tree(out) == before
    write_record(folders, make_record("a_000009"))
    with pytest.raises(OutputError, match=r"train-00000\d\.tar: is there already with other records"):
        pack_all(folders, out)
    assert tree(out) == before
    with pytest.raises(OutputError, match="is there already"):
        pack_all(folders, out, shard_bytes=100 * SHARD_BYTES)
    assert tree(out) == before
    assert not (out / ".vshard").exists()


def test_a_damaged_record_stops_packing_and_leaves_nothing(folders: Path, tmp_path: Path) -> None:
    (folders / "a_000004" / "0005_M.png").unlink()
    with pytest.raises(RecordError, match="a_000004"):
        pack_all(folders, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        pack_all(tmp_path / "none", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match="holds no record folders"):
        pack_all(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(OptionError, match="--name"):
        pack_all(tmp_path / "bare", tmp_path / "out", name="a.b")
    with pytest.raises(OptionError, match="--shard-size"):
        pack_all(tmp_path / "bare", tmp_path / "out", shard_bytes=5)
    assert not (tmp_path / "out").exists()


def evil(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(data))
    return path


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "member",
    [
        named("../escape.json"),
        named("/etc/escape.json"),
        named("a/../../b.json"),
        named("a.json", tarfile.SYMTYPE, "/etc/passwd"),
        named("a.0000_C.png", tarfile.LNKTYPE, "a.json"),
        named("a.json", tarfile.CHRTYPE),
        named("a", tarfile.DIRTYPE),
        named("a.exe"),
    ],
    ids=lambda m: f"{m.name}-{m.type.decode()}",
)
def test_a_strangers_archive_writes_nothing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    shard = evil(tmp_path / "evil.tar", (member, b"{}"))
    with pytest.raises(ShardError, match=r"evil\.tar: member") as caught:
        unpack([shard], tmp_path / "out", Silent())
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]


def test_a_record_in_pieces_or_twice_is_refused(tmp_path: Path) -> None:
    frame = make_record("a").frames[0]
    pieces = [(named(f"{key}.0000_{kind}.png"), frame) for key, kind in (("a", "C"), ("b", "C"), ("a", "M"))]
    with pytest.raises(ShardError, match="without masks|in pieces"):
        unpack([evil(tmp_path / "p.tar", *pieces)], tmp_path / "out", Silent())


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("cut")
    write_record(root / "a", make_record("a_000000", size=32))
    (shard,) = pack_all(root / "a", root / "shards")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ShardError) as caught:
        unpack([shard], root / "out", Silent())
    assert "\n" not in str(caught.value)


def test_no_such_shard(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="cannot be read"):
        unpack([tmp_path / "none.tar"], tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()
