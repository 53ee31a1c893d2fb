from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
import webdataset
from making import make_record
from test_repair import damaged_in, mend, records_of
from test_verify import flip, look, pack_all, texts

from vshard.base.errors import OutputError, ShardError, StoreError
from vshard.base.report import Silent
from vshard.records.names import member_name
from vshard.records.record import Record, metadata_bytes, write_record
from vshard.shards import contents as module
from vshard.shards.index import index_place, load_index, write_index
from vshard.shards.indexing import build_indexes
from vshard.shards.unpack import UnpackOptions, unpack


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for number in range(4):
        write_record(tmp_path / "train", make_record(f"a_{number:06d}", frames=3, seed=number))
    return tmp_path / "train"


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(record: Record) -> list[tuple[str, bytes]]:
    return [(member_name(record.key, file), data) for file, data in record.files().items()]


def test_records_that_are_not_whole_are_named(tmp_path: Path) -> None:
    a, b, c, d = (make_record(key, frames=2, seed=seed) for seed, key in enumerate("abcd"))
    upper = replace(b, key="B")
    frames = members(d)
    shard = tar_of(
        tmp_path / "x.tar",
        *members(a),
        *members(b)[:-1],
        *frames[:3],
        *members(c),
        *frames[3:],
        *members(c),
        *members(upper),
        *members(replace(a, key="A")),
        ("readme.txt", b"hello"),
    )
    (finding,) = look(shard).findings
    assert [problem.record for problem in finding.problems] == [None, "b", "d", "c", "A"]
    assert (finding.records, finding.damaged_records) == (6, 4)
    said = "\n".join(texts(look(shard)))
    for text in ("b: 2 frames and 1 other", "d: lies in 2 pieces", "c: stands there 2 times"):
        assert text in said
    for text in ("A: differs from a only by case", "member 'readme.txt' is no record's file"):
        assert text in said


def test_a_file_or_a_record_twice_is_named(tmp_path: Path) -> None:
    files = members(make_record("a", frames=1))
    (text,) = texts(look(tar_of(tmp_path / "x.tar", *files, files[-1])))
    assert text == "a: stands there 2 times, 1 of them damaged"
    assert texts(look(tar_of(tmp_path / "x.tar", *files, *files))) == ["a: stands there 2 times"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 4}, "its metadata says frames 4, its pictures say 3"),
        ({"height": 31}, "its metadata says height 31, its pictures say 32"),
        ({"width": "32"}, "its metadata says width '32', its pictures say 32"),
        ({"schema": "other/1"}, "its metadata has schema 'other/1'"),
    ],
)
def test_metadata_must_agree_with_the_pictures(split: Path, change: dict[str, object], said: str) -> None:
    path = split / "a_000001" / "meta.json"
    path.write_bytes(metadata_bytes(json.loads(path.read_bytes()) | change))
    shard = tar_of(
        split.parent / "x.tar", *((f"a_000001.{p.name}".replace("meta.", ""), p.read_bytes()) for p in
                                  sorted(path.parent.iterdir()))
    )  # fmt: skip
    for found in (look(split), look(shard)):
        (text,) = texts(found)
        assert said in text


def test_pictures_of_one_record_are_of_one_size(tmp_path: Path) -> None:
    small, large = make_record("a", frames=2), make_record("a", frames=2, size=40)
    write_record(tmp_path, replace(small, masks=(small.masks[0], large.masks[1])))
    (text,) = texts(look(tmp_path))
    assert text.startswith("0001_M.png: is 40x40 pixels, the first frame 32x32")


def test_metadata_that_still_reads_is_noticed_by_the_index(split: Path) -> None:
    (shard, _) = pack_all(split, split)
    member = load_index(shard).records[1].members[0]
    flip(shard, shard.read_bytes().index(b"berblick", member.offset), 1)
    (finding, *_) = look(split).findings
    assert finding.index_state == "differs"
    assert texts(look(shard)) == ["a_000001: its metadata is not what the index describes"]
    index_place(shard).unlink()
    assert texts(look(shard)) == []


