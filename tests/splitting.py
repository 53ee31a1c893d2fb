"""What the tests of splitting share: datasets of records in every form, and what a split holds by stock means."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard
from making import all_files as tree  # noqa: F401  (for the tests of split)
from making import make_record

from vshard.base.report import Silent
from vshard.records.record import Record, metadata_bytes, write_record
from vshard.shards.index import read_index, scan_shard
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.split import Outcome, SplitOptions, split

FORMS = ("folder", "shard", "both", "zst")
# What a split holds by stock means: key -> form ("folder", "tar") -> file -> bytes.
Contents = dict[str, dict[str, dict[str, bytes]]]


def record_of(key: str, number: int, **source: str) -> Record:
    """A small record; with ``source`` (name, fingerprint) its metadata tells its video."""
    record = make_record(key, frames=2, size=16, seed=number)
    if not source:
        return record
    return replace(record, metadata=metadata_bytes(json.loads(record.metadata) | {"source": source}))


def pack_in(records: list[Record], folder: Path, name: str, compress: str = "none") -> None:
    """Pack records into shards of three."""
    with tempfile.TemporaryDirectory() as scratch:
        for record in records:
            write_record(Path(scratch), record)
        pack(PackOptions((scratch,), folder, name, shard_records=3, compress=compress), Silent())


def build(root: Path, records: list[Record], forms: list[str]) -> Path:
    """Put records into ``root/train`` as folders, in shards, both, or compressed ones."""
    train = root / "train"
    train.mkdir(parents=True)
    for record, form in zip(records, forms, strict=True):
        if form in ("folder", "both"):
            write_record(train, record)
    for name, wanted, compress in (("plain", ("shard", "both"), "none"), ("packed", ("zst",), "zst")):
        some = [record for record, form in zip(records, forms, strict=True) if form in wanted]
        if some:
            pack_in(some, train, name, compress)
    return root


def hold(folder: Path) -> Contents:
    found: Contents = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name != ".vshard":
            found.setdefault(path.name, {})["folder"] = {p.name: p.read_bytes() for p in path.iterdir()}
        if path.name.endswith((".tar", ".tar.zst")):
            data = path.read_bytes()
            if path.suffix == ".zst":
                with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                    data = reader.read()
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    key, _, file = member.name.partition(".")
                    opened = tar.extractfile(member)
                    assert opened is not None
                    name = "meta.json" if file == "json" else file
                    files = found.setdefault(key, {}).setdefault("tar", {})
                    assert name not in files, member.name
                    files[name] = opened.read()
    return found


def split_up(root: Path, records: int, **options: Any) -> Outcome:
    return split(SplitOptions(root, records, **options), Silent())


def check_indexes(root: Path) -> None:
    for split_name in ("train", "eval"):
        for shard in (root / split_name).glob("*.tar*"):
            if not shard.name.endswith(".idx"):
                assert read_index(shard) == scan_shard(shard), shard


def build_mixed(root: Path) -> Path:
    """Twelve records of four videos in every form; those of the last two videos are told by their keys alone."""
    records = []
    for number in range(12):
        video = number % 4
        source = {"name": f"{video}.mp4", "fingerprint": f"{video:016x}"} if video < 2 else {}
        records.append(record_of(f"p_M_{video:08x}_{number:06d}", number, **source))
    return build(root, records, [FORMS[number % 3 if number < 9 else 3] for number in range(12)])
