"""Stores to read from and write to; see ``store_servers.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcs_server import GcsBucket, gcs_bucket
from store_folders import PART, Folder, Shelf
from store_servers import Faults, S3Bucket, quick_tries, s3_bucket, web_folder

from vshard.base import remote_files
from vshard.base.stores import Remote


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hardly at all between tries, and send small parts."""
    quick_tries(monkeypatch)
    monkeypatch.setattr(remote_files, "PART_BYTES", PART)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsBucket]:
    with gcs_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, Remote, Faults]]:
    with web_folder(tmp_path) as (place, faults):
        yield tmp_path, place, faults


@pytest.fixture(params=["local", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":

        def names() -> list[str]:
            return sorted(str(p.relative_to(tmp_path).as_posix()) for p in tmp_path.rglob("*") if p.is_file())

        return Folder(tmp_path, names, lambda: sum(name.endswith(".part") for name in names()))
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")
        return Folder(bucket.place, bucket.keys, bucket.open_uploads)
    store: GcsBucket = request.getfixturevalue("gcs")
    return Folder(store.place, lambda: sorted(store.objects), lambda: len(store.uploads))


@pytest.fixture(params=["s3", "web"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    """Put a file into a store behind vshard's back, and the faults of reading it."""
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")

        def put(name: str, data: bytes) -> Remote:
            bucket.client.put_object(Bucket=bucket.place.name, Key=name, Body=data)
            return bucket.place / name

        return put, bucket.faults
    root, place, faults = request.getfixturevalue("web")

    def lay(name: str, data: bytes) -> Remote:
        (root / name).write_bytes(data)
        return place / name

    return lay, faults
