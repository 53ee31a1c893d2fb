from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_record
from splitting import (
    FORMS,
    build,
    build_mixed,
    check_indexes,
    hold,
    pack_in,
    record_of,
    split_up,
    tree,
)
from vshard_cli.main import vshard

from vshard.base.errors import DatasetError, OptionError, OutputError, RecordError
from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.shards.holdings import look
from vshard.shards.index import load_index
from vshard.shards.move import plan_move
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.split import OVERSHOOT, choose_records, choose_videos
from vshard.shards.videos import Origin, file_hash_of, stem_of, video_ids
from vshard.stream.split import open_dataset


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return build_mixed(tmp_path / "data")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    forms=st.lists(st.sampled_from(FORMS), min_size=2, max_size=7),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_records_are_kept_counted_and_parted_whatever_their_form(
    tmp_path_factory: pytest.TempPathFactory, forms: list[str], seed: int, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("law")
    wanted = data.draw(st.integers(1, len(forms) - 1))
    records = [record_of(f"r_{number}", number) for number in range(len(forms))]
    build(root, records, forms)
    before = hold(root / "train")
    outcome = split_up(root, wanted, seed=seed, shard_bytes=20_000)
    train, evaluation = hold(root / "train"), hold(root / "eval")
    assert train | evaluation == before
    assert not train.keys() & evaluation.keys()
    assert len(evaluation) == wanted == outcome.evaluation.records
    assert (*sorted(evaluation),) == outcome.keys == (*choose_records(before, wanted, seed),)
    assert outcome.train.records == len(train)
    sizes = {r.key: sum(map(len, r.files().values())) for r in records}
    assert outcome.evaluation.size_bytes == sum(sizes[key] for key in evaluation)
    assert outcome.train.size_bytes == sum(sizes[key] for key in train)
    check_indexes(root)
    after = tree(root)
    assert split_up(root, wanted, seed=seed).keys == ()
    assert tree(root) == after


@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=2), st.data(), st.integers())
def test_moving_some_and_then_more_is_moving_all_at_once(
    keys: set[str], data: st.DataObject, seed: int
) -> None:
    more = data.draw(st.integers(1, len(keys)))
    some = data.draw(st.integers(0, more))
    first = choose_records(keys, some, seed)
    assert sorted([*first, *choose_records(keys - set(first), more - some, seed)]) == choose_records(
        keys, more, seed
    )


def test_seeds_choose_differently() -> None:
    keys = [f"k{number}" for number in range(40)]
    chosen = {tuple(choose_records(keys, 10, seed)) for seed in range(20)}
    assert len(chosen) == 20
    often = Counter(key for some in chosen for key in some)
    assert len(often) == 40  # each has 5 chances in expectation


@given(
    st.dictionaries(st.text("abc", max_size=3), st.integers(1, 30), min_size=1),
    st.integers(1, 100),
    st.integers(),
)
def test_videos_are_taken_until_there_are_enough(counts: dict[str, int], wanted: int, seed: int) -> None:
    taken = choose_videos(counts, wanted, seed)
    total = sum(counts[video] for video in taken)
    assert len(set(taken)) == len(taken)
    assert total >= wanted or len(taken) == len(counts)
    before_last = total - counts[taken[-1]]
    assert before_last < wanted
    if counts[taken[-1]] > OVERSHOOT * (wanted - before_last):
        # Then nothing that overshoots less was left.
        assert all(counts[video] >= counts[taken[-1]] for video in counts.keys() - set(taken))
    if len(taken) == len(counts) > 1:
        # What the refusal allows does work.
        fewer = choose_videos(counts, before_last, seed)
        assert len(fewer) < len(counts)
        assert sum(counts[video] for video in fewer) >= before_last


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(videos=st.lists(st.integers(0, 3), min_size=3, max_size=8), seed=st.integers(0, 3))
def test_by_video_no_video_is_in_both(
    tmp_path_factory: pytest.TempPathFactory, videos: list[int], seed: int
) -> None:
    root = tmp_path_factory.mktemp("video")
    records = [record_of(f"p{n}_M_{video:08x}_{n}_0", n) for n, video in enumerate(videos)]
    build(root, records, [FORMS[n % 4] for n in range(len(videos))])
    before = hold(root / "train")
    if len(set(videos)) == 1:
        with pytest.raises(OptionError, match=r"of 1 videos and eval/ 0, .*make more records first"):
            split_up(root, 1, by_video=True, seed=seed)
        return
    outcome = split_up(root, 1, by_video=True, seed=seed)
    train, evaluation = hold(root / "train"), hold(root / "eval")
    assert train | evaluation == before
    assert train and evaluation
    assert not {file_hash_of(key) for key in train} & {file_hash_of(key) for key in evaluation}
    assert (outcome.shared_videos, outcome.shared_records) == (0, 0)
    assert outcome.evaluation.videos + outcome.train.videos == len(set(videos))


