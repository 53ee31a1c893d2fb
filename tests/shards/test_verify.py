from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_record
from PIL import Image

from vshard.base.errors import RecordError, VshardError
from vshard.base.report import Silent
from vshard.records.png import SIGNATURE, check_pixels, encode_png
from vshard.records.record import write_record
from vshard.shards.index import index_place, load_index
from vshard.shards.indexing import build_indexes
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.shards.unpack import UnpackOptions, unpack
from vshard.shards.verify import Verified, find_targets, verify

QUICK = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pack_all(source: Path, output: Path, name: str = "train", compress: str = "none") -> list[Path]:
    options = PackOptions((str(source),), output, name, shard_records=3, compress=compress)
    return [shard for shard in pack(options, Silent()).shards if isinstance(shard, Path)]


def look(*places: Path | str, allow_pipe: bool = False) -> Verified:
    return verify(find_targets(map(str, places), allow_pipe=allow_pipe), 1, Silent())


def texts(found: Verified) -> list[str]:
    return [problem.text for finding in found.findings for problem in finding.problems]


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for number in range(4):
        write_record(tmp_path / "d" / "train", make_record(f"a_{number:06d}", frames=3, seed=number))
    return tmp_path / "d" / "train"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain and a compressed shard of two small records, each with its index."""
    root = tmp_path_factory.mktemp("small")
    for number in range(2):
        write_record(root / "r", make_record(f"a_{number:06d}", frames=2, seed=number))
    return {suffix: pack_all(root / "r", root / suffix, compress=suffix)[0] for suffix in ("none", "zst")}


def test_what_is_whole_is_found_whole(split: Path) -> None:
    shard, second = pack_all(split, split)
    found = look(split.parent)
    assert [(f.place, f.form, f.records, f.frames, f.index_state) for f in found.findings] == [
        (shard, "shard", 3, 9, "ok"),
        (second, "shard", 1, 3, "ok"),
        *((split / f"a_{number:06d}", "folder", 1, 3, None) for number in range(4)),
    ]
    assert not found.damaged
    assert not found.remarks
    assert sum(f.size_bytes for f in found.findings[:2]) == sum(s.stat().st_size for s in (shard, second))
    assert look(shard).findings == look(index_place(shard)).findings == found.findings[:1]
    assert look(split / "a_000000").findings == found.findings[2:3]


def test_a_missing_index_is_no_damage_and_an_empty_place_an_error(split: Path) -> None:
    (shard, _) = pack_all(split, split)
    index_place(shard).unlink()
    found = look(shard)
    assert (found.findings[0].index_state, texts(found)) == ("missing", [])
    (split / "bare").mkdir()
    for place, said in ((split / "bare", "nothing to verify"), (split / "none", "no such folder")):
        with pytest.raises(VshardError, match=said):
            look(place)
    with pytest.raises(VshardError, match="is no shard"):
        look(split / "a_000000" / "meta.json")


@pytest.mark.parametrize("suffix", ["none", "zst"])
@given(st.data())
@QUICK
def test_any_flipped_byte_and_any_cut_is_noticed(
    shards: dict[str, Path], tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    whole = shards[suffix].read_bytes()
    shard = tmp_path / shards[suffix].name
    index_place(shard).write_bytes(index_place(shards[suffix]).read_bytes())
    shard.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="cut")])
    assert look(shard).damaged
    shard.write_bytes(whole)
    assert not look(shard).damaged
    flip(shard, data.draw(st.integers(0, len(whole) - 1), label="at"), data.draw(st.integers(1, 255)))
    assert look(shard).damaged


@given(st.data())
@QUICK
def test_any_flipped_byte_of_an_index_is_noticed(
    shards: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    shard = tmp_path / shards["none"].name
    shard.write_bytes(shards["none"].read_bytes())
    whole = index_place(shards["none"]).read_bytes()
    index_place(shard).write_bytes(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    flip(index_place(shard), at, data.draw(st.integers(1, 255)))
    (finding,) = look(shard).findings
    # Another digest that still reads as one may as well be the shard's fault.
    digest = whole.index(b'"sha256": "') + 11
    in_digest = digest <= at < digest + 64
    assert finding.index_state in {"stale or damaged", *(["differs"] if in_digest else [])}
    assert finding.damaged_records == 0


def json_bytes(shard: Path) -> set[int]:
    members = [m for record in load_index(shard).records for m in record.members if m.file == "meta.json"]
    return {byte for m in members for byte in range(m.offset, m.offset + m.length)}


@given(st.data())
@QUICK
def test_without_an_index_what_matters_is_noticed(
    shards: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    """All but metadata that still reads as such: its words have no checksum of their own."""
    whole = shards["none"].read_bytes()
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(whole)
    left = json_bytes(shard)
    at = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at not in left))
    flip(shard, at, data.draw(st.integers(1, 255)))
    assert look(shard).damaged
    name = data.draw(st.sampled_from(["none", "zst"]))
    whole = shards[name].read_bytes()
    cut = tmp_path / shards[name].name
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert look(cut).damaged


def test_every_byte_of_a_header_and_of_the_end_is_looked_at(tmp_path: Path) -> None:
    write_record(tmp_path / "r", make_record("a_000000", frames=1, size=8))
    (shard,) = pack_all(tmp_path / "r", tmp_path / "s")
    index_place(shard).unlink()
    whole = shard.read_bytes()
    checksum = range(148, 157)
    for at in [*checksum, *range(0, 512, 7), *range(len(whole) - 1024, len(whole), 31)]:
        for mask in range(1, 256, 2) if at in checksum else (1, 0x80):
            shard.write_bytes(whole)
            flip(shard, at, mask)
            assert look(shard).damaged, (at, mask)


@pytest.mark.slow
def test_thousands_of_flips_and_cuts(shards: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for suffix, path in shards.items():
        whole = path.read_bytes()
        shard = tmp_path / path.name
        index_place(shard).write_bytes(index_place(path).read_bytes())
        for turn in range(1000):
            data = bytearray(whole)
            data[rng.integers(len(whole))] ^= rng.integers(1, 256)
            shard.write_bytes(data if turn % 3 else whole[: rng.integers(len(whole))])
            assert look(shard).damaged, (suffix, turn)


spoils = st.lists(
    st.tuples(
        st.sampled_from(["flip", "zero", "cut", "drop", "twice"]), st.floats(0, 1), st.integers(1, 3000)
    ),
    min_size=1,
    max_size=4,
)


def spoil(data: bytes, kinds: list[tuple[str, float, int]]) -> bytes:
    """Damage as disks and transfers do it, at bytes or at blocks."""
    for kind, where, size in kinds:
        at = int(where * len(data))
        block = at // 512 * 512
        if kind == "flip":
            data = data[:at] + bytes([(data + b"\0")[at] ^ (size % 255 + 1)]) + data[at + 1 :]
        elif kind == "zero":
            data = data[:block] + bytes(len(data[block : block + size])) + data[block + size :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:block] + data[block + size // 512 * 512 :]
        else:
            data = data[: block + size // 512 * 512] + data[block:]
    return data


@pytest.mark.parametrize("suffix", ["none", "zst"])
@given(spoils, st.booleans())
@QUICK
def test_no_damage_makes_a_command_fall_over(
    shards: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    kinds: list[tuple[str, float, int]],
    indexed: bool,
) -> None:
    root = tmp_path_factory.mktemp("spoilt")
    shard = root / shards[suffix].name
    shard.write_bytes(spoil(shards[suffix].read_bytes(), kinds))
    if indexed:
        index_place(shard).write_bytes(index_place(shards[suffix]).read_bytes())
    look(shard)
    for command in (
        lambda: unpack(UnpackOptions((shard,), root / "out"), Silent()),
        lambda: unpack(UnpackOptions((shard,), root / "one", "a_000001"), Silent()),
        lambda: pack(PackOptions((str(shard),), root / "again", "train"), Silent()),
        lambda: build_indexes([shard], 1, Silent(), force=True),
    ):
        try:
            command()
        except VshardError as error:
            assert "\n" not in str(error)


def pictures() -> dict[str, bytes]:
    """PNGs of all kinds, as others write them."""
    gray = (np.arange(48 * 40) * 7 % 251).astype(np.uint8).reshape(40, 48)
    rgb = np.dstack([gray, gray[::-1], gray[:, ::-1]])
    kinds = {
        "gray": Image.fromarray(gray),
        "rgb": Image.fromarray(rgb),
        "alpha": Image.fromarray(np.dstack([rgb, gray])),
        "palette": Image.fromarray(rgb).convert("P"),
        "one bit": Image.fromarray(gray > 100),
        "sixteen bit": Image.fromarray(gray.astype(np.uint16) * 257),
    }
    found = {"ours": encode_png(rgb)}
    for kind, image in kinds.items():
        out = io.BytesIO()
        image.save(out, "PNG")
        found[kind] = out.getvalue()
    found["many chunks"] = rechunked(found["rgb"], 100)
    found["interlaced"] = interlaced(gray[:8, :8])
    return found


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        found.append((png[position + 4 : position + 8], png[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, payload) for kind, payload in parts)


def rechunked(png: bytes, size: int) -> bytes:
    parts = []
    for kind, payload in chunks(png):
        step = size if kind == b"IDAT" else max(len(payload), 1)
        parts += [(kind, payload[at : at + step]) for at in range(0, max(len(payload), 1), step)]
    return joined(parts)


def interlaced(gray: np.ndarray) -> bytes:
    """(8, 8) uint8 in the seven passes of Adam7."""
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in gray[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return joined([(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")])


@pytest.mark.parametrize("kind", pictures())
def test_pictures_of_all_kinds_are_read_as_pillow_does_and_no_flip_passes(kind: str) -> None:
    png = pictures()[kind]
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert check_pixels(png, "x") == (image.height, image.width)
    for at in range(len(png)):
        for mask in (1, 0x80):
            with pytest.raises(RecordError, match="x"):
                check_pixels(png[:at] + bytes([png[at] ^ mask]) + png[at + 1 :], "x")
    for at in range(0, len(png), 5):
        with pytest.raises(RecordError, match="x"):
            check_pixels(png[:at], "x")


@pytest.mark.parametrize("kind", pictures())
@given(st.data())
@QUICK
def test_damage_under_right_checksums_is_an_error_or_the_pillow_picture(
    kind: str, data: st.DataObject
) -> None:
    parts = chunks(pictures()[kind])
    number = data.draw(st.integers(0, len(parts) - 2))
    name, payload = parts[number]
    at = data.draw(st.integers(0, len(payload) - 1))
    changed = payload[:at] + bytes([payload[at] ^ data.draw(st.integers(1, 255))]) + payload[at + 1 :]
    png = joined([*parts[:number], (name, changed), *parts[number + 1 :]])
    try:
        size = check_pixels(png, "x")
    except RecordError as error:
        assert "\n" not in str(error)
        return
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert size == (image.height, image.width)


def test_the_sum_behind_the_pixels_and_the_filters_are_checked() -> None:
    head, (_, body), end = chunks(encode_png(np.zeros((8, 8), np.uint8)))
    wrong_sum = body[:-1] + bytes([body[-1] ^ 1])
    unknown = zlib.compress(b"\x05" + bytes(8) + (b"\x02" + bytes(8)) * 7)
    long = zlib.compress((b"\x02" + bytes(8)) * 9)
    short = zlib.compress((b"\x02" + bytes(8)) * 7)
    for idat, said in (
        (wrong_sum, "do not inflate"),
        (unknown, "unknown filter"),
        (long, "do not inflate"),
        (short, "holds 63 of 72 bytes"),
        (body[:-4], "do not inflate"),
    ):
        with pytest.raises(RecordError, match=said):
            check_pixels(joined([head, (b"IDAT", idat), end]), "x")


@pytest.mark.parametrize("value", ["\ud800", "\x1b[31m\n", "x" * 5000])
def test_words_of_strangers_are_printed_plainly(split: Path, value: str) -> None:
    path = split / "a_000001" / "meta.json"
    for name in ("frames", "height", "width", "schema"):
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"frames": 3, "height": 32, "width": 32, name: value})
        )
        (text,) = texts(look(split))
        assert text.isprintable()
        assert len(text.encode()) < 600
        assert text.startswith("its metadata ")


@pytest.mark.parametrize("name", ["x.tar", "y.tar.idx", "train-000000.tar.idx"])
def test_pipes_among_files_are_told_and_waited_for_by_nobody(split: Path, name: str) -> None:
    pack_all(split, split)
    (split / name).unlink(missing_ok=True)
    os.mkfifo(split / name)
    (finding,) = look(split).damaged
    assert finding.problems[-1].text.endswith("index is damaged" if "0.tar" in name else "is no plain file")
