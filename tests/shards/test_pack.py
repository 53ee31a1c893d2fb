from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import Listening, make_record, tree
from PIL import Image

from vshard.base.errors import DatasetError, OptionError, OutputError, RecordError, ShardError
from vshard.base.report import Silent
from vshard.records.png import decode_png
from vshard.records.record import write_record
from vshard.shards import sources as module
from vshard.shards.index import index_place, load_index, scan_shard
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.unpack import UnpackOptions, unpack

SHARD_BYTES = 1 << 20


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number in range(5):
        write_record(tmp_path / "train", make_record(f"a_{number:06d}", seed=number, size=96))
    return tmp_path / "train"


def pack_all(source: Path, output: Path, shard_bytes: int = SHARD_BYTES, name: str = "train") -> list[Path]:
    options = PackOptions((str(source),), output, name, shard_bytes)
    return [shard for shard in pack(options, Silent()).shards if isinstance(shard, Path)]


def unpack_all(shards: list[Path], output: Path) -> int:
    return unpack(UnpackOptions(tuple(shards), output), Silent())


def test_unpacking_gives_back_every_byte(folders: Path, tmp_path: Path) -> None:
    (folders / "a_000003" / "meta.json").unlink()  # as the original writes it
    shards = pack_all(folders, tmp_path / "shards")
    assert len(shards) > 1
    assert unpack_all(shards, tmp_path / "again") == 5
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
    assert unpack_all(shards, root / "b") == len(kinds)
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
        index_place(shard).write_bytes(b"{}")
        assert load_index(shard) == index
        index_place(shard).unlink()
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
    assert [path.name for path in (out / ".vshard").rglob("*")] == ["pack.lock"]


def test_a_damaged_record_stops_packing_and_leaves_nothing(folders: Path, tmp_path: Path) -> None:
    (folders / "a_000004" / "0005_M.png").unlink()
    with pytest.raises(RecordError, match="a_000004"):
        pack_all(folders, tmp_path / "shards")
    left = [path.name for path in (tmp_path / "shards").rglob("*")]
    assert sorted(left) == [".vshard", "pack.lock"]


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
        unpack_all([shard], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]


def test_a_record_in_pieces_or_twice_is_refused(tmp_path: Path) -> None:
    frame = make_record("a").frames[0]
    pieces = [(named(f"{key}.0000_{kind}.png"), frame) for key, kind in (("a", "C"), ("b", "C"), ("a", "M"))]
    with pytest.raises(ShardError, match="is not whole|in pieces"):
        unpack_all([evil(tmp_path / "p.tar", *pieces)], tmp_path / "out")


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("cut")
    write_record(root / "a", make_record("a_000000", size=32))
    (shard,) = pack_all(root / "a", root / "shards")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ShardError) as caught:
        unpack_all([shard], root / "out")
    assert "\n" not in str(caught.value)


