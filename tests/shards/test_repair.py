from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from making import make_record
from store_servers import S3Bucket, s3_bucket, web_folder
from test_verify import QUICK, flip, look, pack_all, spoil, spoils, texts

from vshard.base import stores
from vshard.base.errors import OptionError, OutputError, StoreError
from vshard.base.report import Silent
from vshard.base.stores import Place, list_folder, read_file, write_whole
from vshard.records.record import MAX_FILE_BYTES, write_record
from vshard.shards import repair as module
from vshard.shards.index import index_place, load_index, scan_shard
from vshard.shards.repair import Repaired, repair
from vshard.shards.verify import find_targets


def mend(*places: Path | str, allow_pipe: bool = False) -> Repaired:
    return repair(find_targets(map(str, places), allow_pipe=allow_pipe), 1, Silent())


def damaged_in(split: Path) -> Path:
    return split / ".vshard" / "damaged"


def blocks(data: bytes) -> list[bytes]:
    """The blocks of a tar that are not all zeros."""
    found = [data[at : at + 512] for at in range(0, len(data), 512)]
    return [block for block in found if block.strip(b"\0")]


def records_of(data: bytes) -> dict[str, dict[str, bytes]]:
    """The files of a tar by key and by what comes behind it."""
    found: dict[str, dict[str, bytes]] = {}
    if data:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for info in tar:
                key, _, part = info.name.partition(".")
                found.setdefault(key, {})[part] = cast(IO[bytes], tar.extractfile(info)).read()
    return found


def tar_bytes(shard: Path) -> bytes:
    data = shard.read_bytes()
    if shard.suffix != ".zst":
        return data
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    return b"".join(iter(lambda: reader.read(1 << 16), b""))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for number in range(4):
        write_record(tmp_path / "r", make_record(f"a_{number:06d}", frames=3, seed=number))
    return tmp_path / "train"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("small")
    for number in range(3):
        write_record(root / "r", make_record(f"a_{number:06d}", frames=1, size=16, seed=number))
    return {suffix: pack_all(root / "r", root / suffix, compress=suffix)[0] for suffix in ("none", "zst")}


@pytest.mark.parametrize("compress", ["none", "zst"])
def test_a_damaged_record_is_moved_and_the_others_stay(split: Path, compress: str) -> None:
    shard, second = pack_all(split.parent / "r", split, compress=compress)
    old = tar_bytes(shard)
    broken = bytearray(old)
    records = load_index(shard).records
    broken[records[1].members[1].offset + 300] ^= 1
    shard.write_bytes(
        bytes(broken) if compress == "none" else zstandard.ZstdCompressor().compress(bytes(broken))
    )
    untouched = second.read_bytes()
    done = mend(split)
    assert not done.left.damaged
    (mended,) = done.mended
    assert (mended.place, mended.records) == (shard, ("a_000001",))
    start, stop = records[1].members[0].offset - 512, records[2].members[0].offset - 512
    assert mended.moved == damaged_in(split) / "train-000000.tar"
    assert mended.moved.read_bytes() == broken[start:stop]
    assert tar_bytes(shard) == old[:start] + old[stop:]
    assert scan_shard(shard) == load_index(shard)
    assert index_place(shard).read_bytes() == load_index(shard).to_bytes()
    assert second.read_bytes() == untouched
    with tarfile.open(mended.moved) as tar:
        assert len(tar.getnames()) == 7
    assert not mend(split).mended


@pytest.mark.parametrize("suffix", ["none", "zst"])
@given(spoils, st.booleans())
@QUICK
def test_kept_and_moved_are_all_that_was_there(
    shards: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    kinds: list[tuple[str, float, int]],
    indexed: bool,
) -> None:
    split = tmp_path_factory.mktemp("mend")
    shard = split / shards[suffix].name
    before = spoil(shards[suffix].read_bytes(), kinds)
    shard.write_bytes(before)
    if indexed:
        index_place(shard).write_bytes(index_place(shards[suffix]).read_bytes())
    done = mend(shard)
    assert not done.left.damaged
    assert shard.exists() == bool(done.left.findings) == index_place(shard).exists()
    kept = tar_bytes(shard) if shard.exists() else b""
    moved = b"".join(path.read_bytes() for path in damaged_in(split).glob("*.tar"))
    if suffix == "zst" and (damaged_in(split) / shard.name).exists():
        assert (damaged_in(split) / shard.name).read_bytes() == before
        return
    old = before
    if suffix == "zst":
        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(before), read_across_frames=True)
        old = b"".join(iter(lambda: reader.read(1 << 16), b""))
    whole = records_of(tar_bytes(shards[suffix]))
    for key, files in records_of(kept).items():
        if not indexed:
            # Words of the metadata have no checksum, and whole files may be gone without a trace.
            for one in (files, whole[key]):
                one.pop("json", None)
        assert files == whole[key]
    there = set(blocks(kept)) | set(blocks(moved))
    assert [block for block in blocks(old) if block not in there] == []
    assert not mend(split).mended if shard.exists() else True