def test_training_reads_what_was_split(mixed: Path) -> None:
    for packed in (mixed / "train").glob("packed*"):  # training reads plain shards
        packed.unlink()
    split_up(mixed, 4)
    train, evaluation, left_out = open_dataset(mixed)
    assert (len(train), len(evaluation), left_out) == (5, 4, 0)
    assert {*map(str, train.keys)} == hold(mixed / "train").keys()


def test_forms_and_shards_after_a_split(mixed: Path) -> None:
    before = hold(mixed / "train")
    names = {path.name for path in (mixed / "train").glob("*.tar*")}
    split_up(mixed, 6, by_video=True, shard_bytes=30_000)
    there = sorted(path.name for path in (mixed / "eval").glob("*.tar*"))
    assert len(there) > 2
    assert there == [f"moved-{n // 2:06d}.tar{'.idx' * (n % 2)}" for n in range(len(there))]
    assert all(p.stat().st_size <= 30_000 for p in (mixed / "eval").glob("*.tar"))
    assert {path.name for path in (mixed / "train").glob("*.tar*")} <= names
    assert hold(mixed / "train") | hold(mixed / "eval") == before
    assert not (mixed / ".vshard" / "split.json").exists()
    check_indexes(mixed)
    # A second series gets another name, and an emptied shard goes.
    split_up(mixed, 9, by_video=True)
    assert (mixed / "eval" / "moved2-000000.tar").exists()
    assert hold(mixed / "train") | hold(mixed / "eval") == before
    for shard in (mixed / "train").glob("*.tar"):
        assert load_index(shard).records
    check_indexes(mixed)


def test_a_shard_of_which_all_records_move_is_removed(tmp_path: Path) -> None:
    keys = [f"r_{n}" for n in range(4)]
    build(tmp_path, [record_of(key, n) for n, key in enumerate(keys)], ["shard"] * 4)
    seed = next(seed for seed in range(100) if choose_records(keys, 3, seed) == keys[:3])
    split_up(tmp_path, 3, seed=seed)
    left = sorted(path.name for path in (tmp_path / "train").glob("plain*"))
    assert left == ["plain-000001.tar", "plain-000001.tar.idx"]


def test_others_shards_keep_their_bytes(tmp_path: Path) -> None:
    """A shard of another writer: no metadata, masks first, a time stamp; and one with derived metadata."""
    (tmp_path / "train").mkdir()
    records = [make_record(f"r_{n}", frames=2, size=16, seed=n) for n in range(4)]
    with tarfile.open(tmp_path / "train" / "foreign.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for record in records[:3]:
            files = [(n, d) for n, d in record.files().items() if n != "meta.json"]
            for name, data in sorted(files, key=lambda item: item[0][5] != "M"):
                info = tarfile.TarInfo(f"{record.key}.{name}")
                info.size, info.mtime = len(data), 1.5
                tar.addfile(info, io.BytesIO(data))
    source = tmp_path / "source"
    write_record(source, records[3])
    (source / "r_3" / "meta.json").unlink()
    pack(PackOptions((str(source),), tmp_path / "train", "d"), Silent())
    before = hold(tmp_path / "train")
    assert "meta.json" not in before["r_0"]["tar"]
    assert json.loads(before["r_3"]["tar"]["meta.json"])["derived"]
    for wanted in (1, 2, 3):
        split_up(tmp_path, wanted)
        assert hold(tmp_path / "train") | hold(tmp_path / "eval") == before
    check_indexes(tmp_path)


def test_too_many(mixed: Path) -> None:
    before = tree(mixed)
    with pytest.raises(OptionError, match=r"--eval 12: train/ holds 12 records and eval/ 0, .* at most 11"):
        split_up(mixed, 12)
    with pytest.raises(OptionError, match=r"of 4 videos and eval/ 0, .* allowed is --eval 9"):
        split_up(mixed, 10, by_video=True)
    with pytest.raises(OptionError, match="--eval 0: allowed is 1 or more"):
        split_up(mixed, 0)
    assert tree(mixed) == before
    assert split_up(mixed, 11).train.records == 1
    with pytest.raises(OptionError, match="make more records first"):
        split_up(mixed, 12)


def test_no_train_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train: no such folder; give the folder that holds train/"):
        split_up(tmp_path, 5)
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"train: holds no records"):
        split_up(tmp_path, 5)