def test_padding_that_is_not_zeros_costs_no_record(split: Path) -> None:
    (shard, _) = pack_all(split, split)
    member = load_index(shard).records[0].members[0]
    flip(shard, member.offset + member.length)
    (finding,) = look(shard).findings
    assert finding.damaged_records == 0
    assert [p.text for p in finding.problems] == ["has something else than zeros behind 'a_000000.json'"]


def test_other_bytes_that_matter_to_nobody_are_noticed_by_the_index(split: Path, tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members(make_record("a", frames=1)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 5.25
            tar.addfile(info, io.BytesIO(data))
    build_indexes([shard], 1, Silent())
    assert not look(shard).damaged
    flip(shard, shard.read_bytes().index(b"mtime=5.25") + 9)
    assert texts(look(shard)) == ["its bytes are not those that its index describes"]


def test_an_index_of_another_shard_tells_what_is_lost(split: Path) -> None:
    (shard, second) = pack_all(split, split)
    index_place(second).write_bytes(index_place(shard).read_bytes())
    assert texts(look(second)) == [
        *(f"a_00000{n}: is in the index and no longer in the shard" for n in range(3)),
        "its index does not describe it",
    ]
    shutil.copy(index_place(shard), split / "gone-000000.tar.idx")
    (finding,) = [f for f in look(split).findings if f.form == "index"]
    assert finding.records == finding.damaged_records == 3
    assert finding.problems[0].text == "its shard is not there"


def test_a_cut_shard_names_its_lost_records(split: Path) -> None:
    (shard, _) = pack_all(split, split)
    second = load_index(shard).records[1]
    shard.write_bytes(shard.read_bytes()[: second.members[2].offset])
    (finding,) = look(shard).findings
    assert {p.record for p in finding.problems} == {None, "a_000001", "a_000002"}
    assert "is cut off" in "\n".join(texts(look(shard)))


def test_zeroed_blocks_cost_only_what_they_hit(split: Path) -> None:
    (shard, _) = pack_all(split, split)
    data = bytearray(shard.read_bytes())
    header = load_index(shard).records[1].members[1].offset - 512
    data[header : header + 512] = bytes(512)
    shard.write_bytes(data)
    (finding,) = look(shard).findings
    assert {p.record for p in finding.problems} == {None, "a_000001"}


def test_a_key_in_two_shards_of_a_folder_is_damage_of_the_second(split: Path) -> None:
    (shard, second) = pack_all(split, split)
    shutil.copy(shard, split / "zz.tar")
    write_record(split / "b", make_record("a_000003", frames=3, seed=77))
    (other,) = pack_all(split / "b", split / "c")
    shutil.copy(other, split / "other.tar")
    found = {f.place.name: [p.text for p in f.problems] for f in look(split).findings if f.form == "shard"}
    assert found == {
        "other.tar": [],
        shard.name: [],
        second.name: ["a_000003: is in other.tar too, with other contents"],
        "zz.tar": [f"a_00000{n}: is in {shard.name} too, the same" for n in range(3)],
    }


def test_a_folder_that_differs_from_its_shard_is_a_remark(split: Path) -> None:
    pack_all(split, split)
    shutil.rmtree(split / "a_000001")
    write_record(split, make_record("a_000001", frames=3, seed=9))
    found = look(split)
    assert not found.damaged
    assert found.remarks == (
        f"{split / 'a_000001'}: differs from record a_000001 in train-000000.tar; training reads the shard's",
    )


def test_folders_of_others(split: Path) -> None:
    (split / "a_000001" / "meta.json").unlink()
    (split / "a_000001" / "thumbs.db").write_bytes(b"x")
    assert not look(split).damaged
    (split / "a_000002").rename(split / "a.b")
    (split / "a_000003" / "0001_M.png").unlink()
    assert [(p.record, p.text[:30]) for f in look(split).damaged for p in f.problems] == [
        ("a.b", "a record's name may hold only "),
        ("a_000003", "3 frames and 2 other pictures "),
    ]


def test_a_pipe_is_read_once_and_a_failing_one_is_an_error(split: Path) -> None:
    (shard, _) = pack_all(split, split, compress="zst")
    (finding,) = look(f"pipe:cat '{shard}'", allow_pipe=True).findings
    assert (finding.records, finding.size_bytes, finding.index_state, finding.problems) == (
        3, shard.stat().st_size, None, (),
    )  # fmt: skip
    assert look(f"pipe:head -c 2000 '{shard}'", allow_pipe=True).damaged
    with pytest.raises(StoreError, match="exit code 3"):
        look(f"pipe:cat '{shard}'; exit 3", allow_pipe=True)


class FailingDisk(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 10_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_a_disk_that_fails_is_told_and_the_others_are_read(
    split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard, second) = pack_all(split, split)
    real = module.open_reading

    def opened(place: Path) -> BinaryIO:
        return FailingDisk(shard.read_bytes()) if place == shard else real(place)

    monkeypatch.setattr(module, "open_reading", opened)
    found = look(shard, second)
    assert [bool(f.problems) for f in found.findings] == [True, False]
    assert "cannot be read (Input/output error); check the file" in texts(found)


def test_records_beyond_memory_are_told(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard, _) = pack_all(split, split)
    index_place(shard).unlink()
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 3000)
    assert any("has more than 3000 bytes" in text for text in texts(look(shard)))
    with pytest.raises(ShardError, match="has more than 3000 bytes or 10000 files; it is no record"):
        unpack(UnpackOptions((shard,), split / "out"), Silent())


def stock_webdataset(path: Path, records: list[Record], *, with_metadata: bool) -> None:
    with (
        warnings.catch_warnings(),
        webdataset.ShardWriter(str(path.parent / "stock-%06d.tar"), verbose=0) as writer,
    ):
        warnings.simplefilter("ignore", ResourceWarning)
        for record in records:
            sample: dict[str, object] = {"__key__": record.key}
            for file, data in record.files().items():
                if file != "meta.json":
                    sample[file] = data
                elif with_metadata:
                    sample["json"] = data
            writer.write(sample)


def gnu_tar(path: Path, folder: Path, records: list[Record]) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program here")
    listed = [pair for record in records for pair in members(record)]
    for name, data in listed:
        (folder / name).write_bytes(data)
    subprocess.run(["tar", "cf", path, "-C", folder, *(name for name, _ in listed)], check=True)


@pytest.mark.parametrize("writer", ["webdataset", "webdataset without json", "gnu"])
def test_shards_of_others_are_indexed_verified_and_unpacked(tmp_path: Path, writer: str) -> None:
    records = [make_record(f"a_{n}", frames=2, seed=n) for n in range(3)]
    shard = tmp_path / "s" / "stock-000000.tar"
    for folder in ("s", "files", "wanted"):
        (tmp_path / folder).mkdir()
    if writer == "gnu":
        gnu_tar(shard, tmp_path / "files", records)
    else:
        stock_webdataset(shard, records, with_metadata=writer == "webdataset")
    assert not look(shard).damaged
    (indexed,) = build_indexes([shard], 1, Silent())
    assert indexed.built
    assert [f.index_state for f in look(shard).findings] == ["ok"]
    unpack(UnpackOptions((shard,), tmp_path / "out"), Silent())
    for record in records:
        write_record(tmp_path / "wanted", record)
        wanted = {p.name: p.read_bytes() for p in (tmp_path / "wanted" / record.key).iterdir()}
        if writer == "webdataset without json":
            del wanted["meta.json"]
        assert {p.name: p.read_bytes() for p in (tmp_path / "out" / record.key).iterdir()} == wanted


def test_indexes_are_built_where_they_do_not_fit(split: Path) -> None:
    shards = pack_all(split, split)
    wanted = [index_place(shard).read_bytes() for shard in shards]
    index_place(shards[0]).unlink()
    done = build_indexes(shards, 2, Silent())
    assert [(one.built, one.damage) for one in done] == [(True, None), (False, None)]
    write_index(shards[1], load_index(shards[0]))
    build_indexes(shards, 1, Silent())
    assert [index_place(shard).read_bytes() for shard in shards] == wanted
    assert all(one.built for one in build_indexes(shards, 1, Silent(), force=True))
    shards[0].write_bytes(shards[0].read_bytes()[:-1000])
    done = build_indexes(shards, 1, Silent(), force=True)
    assert done[0].index is None
    assert "is cut off" in str(done[0].damage)
    assert done[1].index is not None


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("kind", ["meta.json", "0000_M.png"])
def test_no_header_costs_a_record_its_metadata(split: Path, tmp_path: Path, indexed: bool, kind: str) -> None:
    """Any byte of a header: the record stays as it was, or goes to what is damaged."""
    packed, _ = pack_all(split, tmp_path / "packed")
    whole = packed.read_bytes()
    (member,) = [m for m in load_index(packed).records[1].members if m.file == kind]
    stayed = 0
    for at in (0, 7, 9, 101, 124, 133, 136, 148, 150, 154, 155, 156, 257, 300, 345, 400, 511):
        for mask in (1, 8):
            shard = tmp_path / f"{at}_{mask}" / "train-000000.tar"
            shard.parent.mkdir()
            shard.write_bytes(whole)
            flip(shard, member.offset - 512 + at, mask)
            if indexed:
                index_place(shard).write_bytes(index_place(packed).read_bytes())
            assert not mend(shard).left.damaged
            kept = records_of(shard.read_bytes())
            assert all(files == records_of(whole)[key] for key, files in kept.items())
            assert {"a_000000", "a_000002"} <= set(kept)
            stayed += "a_000001" in kept
            assert (damaged_in(shard.parent) / shard.name).exists()
    assert stayed > 16


@pytest.mark.parametrize("first", [True, False])
def test_the_whole_one_of_two_copies_stays(split: Path, first: bool) -> None:
    (shard, _) = pack_all(split, split.parent / "s")
    whole = shard.read_bytes()
    index = load_index(shard)
    start, stop = (index.records[number].members[0].offset - 512 for number in (1, 2))
    copy = bytearray(whole[start:stop])
    copy[index.records[1].members[1].offset + 300 - start] ^= 1
    at = start if first else stop
    shard.write_bytes(whole[:at] + copy + whole[at:])
    assert mend(shard).mended[0].records == ()
    assert shard.read_bytes() == whole
    assert (damaged_in(shard.parent) / shard.name).read_bytes() == copy


def test_lost_metadata_is_known_by_the_index_where_nothing_else_is_wrong(split: Path) -> None:
    (shard, _) = pack_all(split, split.parent / "s")
    whole, index = shard.read_bytes(), load_index(shard)
    start, stop = (member.offset - 512 for member in index.records[1].members[:2])
    shard.write_bytes(whole[:start] + whole[stop:])
    assert "a_000001: its metadata is lost" in texts(look(shard))
    mend(shard)
    assert [record.key for record in load_index(shard).records] == ["a_000000", "a_000002"]
    assert (damaged_in(shard.parent) / shard.name).stat().st_size > 6 * 1024


@pytest.mark.parametrize("name", [".vshard", ".vshard/damaged", ".vshard/verify.lock", "{}.idx", "{}.mended"])
def test_nothing_is_written_through_a_link(split: Path, tmp_path: Path, name: str) -> None:
    (shard, _) = pack_all(split, tmp_path / "s")
    flip(shard, load_index(shard).records[1].members[1].offset + 300)
    link = shard.parent / name.format(shard.name)
    shutil.rmtree(shard.parent / ".vshard", ignore_errors=True)
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    victim = tmp_path / "victim"
    if "." in link.name[1:]:
        victim.write_bytes(b"mine")
    else:
        victim.mkdir()
    link.symlink_to(victim)
    with pytest.raises(OutputError, match=f"{link.name}: is a symbolic link"):
        mend(shard)
    if link.suffix == ".idx":
        with pytest.raises(OutputError, match=f"{link.name}: is a symbolic link"):
            build_indexes([shard], 1, Silent(), force=True)
    assert victim.read_bytes() == b"mine" if victim.is_file() else list(victim.iterdir()) == []