class KilledError(BaseException):
    pass


def dying(monkeypatch: pytest.MonkeyPatch, steps: int) -> Callable[[], int]:
    """Die at the step of this number: before or after a file or folder appears, moves or goes; give how many came."""
    done = 0

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            if done == steps:
                raise KilledError
            result = real(*arguments, **more)
            done += 1
            if done == steps:
                raise KilledError
            return result

        return stepping

    for owner, name in ((stores.files, "finish_file"), (Path, "replace"), (Path, "rename"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, guard(getattr(owner, name)))
    for name in ("remove", "write_whole"):
        monkeypatch.setattr(stores, name, guard(getattr(stores, name)))
    monkeypatch.setattr(module, "remove", guard(module.remove))
    return lambda: done


def damage_one(shard: Path, split: Path) -> None:
    flip(shard, load_index(shard).records[1].members[1].offset + 300)


def damage_all(shard: Path, split: Path) -> None:
    for record in load_index(shard).records:
        flip(shard, record.members[1].offset + 300)


def damage_folder(shard: Path, split: Path) -> None:
    write_record(split, make_record("b_000000", frames=2))
    (split / "b_000000" / "0001_M.png").unlink()


def damage_index(shard: Path, split: Path) -> None:
    flip(index_place(shard), 100)


def same_twice(shard: Path, split: Path) -> None:
    shutil.copy(shard, split / "zz.tar")


@pytest.mark.parametrize("damage", [damage_one, damage_all, damage_folder, damage_index, same_twice])
def test_killed_at_any_step_nothing_is_lost_and_the_same_command_finishes(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path, Path], None]
) -> None:
    (shard, _) = pack_all(split.parent / "r", split)
    damage(shard, split)
    shutil.copytree(split, tmp_path / "damaged")
    mend(split)
    wanted = {p.relative_to(split): p.read_bytes() for p in split.rglob("*") if p.is_file()}
    for step in range(1, 100):
        shutil.rmtree(split)
        shutil.copytree(tmp_path / "damaged", split)
        with monkeypatch.context() as patch:
            count = dying(patch, step)
            with suppress(KilledError):
                mend(split)
            reached = count() >= step
        mend(split)
        assert {p.relative_to(split): p.read_bytes() for p in split.rglob("*") if p.is_file()} == wanted, step
        if not reached:
            break
    assert step > 2


def test_only_a_damaged_index_is_built_anew(split: Path) -> None:
    (shard, second) = pack_all(split.parent / "r", split)
    wanted = index_place(shard).read_bytes(), index_place(second).read_bytes()
    stamp = shard.stat().st_mtime_ns
    flip(index_place(shard), len(wanted[0]) - 200)
    index_place(second).unlink()
    done = mend(split)
    assert [m.did for m in done.mended] == ["its index was built"] * 2
    assert (index_place(shard).read_bytes(), index_place(second).read_bytes()) == wanted
    assert shard.stat().st_mtime_ns == stamp


def test_odd_bytes_between_good_records_are_kept(split: Path) -> None:
    (shard, _) = pack_all(split.parent / "r", split)
    whole = shard.read_bytes()
    end = load_index(shard).records[0].members[0]
    flip(shard, end.offset + end.length)
    block = shard.read_bytes()[end.offset : end.offset + 512]
    with shard.open("ab") as file:
        file.write(b"after the end")
    assert mend(split).mended[0].records == ()
    assert shard.read_bytes() == whole
    assert (damaged_in(split) / shard.name).read_bytes() == block + b"after the end"  # less the end mark
    flip(shard, len(whole) - 3)
    shard.write_bytes(whole[:-600])
    assert mend(split).mended[0].moved is None
    assert shard.read_bytes() == whole


def test_records_in_two_shards_stay_in_one(split: Path) -> None:
    shard, *_ = pack_all(split.parent / "r", split)
    write_record(split.parent / "b", make_record("a_000001", frames=3, seed=77))
    write_record(split.parent / "b", make_record("b_000000", frames=3, seed=78))
    (other,) = pack_all(split.parent / "b", split.parent / "c")
    other.replace(split / "yy.tar")
    shutil.copy(shard, split / "zz.tar")
    before = shard.read_bytes()
    done = mend(split)
    assert not done.left.damaged
    assert [(m.place.name, m.records, m.moved) for m in done.mended] == [
        ("yy.tar", ("a_000001",), damaged_in(split) / "yy.tar"),
        ("zz.tar", ("a_000000", "a_000001", "a_000002"), None),
    ]
    assert [record.key for record in load_index(split / "yy.tar").records] == ["b_000000"]
    assert not (split / "zz.tar").exists()
    assert shard.read_bytes() == before


