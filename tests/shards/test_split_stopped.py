from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from splitting import (
    Contents,
    build,
    build_mixed,
    hold,
    record_of,
    split_up,
    tree,
)
from store_servers import s3_bucket, web_folder

from vshard.base.errors import DatasetError, OutputError, StoreError
from vshard.base.report import Silent
from vshard.records import generate
from vshard.records.generate import Made
from vshard.records.plan import GenerateOptions
from vshard.shards import move as moving
from vshard.shards.index import read_index, scan_shard
from vshard.shards.run import run_generation
from vshard.shards.split import SplitOptions, split
from vshard.stream.split import open_dataset


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return build_mixed(tmp_path / "data")


_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class KilledError(BaseException):
    """Stands for a process that ends here and now."""


class _Death:
    """From the ``left``-th change of a file below ``root`` on, nothing can be changed any more."""

    root = ""
    left: int | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _Death.left is None or event not in _EVENTS or not str(args[0]).startswith(_Death.root):
        return
    if event == "open" and not (args[2] & _WRITING or str(args[0]).endswith(".part")):
        return
    _Death.left -= 1
    if _Death.left <= 0:
        raise KilledError


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Death]]:
    monkeypatch.setattr(moving, "AT_ONCE", 1)
    if not hasattr(sys, "_vshard_test_hook"):
        sys.addaudithook(_hook)
        sys._vshard_test_hook = True  # type: ignore[attr-defined]
    yield _Death
    _Death.left = None


def whole_everywhere(root: Path, records: Contents) -> bool:
    """Each record is whole in train or in eval, in each of its forms; no index speaks of what its shard was."""
    train, evaluation = hold(root / "train"), hold(root / "eval")
    for place in root.glob("*/*.idx"):
        shard = place.with_suffix("")
        assert not shard.exists() or read_index(shard) == scan_shard(shard)
    return all(
        train.get(key, {}).get(form) == files or evaluation.get(key, {}).get(form) == files
        for key, forms in records.items()
        for form, files in forms.items()
    )


@pytest.mark.parametrize("by_video", [False, True])
def test_killed_at_any_write_and_run_again_equals_unbroken(
    mixed: Path, tmp_path: Path, by_video: bool, dying: type[_Death]
) -> None:
    options = SplitOptions(Path(), 6 if by_video else 5, by_video=by_video, shard_bytes=20_000)
    records = hold(mixed / "train")
    shutil.copytree(mixed, tmp_path / "whole")
    outcome = split(replace(options, data=tmp_path / "whole"), Silent())
    whole = tree(tmp_path / "whole")
    kills = 0
    for at in range(1, 1000):
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(mixed, root, copy_function=os.link)  # what is changed is replaced
        mine = replace(options, data=root)
        dying.root, dying.left = str(root), at
        try:
            split(mine, Silent())
        except KilledError:
            kills += 1
        else:
            break
        finally:
            dying.left = None
        assert whole_everywhere(root, records), f"killed at change {at}"
        if (root / ".vshard" / "split.json").exists():
            before = tree(root)
            with pytest.raises(OutputError, match=r"half done; finish it with: vshard split .*--seed 71"):
                split(replace(mine, seed=1), Silent())
            assert tree(root) == before
        assert split(mine, Silent()) == outcome, f"killed at change {at}"
        assert tree(root) == whole, f"killed at change {at}"
    assert kills > 40


def test_training_sees_every_record_after_each_kill(tmp_path: Path, dying: type[_Death]) -> None:
    records = [record_of(f"r_{n}", n) for n in range(7)]
    build(tmp_path / "data", records, ["both", "shard", "folder", "both", "shard", "shard", "both"])
    opened = 0
    for at in range(1, 1000):
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "data", root, copy_function=os.link)
        dying.root, dying.left = str(root), at
        try:
            split_up(root, 3)
        except KilledError:
            dying.left = None
        else:
            break
        if hold(root / "eval"):
            train, evaluation, _ = open_dataset(root)
            assert sorted([*map(str, train.keys), *map(str, evaluation.keys)]) == [r.key for r in records]
            opened += 1
    assert opened > 10


_KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def hook(event, args):
    global left
    if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(sys.argv[2]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from pathlib import Path
from vshard.base.report import Silent
from vshard.shards.split import SplitOptions, split
split(SplitOptions(Path(sys.argv[2]), 6, by_video=True, shard_bytes=20_000), Silent())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_and_run_again_equals_unbroken(mixed: Path, tmp_path: Path) -> None:
    records = hold(mixed / "train")
    shutil.copytree(mixed, tmp_path / "whole")
    options = SplitOptions(tmp_path / "whole", 6, by_video=True, shard_bytes=20_000)
    split(options, Silent())
    whole = tree(tmp_path / "whole")
    planned = 0
    for at in (30, 45, 60, 75):
        root = tmp_path / f"killed-{at}"
        shutil.copytree(mixed, root)
        killed = subprocess.run([sys.executable, "-c", _KILLED, str(at), str(root)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert whole_everywhere(root, records)
        planned += (root / ".vshard" / "split.json").exists()
        split(replace(options, data=root), Silent())
        assert tree(root) == whole
    assert planned >= 2


def stop_in_the_middle(root: Path, dying: type[_Death]) -> Path:
    """Stop a split right after it has written its plan."""
    dying.root, dying.left = str(root), 12
    with pytest.raises(KilledError):
        split_up(root, 5)
    dying.left = None
    plan = root / ".vshard" / "split.json"
    assert plan.exists()
    return plan


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(schema="other"),
        lambda p: p.update(keys=["../../outside"]),
        lambda p: p.update(folders=["../escape"]),
        lambda p: p.update(shards=["../x.tar"]),
        lambda p: p["made"][0].update(name="../../moved-000000.tar"),
        lambda p: p["made"][0].update(sources={"/etc/x.tar": []}),
        lambda p: p.update(choice={}),
        lambda p: p.pop("made"),
        lambda p: p.update(more=1),
        lambda p: p.update(keys=5),
        lambda p: p.update(keys=p["keys"] + p["keys"][:1]),
        lambda p: p.update(keys=[]),
        lambda p: p.update(shards=["\0.tar"]),
        lambda p: p.update(shards=["\ud800.tar"]),
        lambda p: p.update(choice={"eval": "\x1b[2J\n", "by_video": False, "seed": 71}),
        lambda p: p["made"][0].update(size_bytes="x"),
        lambda p: p["made"][0].update(name="\ud800.tar"),
        lambda p: p.update({"\x1b[2J": 1}),
        lambda p: p["made"].append(p["made"][0]),
        lambda p: p["made"].append({**p["made"][0], "sources": {"other-000000.tar": ["other"]}}),
    ],
)
def test_a_plan_that_is_none_is_refused(mixed: Path, dying: type[_Death], change: Any) -> None:
    plan = stop_in_the_middle(mixed, dying)
    content = json.loads(plan.read_bytes())
    change(content)
    plan.write_text(json.dumps(content))
    before = tree(mixed)
    with pytest.raises(DatasetError, match=r"split\.json: is not the plan of a split"):
        split_up(mixed, 5)
    assert tree(mixed) == before
    plan.write_bytes(b"[" * 100_000)
    with pytest.raises(DatasetError, match=r"split\.json: is not the plan of a split"):
        split_up(mixed, 5)


def test_a_plan_whose_records_went_is_told(mixed: Path, dying: type[_Death]) -> None:
    stop_in_the_middle(mixed, dying)
    for shard in (mixed / "train").glob("plain-*"):
        shard.unlink()
    with pytest.raises(DatasetError, match=r"split\.json: record .* is in neither split; remove this file"):
        split_up(mixed, 5)


def test_two_splits_at_once_are_refused(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = moving._make

    def meanwhile(*args: Any) -> None:
        with pytest.raises(OutputError, match="another vshard is splitting now"):
            split_up(mixed, 5)
        real(*args)

    monkeypatch.setattr(moving, "_make", meanwhile)
    assert split_up(mixed, 5).evaluation.records == 5


def test_an_unfinished_run_is_refused_and_a_finished_one_stays_finished(
    clip_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(info: Any, sequences: list[Any], options: GenerateOptions, estimators: Any) -> Iterator[Made]:
        for sequence in sequences:
            yield Made(
                sequence.number, (record_of(f"{options.stem}_{sequence.number:06d}", sequence.number),), ()
            )

    monkeypatch.setattr(generate, "generate_records", quick)
    options = GenerateOptions(
        video=str(clip_path),
        output=tmp_path / "train",
        seq=12,
        skip_interval=0,
        backward_mask="gradient",
        gpu=-1,
    )
    assert run_generation(options, Silent()).records == 4
    before = hold(tmp_path / "train")
    (state,) = (tmp_path / "train" / ".vshard").glob("*.json")
    content = state.read_text()
    for unfinished in (content.replace('"complete": true', '"complete": false'), "{"):
        state.write_text(unfinished)
        with pytest.raises(DatasetError, match=rf"{state.name}: .*{state.stem} are not all made; finish"):
            split_up(tmp_path, 1)
    state.write_text(content)
    split_up(tmp_path, 1)
    assert hold(tmp_path / "train") | hold(tmp_path / "eval") == before
    after = tree(tmp_path)
    assert run_generation(options, Silent()).complete
    assert tree(tmp_path) == after


def upload(bucket: Any, root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            key = path.relative_to(root).as_posix()
            bucket.client.put_object(Bucket=bucket.place.name, Key=f"data/{key}", Body=path.read_bytes())


def download(bucket: Any) -> dict[str, bytes]:
    return {
        key.removeprefix("data/"): bucket.client.get_object(Bucket=bucket.place.name, Key=key)["Body"].read()
        for key in bucket.keys()  # noqa: SIM118
    }


def test_a_split_in_a_store_gives_the_same_files(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        upload(bucket, mixed)
        real = moving.remove
        left = 0

        def stops(place: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            real(place)

        monkeypatch.setattr(moving, "AT_ONCE", 1)
        monkeypatch.setattr(moving, "remove", stops)
        options = SplitOptions(bucket.place / "data", 5)
        for allowed in (
            1,
            4,
            4,
        ):  # among shards, then among the files of folders, which are removed one by one
            left = allowed
            with pytest.raises(KilledError):
                split(options, Silent())
        left = 1000
        outcome = split(options, Silent())
        assert outcome == split_up(mixed, 5)
        assert download(bucket) == tree(mixed)
        assert bucket.open_uploads() == 0


def test_a_web_server_is_only_read(mixed: Path) -> None:
    with web_folder(mixed) as (place, _):
        with pytest.raises(StoreError, match="can only be read"):
            split(SplitOptions(place, 5), Silent())
        assert split(SplitOptions(place, 5, dry_run=True), Silent()) == split_up(mixed, 5)
