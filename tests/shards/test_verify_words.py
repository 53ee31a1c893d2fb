"""What `verify`, its repair and `index` say: true, plain, and what helps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_record
from test_repair import damage_one, mend
from test_verify import flip, look, pack_all, texts
from vshard_cli.main import run

from vshard.base.errors import ShardError
from vshard.base.report import Silent
from vshard.records.names import printable
from vshard.records.record import write_record
from vshard.shards.index import index_place, load_index, write_index
from vshard.shards.indexing import build_indexes


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, of three records and of one, and nothing beside them."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_record(tmp_path / "r", make_record(f"a_{number:06d}", frames=3, seed=number))
    pack_all(tmp_path / "r", Path("d/train"))
    return Path("d/train")


@pytest.fixture
def shard(split: Path) -> Path:
    return split / "train-000000.tar"


@given(st.text(st.characters(exclude_characters="\\"), max_size=500))
def test_what_is_printed_is_one_line_that_python_reads_back(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


def test_a_long_text_is_cut() -> None:
    assert printable("\x1b[31m\n東京") == "\\x1b[31m\\n東京"
    assert printable("x" * 501) == "x" * 500 + " …"


def test_an_index_is_not_written_over_for_a_shard_of_the_same_size(
    split: Path, shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_one(shard, split)
    old = index_place(shard).read_bytes()
    assert run(["index", "d"]) == 0
    assert "by size (`vshard verify` compares contents)" in capsys.readouterr().out
    assert run(["index", "--force", "d"]) == 1
    told = capsys.readouterr()
    (line,) = [line for line in told.out.splitlines() if line.startswith(f"{shard}: ")]
    assert "content has changed since its index was made" in line
    assert f"remove {index_place(shard)} first" in line
    assert line.endswith(f"vshard verify {shard}")
    assert "1 of 2 shards not indexed; the others are" in told.err
    assert index_place(shard).read_bytes() == old
    assert run(["index", "--force", str(shard)]) == 1
    assert capsys.readouterr().err.strip().endswith("1 of 1 shard not indexed")
    index_place(shard).unlink()
    assert run(["index", str(shard)]) == 0
    assert load_index(shard).digest in index_place(shard).read_text()


def test_an_index_of_another_size_or_a_damaged_one_is_built_anew(split: Path, shard: Path) -> None:
    second = split / "train-000001.tar"
    wanted = index_place(shard).read_bytes()
    for other in (index_place(second).read_bytes(), wanted[:-100], b""):
        index_place(shard).write_bytes(other)
        (done,) = build_indexes([shard], 1, Silent(), force=True)
        assert (done.built, done.damage) == (True, None)
        assert index_place(shard).read_bytes() == wanted


def test_an_index_with_an_impossible_place_does_not_hide_a_change_either(split: Path, shard: Path) -> None:
    index_place(shard).write_bytes(index_place(shard).read_bytes().replace(b'png", ', b'png", 9', 1))
    assert [done.built for done in build_indexes([shard], 1, Silent())] == [True]
    index_place(shard).write_bytes(index_place(shard).read_bytes().replace(b'png", ', b'png", 9', 1))
    flip(shard, 1000)
    (done,) = build_indexes([shard], 1, Silent())
    assert done.index is None


@pytest.mark.parametrize("damage", ["picture", "cut", "padding"])
def test_an_index_of_other_bytes_is_not_called_ok(split: Path, shard: Path, damage: str) -> None:
    member = load_index(shard).records[1].members[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[: member.offset])
    else:
        flip(shard, member.offset + (300 if damage == "picture" else member.length))
    assert [f.index_state for f in look(split).findings] == ["differs", "ok"]


def test_an_index_made_of_a_damaged_shard_fits_it(split: Path, shard: Path) -> None:
    damage_one(shard, split)
    index_place(shard).unlink()
    write_index(shard, load_index(shard))
    (finding, _) = look(split).findings
    assert (finding.index_state, finding.damaged_records) == ("ok", 1)


@pytest.mark.parametrize("left", [1, 2, 4])
@pytest.mark.parametrize("inside", [-100, 200])
def test_a_cut_shard_is_told_before_what_the_cut_cost(
    split: Path, shard: Path, left: int, inside: int
) -> None:
    cut = load_index(shard).records[1].members[left].offset + inside
    shard.write_bytes(shard.read_bytes()[:cut])
    first, *records = texts(look(shard))
    assert first.startswith("is cut off")
    assert records == [
        "a_000001: is not all there: the shard is damaged or cut off inside or beside it",
        "a_000002: is in the index and no longer in the shard",
    ]


def test_a_record_that_was_never_whole_is_not_blamed_on_a_cut_elsewhere(split: Path, shard: Path) -> None:
    first, second, _ = load_index(shard).records
    start, stop = first.members[-1].offset - 512, second.members[0].offset - 512
    data = shard.read_bytes()
    # The first record loses its last mask, neatly; the shard its end mark.
    shard.write_bytes(data[:start] + data[stop:-900])
    index_place(shard).unlink()
    cut, record = texts(look(shard))
    assert cut.startswith("is cut off")
    assert record.startswith("a_000000: ")
    assert "cut off" not in record


def test_damaged_compression_is_told_in_plain_words(tmp_path: Path) -> None:
    for number in range(3):
        write_record(tmp_path / "r", make_record(f"a_{number:06d}", frames=3, seed=number))
    (shard,) = pack_all(tmp_path / "r", tmp_path / "s", compress="zst")
    flip(shard, shard.stat().st_size // 2)
    text = next(text for text in texts(look(shard)) if "compression" in text)
    assert re.fullmatch(
        r"its compression is damaged or cut off: its tar can be unpacked up to byte \d+", text
    )


def test_a_damaged_folder_whose_record_a_shard_holds_is_made_again_by_the_command_told(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = split / "a_000001"
    shutil.copytree(tmp_path / "r" / folder.name, folder)
    write_record(split, make_record("b_000000", frames=2))
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in (folder.name, "b_000000"):
        (split / name / "0001_M.png").unlink()
    assert run(["verify", "--repair", "d"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said, _, command = lines[0].partition("train-000000.tar holds it whole, make it again with: vshard ")
    assert said == f"{folder}: moved; what was damaged is in {split}/.vshard/damaged/a_000001; "
    assert lines[1] == f"{split}/b_000000: moved; what was damaged is in {split}/.vshard/damaged/b_000000"
    assert run(shlex.split(command)) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted


def test_a_damaged_record_in_a_shard_is_no_whole_one(split: Path, shard: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "r" / "a_000001", split / "a_000001")
    (split / "a_000001" / "0001_M.png").unlink()
    found = look(split)
    assert found.twins == {split / "a_000001": shard}
    damage_one(shard, split)
    assert look(split).twins == {}


def test_strays_are_counted_and_an_empty_folder_named_first(split: Path) -> None:
    assert look("d").remarks == ()
    (split.parent / "eval").mkdir()
    (split.parent / "README").write_text("a dataset's folder may hold anything")
    for name in (".DS_Store", "train-000002.tar.part"):
        (split / name).write_bytes(b"x")
    assert look("d").remarks == ()
    (split / "notes.txt").write_text("x")
    one = f"{split}/notes.txt is neither shard, index nor record; training leaves it out"
    assert look("d").remarks == look(split).remarks == (one,)
    (split.parent / "eval" / "a_000009").mkdir()
    (split / "thumbs").mkdir()
    (split / "thumbs" / "0000.jpg").write_bytes(b"x")
    (remark,) = look("d").remarks
    assert remark == (
        "d/eval/a_000009 (an empty folder) and 2 more are neither shard, index nor record; training leaves them out"
    )
    assert not look("d").damaged
    assert mend("d").left.remarks == (remark,)
    assert not (split.parent / "eval" / ".vshard").exists()
    assert look(split / "train-000000.tar").remarks == ()


@pytest.mark.parametrize("name", ["x.tar", "y.tar.idx", "train-000001.tar.idx"])
def test_a_named_pipe_is_refused_before_anything_is_mended(split: Path, shard: Path, name: str) -> None:
    damage_one(shard, split)
    before = shard.read_bytes()
    (split / name).unlink(missing_ok=True)
    os.mkfifo(split / name)
    with pytest.raises(
        ShardError, match=f"{name}: is a named pipe or device and no file, .*; remove it, or save"
    ):
        mend("d")
    assert shard.read_bytes() == before
    assert not (split / ".vshard" / "damaged").exists()
    with pytest.raises(ShardError) as caught:
        mend("d")
    assert str(caught.value).count(name) == 1
