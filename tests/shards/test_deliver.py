"""Records generated straight into a store, from a video in a store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_servers import S3Bucket, quick_tries, s3_bucket
from vshard_cli.main import run

from vshard.base.report import Silent
from vshard.shards.unpack import UnpackOptions, unpack
from vshard.stream.sheet import record_sheet
from vshard.stream.split import open_split

RECIPE = "--prefix train --seq 12 --skip-interval 0 --size 256 --divergence-level 2 --gpu -1 --backward-mask gradient"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Bucket]:
    quick_tries(monkeypatch)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".tar" in path.name}


def test_a_video_and_its_shards_may_lie_in_a_store(
    store: S3Bucket, dataset: Path, clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = store.place.name
    store.client.upload_file(str(clip_path), bucket, "videos/small.mp4")
    command = ["generate", f"s3://{bucket}/videos/small.mp4", "-o", f"s3://{bucket}/train", *RECIPE.split()]
    store.faults.add(method="PUT", match=".tar.idx", status=403, times=100)
    assert run(command) == 1
    assert "403" in capsys.readouterr().err
    there = store.keys()
    assert not any(key.endswith(".json") for key in there)
    store.faults.coming.clear()
    assert run(command) == 0
    expected = shards_of(dataset / "train")
    there = store.keys()
    sent = [key for key in there if key.startswith("train/") and ".vshard" not in key]
    assert sent == sorted(f"train/{name}" for name in expected)
    for name, data in expected.items():
        assert store.client.get_object(Bucket=bucket, Key=f"train/{name}")["Body"].read() == data
    assert not shards_of(next((tmp_path / "cache" / "vshard" / "runs").iterdir()))
    # Another machine, which has made nothing, knows what is there.
    shutil.rmtree(tmp_path / "cache")
    assert run(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run([*command, "--seed", "5"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run([*command, "--seed", "5", "--overwrite"]) == 0
    name = next(name for name in expected if name.endswith(".tar"))
    assert store.client.get_object(Bucket=bucket, Key=f"train/{name}")["Body"].read() != expected[name]


def test_a_sheet_is_drawn_of_shards_in_a_store(store: S3Bucket, dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "train").iterdir():
        if path.is_file():
            store.client.upload_file(str(path), store.place.name, f"train/{path.name}")
    here, there = open_split(dataset / "train"), open_split(store.place / "train")
    assert here.keys.tolist() == there.keys.tolist()
    store.faults.add(method="GET", match=".tar", cut_after=100, times=2)
    assert record_sheet(here, 3).tobytes() == record_sheet(there, 3).tobytes()
    shards = tuple(store.place / "train" / path.name for path in (dataset / "train").glob("*.tar"))
    assert unpack(UnpackOptions(shards, tmp_path / "back"), Silent()) == len(here)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "-i", "data", "--model-dir", "s3://bucket/models", "--video"],
        ["show", "data", "-o", "s3://bucket/records.png"],
        ["probe", "a.mp4", "-o", "https://host/shots.png"],
        ["render", "gs://bucket/clip.mp4"],
    ],
)
def test_what_has_to_be_here_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command) == 2
    assert "has to be on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