def test_a_dry_run_tells_and_changes_nothing(mixed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in mixed.rglob("*")}
    told = split_up(mixed, 6, by_video=True, dry_run=True)
    assert {p: p.stat().st_mtime_ns for p in mixed.rglob("*")} == before
    assert len(told.keys) == 6
    assert sum(count for _, count in told.videos) == 6
    assert split_up(mixed, 6, by_video=True) == told


def test_by_video_refuses_a_video_in_both_and_says_where(mixed: Path) -> None:
    split_up(mixed, 2)
    outcome = split_up(mixed, 2)
    assert outcome.shared_videos == 2
    before = tree(mixed)
    with pytest.raises(
        DatasetError, match=r"(video 0000000.|\d\.mp4): this video has \d records in train/ and \d in eval/"
    ):
        split_up(mixed, 6, by_video=True)
    assert tree(mixed) == before


def test_records_of_both_splits_count_for_eval_and_stay(mixed: Path) -> None:
    """Somebody moved folders by hand, and their shards still hold them."""
    both = sorted(k for k, forms in hold(mixed / "train").items() if len(forms) == 2)[:2]
    (mixed / "eval").mkdir()
    for key in both:
        (mixed / "train" / key).rename(mixed / "eval" / key)
    outcome = split_up(mixed, 5)
    assert (outcome.evaluation.records, outcome.train.records, outcome.shared_records) == (5, 7, 2)
    assert len(outcome.keys) == 3
    assert not {*both} & {*outcome.keys}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("tears_Any_B_16b248c7_000012", "16b248c7"),
        ("Any_B_16b248c7_3_1", "16b248c7"),  # the original's: sequence and sample
        ("16b248c7_000012", "16b248c7"),
        ("deadbeef_M_16b248c7_000012", "16b248c7"),
        ("p_M_12345678_000012", "12345678"),
        ("p_M_16B248C7_000012", ""),
        ("p_M_16b248c7", ""),
        ("p_M_16b248c7_x_1", ""),
        ("r_000001", ""),
        ("p16b248c7_1", ""),
    ],
)
def test_file_hash_in_a_key(key: str, expected: str) -> None:
    assert file_hash_of(key) == expected


def test_stems_of_keys_without_a_hash() -> None:
    assert [stem_of(key) for key in ("walk_000012", "walk12", "walk", "0012")] == [
        "walk", "walk", "walk", "0012"
    ]  # fmt: skip