def test_a_record_twice_in_one_shard_stays_once(split: Path) -> None:
    (shard, _) = pack_all(split.parent / "r", split)
    whole = shard.read_bytes()
    member = load_index(shard).records[1].members[0]
    first = whole[: member.offset - 512]
    shard.write_bytes(first + whole)
    assert mend(split).mended[0].moved is None
    assert shard.read_bytes() == whole


def test_folders_are_moved_and_names_that_are_taken_get_a_number(split: Path) -> None:
    for turn, name in enumerate(("a", "a.1", "a.2")):
        write_record(split, make_record("a", frames=2, seed=turn))
        (split / "a" / "0001_M.png").unlink()
        (split / "a" / "notes.txt").write_text("mine")
        (done,) = mend(split).mended
        assert done.moved == damaged_in(split) / name
        assert len(list(done.moved.iterdir())) == 5
        assert not (split / "a").exists()
        write_record(split, make_record("b", frames=2))


def test_a_shard_that_is_moved_again_gets_a_number(split: Path) -> None:
    names = []
    for number in range(2):
        shard, *_ = pack_all(split.parent / "r", split)
        flip(shard, load_index(shard).records[number].members[1].offset + 300)
        names += [done.moved.name for done in mend(split).mended if done.moved is not None]
        for path in split.glob("*.tar*"):
            path.unlink()
    assert names == ["train-000000.tar", "train-000000.tar.1"]


def test_an_unfinished_run_is_left_alone(split: Path) -> None:
    (shard, second) = pack_all(split.parent / "r", split)
    left = {
        split / "train-000000.tar.part": second.read_bytes()[:3000],
        split / "train-000002.tar.part": second.read_bytes()[:1000],
        split / ".vshard" / "train.json": b"{}",
    }
    for path, data in left.items():
        path.write_bytes(data)
    damage_one(shard, split)
    mend(split)
    assert {path: path.read_bytes() for path in left} == left


def test_two_repairs_at_once_pipes_and_readonly_places_are_refused(
    split: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (shard, _) = pack_all(split.parent / "r", split)
    damage_one(shard, split)
    with pytest.raises(OptionError, match="cannot be mended"):
        mend(f"pipe:cat {shard}", allow_pipe=True)
    with web_folder(split) as (place, _):
        assert [p.text for f in look(f"{place.url}/{shard.name}").findings for p in f.problems] == texts(
            look(shard)
        )
        with pytest.raises(StoreError, match="can only be read"):
            mend(f"{place.url}/{shard.name}")
    real = module.verify

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "verify", real)
        with pytest.raises(OutputError, match="another vshard is repairing it now"):
            mend(split)
        return real(*arguments)

    monkeypatch.setattr(module, "verify", meanwhile)
    assert not mend(split).left.damaged


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    with s3_bucket(monkeypatch) as made:
        yield made


def test_a_store_is_mended_there(split: Path, bucket: S3Bucket) -> None:
    (shard, second) = pack_all(split.parent / "r", split)
    damage_one(shard, split)
    there: Place = bucket.place / "train"
    write_record(there, make_record("b_000000", frames=2))
    for path in split.iterdir():
        if path.is_file():
            write_whole(there / path.name, path.read_bytes())
    stores.remove(there / "b_000000" / "0001_M.png")
    # As a repair leaves it that was stopped while it removed what it had copied.
    for name in ("0000_C.png", "meta.json"):
        data = read_file(there / "b_000000" / name, MAX_FILE_BYTES)
        write_whole(there / ".vshard/damaged/b_000000" / name, data)
    stores.remove(there / "b_000000" / "meta.json")
    done = mend(str(there))
    assert not done.left.damaged
    mend(split)
    for path in [shard, second, index_place(shard), damaged_in(split) / shard.name]:
        name = str(path.relative_to(split))
        assert read_file(there / name, MAX_FILE_BYTES) == path.read_bytes()
    moved = list_folder(there / ".vshard/damaged/b_000000")
    assert [entry.name for entry in moved] == ["0000_C.png", "0000_M.png", "0001_C.png", "meta.json"]
    assert [entry.name for entry in list_folder(there) if entry.name == "b_000000"] == []
