"""Shards in stores, and an empty cache; see ``cached_shards.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cached_shards import WebShards
from store_servers import Faults, quick_tries, s3_bucket, web_folder

from vshard.base.stores import Remote


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_tries(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache is made."""
    return tmp_path / "cache"


@pytest.fixture
def web_shards(tmp_path: Path) -> Iterator[WebShards]:
    root = tmp_path / "web"
    root.mkdir()
    with web_folder(root) as (place, faults):
        yield WebShards(root, place, faults)


@pytest.fixture(params=["s3", "web"])
def shelf(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Callable[[str, bytes], Remote], Faults]]:
    """Put a file into a store behind vshard's back, and the faults of reading it."""
    if request.param == "s3":
        with s3_bucket(monkeypatch) as bucket:

            def put(name: str, data: bytes) -> Remote:
                bucket.client.put_object(Bucket=bucket.place.name, Key=name, Body=data)
                return bucket.place / name

            yield put, bucket.faults
        return
    shards: WebShards = request.getfixturevalue("web_shards")

    def lay(name: str, data: bytes) -> Remote:
        (shards.root / name).write_bytes(data)
        return shards.place / name

    yield lay, shards.faults