def test_which_records_are_of_one_video() -> None:
    def groups(*origins: Origin) -> list[list[str]]:
        ids = video_ids(origins)
        assert ids == video_ids(reversed(origins))
        found: dict[str, list[str]] = {}
        for key in sorted(ids):
            found.setdefault(ids[key], []).append(key)
        return sorted(found.values())

    a, b = "aaaaaaaa", "bbbbbbbb"
    # The fingerprint tells, whatever the file was called; two files of one name are two videos.
    assert groups(Origin(f"p_{a}_1", "F"), Origin(f"q_{b}_1", "F")) == [[f"p_{a}_1", f"q_{b}_1"]]
    assert groups(Origin(f"p_{a}_1", "F"), Origin(f"q_{a}_1", "G")) == [[f"p_{a}_1"], [f"q_{a}_1"]]
    # Without one the hash does, for any prefix.
    assert groups(Origin(f"p_{a}_1"), Origin(f"q_{a}_2_0"), Origin(f"q_{b}_1")) == [
        [f"p_{a}_1", f"q_{a}_2_0"],
        [f"q_{b}_1"],
    ]
    # A record told by its hash may be of either file of that name: they count as one.
    assert len(groups(Origin(f"p_{a}_1", "F"), Origin(f"q_{a}_1", "G"), Origin(f"r_{a}_1"))) == 1
    assert (
        len(groups(Origin(f"p_{a}_1", "F"), Origin(f"q_{b}_1", "F"), Origin(f"r_{a}_1"), Origin(f"s_{b}_1")))
        == 1
    )
    assert groups(Origin("walk_1"), Origin("walk_2"), Origin("run_1")) == [["run_1"], ["walk_1", "walk_2"]]
    # One key in both splits, told differently there, joins its videos.
    assert len(groups(Origin(f"p_{a}_1", "F"), Origin(f"p_{a}_1", "G"), Origin(f"q_{a}_2", "G"))) == 1


def test_what_cannot_move(mixed: Path) -> None:
    key = next(iter(split_up(mixed, 11, dry_run=True).keys))
    assert (mixed / "train" / key).is_dir()
    (mixed / "eval" / key).mkdir(parents=True)
    with pytest.raises(OutputError, match=f"{key}: is in the way of the record"):
        split_up(mixed, 11)
    (mixed / "eval" / key).rmdir()
    write_record(mixed / "train", record_of(key.upper(), 1))
    with pytest.raises(DatasetError, match="differ only by case"):
        split_up(mixed, 1)


def test_a_record_in_two_shards_is_refused(tmp_path: Path) -> None:
    """Taking one copy and throwing the other away may throw the good one away."""
    records = [record_of(f"r_{n}", n) for n in range(3)]
    pack_in(records, tmp_path / "train", "a")
    pack_in(records, tmp_path / "archive", "b", "zst")
    for path in (tmp_path / "archive").glob("b*"):
        path.rename(tmp_path / "train" / path.name)
    before = tree(tmp_path)
    with pytest.raises(
        DatasetError,
        match=r"b-000000\.tar\.zst: record r_\d is in a-000000\.tar too; .*vshard verify --repair",
    ):
        split_up(tmp_path, 1)
    assert tree(tmp_path) == before


def test_damage_stops_a_split_before_it_begins(mixed: Path) -> None:
    meta = next((mixed / "train").glob("*/meta.json"))
    before = tree(mixed)
    meta.write_bytes(b"{")
    loose = meta.parent.name
    if "tar" in hold(mixed / "train")[loose]:
        for shard in (mixed / "train").glob("plain*"):
            shard.unlink()
    with pytest.raises(RecordError, match="its metadata is not readable JSON"):
        split_up(mixed, 3)
    assert not (mixed / "eval").exists()
    assert tree(mixed).keys() <= before.keys()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_folders_do_not_move_to_another_disk(mixed: Path) -> None:
    train = look(mixed / "train", 1, Silent())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == mixed.stat().st_dev:
            pytest.skip("needs a second file system")
        with pytest.raises(OutputError, match="is on another disk than"):
            plan_move(sorted(train.folders), train, look(Path(other), 1, Silent()), 10**9, {})


def run(*words: object) -> str:
    result = CliRunner().invoke(vshard, ["split", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_tells_what_it_did(mixed: Path) -> None:
    told = run("-i", mixed, "--eval", 6, "--by-video", "--dry-run")
    assert "would move 6 records from" in told
    assert "3 records\n" in told
    told = run("-i", mixed, "--eval", 5, "--dry-run")
    assert len([line for line in told.splitlines() if line.startswith("  p_M_")]) == 5
    told = run("-i", mixed, "--eval", 5)
    assert "eval: 5 records of " in told
    assert ", train: 7 records of 4 videos (" in told
    assert "in both splits, so eval/ tells less" in told
    assert f"look at it with: vshard ls {mixed} --sources" in told
    assert f"{mixed / 'eval'} holds 5 records already, nothing moves" in run("-i", mixed, "--eval", 5)