def test_no_such_shard(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="cannot be read"):
        unpack_all([tmp_path / "none.tar"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_records_is_named_and_a_record_without_its_first_frame_is_an_error(
    folders: Path, tmp_path: Path
) -> None:
    (folders / "a_000002" / "notes.txt").write_text("mine")
    report = Listening()
    pack(PackOptions((str(folders),), tmp_path / "one", "train", SHARD_BYTES), report)
    assert any("1 files that are no record's" in line and "notes.txt" in line for line in report.warned)
    (folders / "a_000002" / "0000_C.png").unlink()
    with pytest.raises(RecordError, match="a_000002.*do not pair up"):
        pack_all(folders, tmp_path / "two")


def test_a_damaged_picture_is_not_packed(folders: Path, tmp_path: Path) -> None:
    picture = folders / "a_000001" / "0003_C.png"
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 1
    picture.write_bytes(data)
    with pytest.raises(RecordError, match=r"0003_C\.png: damaged"):
        pack_all(folders, tmp_path / "shards")


def test_metadata_that_only_a_shard_may_hold_is_not_lost(folders: Path, tmp_path: Path) -> None:
    (folders / "a_000001" / "meta.json").write_text(
        '{"schema": "vshard.record/1", "derived": true, "mine": 1}'
    )
    with pytest.raises(RecordError, match="says that it was derived"):
        pack_all(folders, tmp_path / "shards")


def test_a_device_or_a_link_to_one_is_not_read(folders: Path, tmp_path: Path) -> None:
    picture = folders / "a_000001" / "0003_C.png"
    picture.unlink()
    picture.mkdir()
    with pytest.raises(RecordError, match="is no plain file"):
        pack_all(folders, tmp_path / "shards")


@pytest.mark.parametrize("size", [-512, -(1 << 40)])
def test_a_member_of_negative_size_is_refused(folders: Path, tmp_path: Path, size: int) -> None:
    (shard, *_) = pack_all(folders, tmp_path / "shards")
    data = bytearray(shard.read_bytes())
    second = load_index(shard).records[0].members[1].offset - 512
    header = tarfile.TarInfo.frombuf(bytes(data[second : second + 512]), "utf-8", "strict")
    header.size = 0
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw)
    data[second : second + 512] = raw
    shard.write_bytes(data)
    index_place(shard).unlink()
    with pytest.raises(ShardError):
        unpack_all([shard], tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [1 << 34, 1 << 62])
def test_a_header_of_absurd_size_takes_no_memory(tmp_path: Path, kind: bytes, size: int) -> None:
    info = named("a.json", kind)
    info.size = size
    (tmp_path / "bomb.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ShardError, match=r"bomb\.tar"):
        unpack_all([tmp_path / "bomb.tar"], tmp_path / "out")


def test_unpacking_believes_the_tar_and_not_an_index_that_lies(folders: Path, tmp_path: Path) -> None:
    (shard, *others) = pack_all(folders, tmp_path / "shards")
    index = json.loads(index_place(shard).read_bytes())
    members = index["records"][0][2]
    members[1][1:], members[3][1:] = members[3][1:], members[1][1:]
    index_place(shard).write_text(json.dumps(index))
    unpack_all([shard, *others], tmp_path / "again")
    assert tree(tmp_path / "again") == tree(folders)


def test_members_twice_and_two_tars_in_one_are_refused(folders: Path, tmp_path: Path) -> None:
    (shard, *_) = pack_all(folders, tmp_path / "shards")
    record = load_index(shard).records[0]
    data = shard.read_bytes()
    first = data[: record.members[2].offset + -(-record.members[2].length // 512) * 512]
    (tmp_path / "twice.tar").write_bytes(first + data[record.members[1].offset - 512 :])
    (tmp_path / "joined.tar").write_bytes(data + data)
    for name, message in (("twice.tar", "is not whole"), ("joined.tar", "behind its end mark")):
        with pytest.raises(ShardError, match=message):
            unpack_all([tmp_path / name], tmp_path / "out")


def test_an_impossible_index_is_made_again(folders: Path, tmp_path: Path) -> None:
    (shard, *_) = pack_all(folders, tmp_path / "shards")
    whole = load_index(shard)
    for spoil in (
        lambda r: r.append(r[0]),
        lambda r: r[0][2].pop(),
        lambda r: r[0][2][3].__setitem__(1, r[0][2][1][1]),
        lambda r: r[0][2][3].__setitem__(1, float("inf")),
    ):
        index = json.loads(whole.to_bytes())
        spoil(index["records"])
        index_place(shard).write_text(json.dumps(index))
        assert load_index(shard) == whole


def test_two_packs_at_once_are_refused(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.folder_files

    def meanwhile(folder: Path) -> Iterator[tuple[str, bytes]]:
        with pytest.raises(OutputError, match="another vshard is packing into this folder now"):
            pack_all(folders, tmp_path / "shards")
        return real(folder)

    monkeypatch.setattr(module, "folder_files", meanwhile)
    assert pack_all(folders, tmp_path / "shards")
