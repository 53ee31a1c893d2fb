"""A tar from a command or on standard input gives a sample of every record, once, whatever is wrong with it told."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from making import Listening, make_record

from vshard.base.errors import DatasetError, OptionError, RecordError, ShardError, StoreError, VshardError
from vshard.base.pipes import Pipe
from vshard.base.report import Silent
from vshard.records.record import Record, write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.loader import SKIPPED_IN_A_ROW_MAX
from vshard.stream.one_pass import Mixing, OnePassOptions, Passed, one_pass
from vshard.stream.reader import Reader
from vshard.stream.samples import Sample, training_sample
from vshard.stream.split import open_split

COUNT = 7
KEYS = [f"some_{number:06d}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [make_record(key, frames=13, size=264, seed=number) for number, key in enumerate(KEYS)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    """A folder with a plain and a compressed shard of the same records."""
    root = tmp_path_factory.mktemp("one_pass")
    for record in records:
        write_record(root / "records", record)
    pack(PackOptions((str(root / "records"),), root, "plain"), Silent())
    pack(PackOptions((str(root / "records"),), root / "zst", "packed", compress="zst"), Silent())
    return root


@pytest.fixture
def plain(shards: Path) -> Path:
    return shards / "plain-000000.tar"


def piped(*files: Path) -> list[Pipe]:
    return [Pipe(f"cat {file}") for file in files]


def drawn(*files: Path, workers: int = 0, **options: object) -> list[Sample]:
    # Copies: their memory is used again.
    return [
        copy(sample)
        for sample in one_pass(piped(*files), OnePassOptions(3, workers=workers, **options), Silent())
    ]


def copy(sample: Sample) -> Sample:
    return Sample(sample.rgb.copy(), sample.hole.copy(), *vars_of(sample))


def vars_of(sample: Sample) -> tuple:
    return sample.gray, sample.scale, sample.bias, sample.key, sample.position, sample.weight


def assert_equal(samples: list[Sample], others: list[Sample]) -> None:
    assert len(samples) == len(others)
    for sample, other in zip(samples, others, strict=True):
        assert (sample.key, sample.position, sample.gray) == (other.key, other.position, other.gray)
        for name in ("rgb", "hole", "scale", "bias"):
            assert np.array_equal(getattr(sample, name), getattr(other, name))


def test_samples_are_those_of_records_asked_for_by_number(shards: Path, plain: Path) -> None:
    split = open_split(shards / "records")
    reader = Reader(split)
    for sample in drawn(plain, epoch=2):
        record = split.keys.tolist().index(sample.key)
        asked = training_sample(reader, record, seed=3, epoch=2, position=sample.position)
        assert_equal([sample], [asked])


def test_a_loader_process_gives_the_same(plain: Path) -> None:
    assert_equal(drawn(plain, workers=1), drawn(plain))


def test_order_comes_from_seed_and_pass(plain: Path) -> None:
    def order(epoch: int) -> list[str]:
        return [sample.key for sample in drawn(plain, epoch=epoch)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2)) == KEYS
    assert [sample.key for sample in drawn(plain, buffer_records=1)] == KEYS


def test_streams_follow_one_another_packed_or_not(shards: Path, plain: Path) -> None:
    found = drawn(plain, shards / "zst" / "packed-000000.tar.zst", buffer_records=1)
    assert [sample.key for sample in found] == KEYS * 2
    assert [sample.position for sample in found] == list(range(2 * COUNT))


def test_a_tar_by_webdataset_is_read(tmp_path: Path, records: list[Record]) -> None:
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for record in records:
            files = list(record.files().items())[1:]  # as the original's: without metadata
            writer.write({"__key__": record.key} | dict(files))
    assert {sample.key for sample in drawn(tmp_path / "theirs.tar")} == set(KEYS)


@pytest.mark.parametrize("workers", [0, 1])
def test_standard_input_is_read(plain: Path, workers: int) -> None:
    program = (
        "from vshard.base.report import Silent\n"
        "from vshard.stream.one_pass import OnePassOptions, StandardInput, one_pass\n"
        f"options = OnePassOptions(3, workers={workers})\n"
        "print(*(sample.key for sample in one_pass([StandardInput()], options, Silent())))\n"
    )
    with plain.open("rb") as file:
        told = subprocess.run(
            [sys.executable, "-c", program], stdin=file, capture_output=True, text=True, timeout=60
        )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [sample.key for sample in drawn(plain)]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 40), most=st.integers(1, 50), seed=st.integers(0, 9))
def test_mixing_gives_each_once_from_within_its_buffer(count: int, most: int, seed: int) -> None:
    came: list[int] = []

    def coming() -> Iterator[Passed]:
        for number in range(count):
            came.append(number)
            yield Passed("", str(number), {"f": b"x"})

    given_back = []
    for passed in Mixing(seed, 1, most)(coming()):
        given_back.append(int(passed.key))
        assert len(came) - len(given_back) < most
    assert sorted(given_back) == list(range(count))


def test_the_buffer_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vshard.stream.one_pass._BUFFER_BYTES", 100)
    came = 0

    def coming() -> Iterator[Passed]:
        nonlocal came
        for number in range(20):
            came += 1
            yield Passed("", str(number), {"f": bytes(30)})

    for taken, _ in enumerate(Mixing(1, 1, 50)(coming()), start=1):
        assert came - taken <= 3


def test_mixing_mixes() -> None:
    passed = [Passed("", str(number), {}) for number in range(400)]
    order = [int(record.key) for record in Mixing(1, 1, 100)(passed)]
    assert abs(np.corrcoef(order[:300], range(300))[0, 1]) < 0.95
    assert min(order[:20]) < 50 < max(order[:20])


# What is wrong is told.


def members_of(shard: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_stream_cut_off_anywhere_is_told(plain: Path, tmp_path: Path) -> None:
    whole = plain.read_bytes()
    with tarfile.open(plain) as tar:
        ends = [info.offset for info in tar]
    last = max(index for index in range(len(whole)) if whole[index]) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for size in (*ends[1::40], ends[30] + 100, ends[30] + 700, last, last + 512):
        cut.write_bytes(whole[:size])
        with pytest.raises(ShardError, match="cut.tar: is cut off"):
            drawn(cut)


def test_a_command_that_fails_is_told(plain: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(StoreError, match=r"the command failed \(exit code 3\)"):
            list(one_pass([Pipe(f"cat {plain}; exit 3")], OnePassOptions(1, workers=workers), Silent()))


def damaged(plain: Path, target: Path, *, keys: set[str]) -> Path:
    """Flip a bit in the pixels of every first frame of ``keys``."""
    members = []
    for info, data in members_of(plain):
        if info.name.endswith(".0005_C.png") and info.name.split(".")[0] in keys:
            data = data[:300] + bytes([data[300] ^ 1]) + data[301:]
        members.append((info, data))
    return write_tar(target, members)


def test_a_damaged_record_is_told_by_name_or_skipped(plain: Path, tmp_path: Path) -> None:
    bad = damaged(plain, tmp_path / "bad.tar", keys={KEYS[2], KEYS[4]})
    named = (
        rf"pipe:cat .*bad.tar:{KEYS[2]}/0005_C.png: damaged \(wrong checksum of its (pixels|restart points)\)"
    )
    for workers in (0, 1):
        with pytest.raises(RecordError, match=named) as caught:
            drawn(bad, buffer_records=1, workers=workers)
        assert "Traceback" not in str(caught.value)
    report = Listening()
    options = OnePassOptions(3, workers=1, on_error="skip")
    found = [sample.key for sample in one_pass(piped(bad), options, report)]
    assert sorted(found) == sorted(set(KEYS) - {KEYS[2], KEYS[4]})
    assert [line[-19:] for line in report.warned] == ["(skipped, 1 so far)", "(skipped, 2 so far)"]


def test_too_many_damaged_in_a_row_stop(plain: Path, tmp_path: Path) -> None:
    bad = damaged(plain, tmp_path / "bad.tar", keys=set(KEYS))
    report = Listening()
    with pytest.raises(
        DatasetError, match=f"{SKIPPED_IN_A_ROW_MAX + 1} records in a row cannot be read, the last: "
    ):
        list(one_pass(piped(bad, bad, bad, bad), OnePassOptions(3, workers=0, on_error="skip"), report))
    with pytest.raises(DatasetError, match=r"bad.tar: gave no sample \(7 records skipped\)"):
        list(one_pass(piped(bad), OnePassOptions(3, workers=0, on_error="skip"), report))


def odd_members() -> dict[str, tarfile.TarInfo]:
    link, device, folder = (tarfile.TarInfo(f"{KEYS[0]}.0000_C.png") for _ in range(3))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    device.type = tarfile.CHRTYPE
    folder.type = tarfile.DIRTYPE
    outside = tarfile.TarInfo("../outside.0000_C.png")
    dotted = tarfile.TarInfo("movie.a.0000_C.png")
    huge = tarfile.TarInfo(f"{KEYS[0]}.0000_C.png")
    huge.size = 1 << 40
    return {"a symbolic link": link, "a device": device, "a folder": folder, "no record's file": outside,
            "is no record's file": dotted, "1099511627776 bytes": huge}  # fmt: skip


@pytest.mark.parametrize("told", odd_members())
def test_what_no_shard_holds_is_refused(tmp_path: Path, told: str) -> None:
    odd = odd_members()[told]
    (tmp_path / "odd.tar").write_bytes(odd.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ShardError, match=told):
        drawn(tmp_path / "odd.tar")


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (bytes(10240), DatasetError, "gave no sample"),
        (b"", ShardError, "cut off"),
        (b"\x1f\x8b\x08" + bytes(2000), ShardError, "damaged header"),
        (b"<html>" * 300, ShardError, "damaged header"),
    ],
)
def test_what_is_no_tar_is_told(tmp_path: Path, content: bytes, kind: type[VshardError], told: str) -> None:
    (tmp_path / "some").write_bytes(content)
    with pytest.raises(kind, match=told):
        drawn(tmp_path / "some")


def test_records_too_short_or_in_pieces_are_told(tmp_path: Path, plain: Path) -> None:
    members = members_of(plain)
    short = [member for member in members if not member[0].name[12:16].startswith("001")]
    with pytest.raises(RecordError, match=f"short.tar:{KEYS[0]}: has 10 frames, training takes 12"):
        drawn(write_tar(tmp_path / "short.tar", short), buffer_records=1)
    pieces = [*members[:4], *members[27:30], *members[4:27]]
    with pytest.raises(
        RecordError, match=f"pieces.tar:{KEYS[0]}: 2 frames and 1 other pictures do not pair up"
    ):
        drawn(write_tar(tmp_path / "pieces.tar", pieces), buffer_records=1)


def test_a_pass_can_end_early(plain: Path, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    endless = Pipe(f"while cat {plain}; do sleep 0.05; done; touch {ended}")
    samples = one_pass([Pipe(f"cat {plain}"), endless], OnePassOptions(3, buffer_records=2), Silent())
    assert next(samples).key in KEYS
    samples.close()


@pytest.mark.parametrize("options", [{"workers": 2}, {"buffer_records": 0}, {"on_error": "ignore"}])
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(OptionError, match="allowed"):
        OnePassOptions(1, **options)
