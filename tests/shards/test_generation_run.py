from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from making import Listening, make_record
from making import all_files as tree

from vshard.base import files
from vshard.base.errors import OptionError, OutputError, VideoError
from vshard.base.report import Silent
from vshard.clips.plan import Sequence
from vshard.clips.probe import VideoInfo
from vshard.records import generate
from vshard.records.generate import Estimators, Made, Reject
from vshard.records.names import record_key
from vshard.records.plan import GenerateOptions
from vshard.shards.index import load_index
from vshard.shards.run import run_generation


def quick_records(
    info: VideoInfo, sequences: list[Sequence], options: GenerateOptions, estimators: Estimators
) -> Iterator[Made]:
    """Records that depend on their key alone, made at once: what is tested here is how they are kept."""
    for sequence in sequences:
        records, rejects = [], []
        for view in ("backward", "forward"):
            key = record_key(options.stem, sequence=sequence.number, view=view, sample=0, num_samples=1)
            if sequence.number == 1 and view == "forward":
                rejects.append(Reject(key, "mask too small", "12 px a frame"))
            else:
                records.append(make_record(key, size=160, seed=sequence.number * 2 + (view == "forward")))
        yield Made(sequence.number, tuple(records), tuple(rejects))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "generate_records", quick_records)


def options(clip: Path, output: Path, **changes: object) -> GenerateOptions:
    chosen = GenerateOptions(
        video=str(clip),
        output=output,
        prefix="t",
        seq=12,
        skip_interval=0,
        size=256,
        gpu=-1,
        backward_mask="gradient",
        shard_bytes=1 << 20,
    )
    return replace(chosen, **changes)


class KilledError(BaseException):
    """Stands for a process that ends here and now."""


@pytest.mark.parametrize("form", ["both", "dirs", "shards"])
def test_killed_at_any_write_and_run_again_equals_unbroken(
    clip_path: Path, tmp_path: Path, form: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = run_generation(options(clip_path, tmp_path / "whole", format=form), Silent())
    whole = tree(tmp_path / "whole")
    assert (state.records, state.rejected, state.complete) == (7, {"mask too small": 1}, True)
    assert sum(name.endswith(".tar") for name in whole) == (0 if form == "dirs" else 7)
    real = {name: getattr(files, name) for name in ("sync_file", "sync_folder", "part_of")}
    left = -1

    def dying(name: str):
        def call(path: Path):
            nonlocal left
            left -= 1
            if left == 0:
                raise KilledError
            return real[name](path)

        return call

    for name in real:
        monkeypatch.setattr(files, name, dying(name))
    kills = 0
    for at in range(1, 10_000, 7 if form != "shards" else 2):
        output = tmp_path / f"killed-{at}"
        left = at
        try:
            run_generation(options(clip_path, output, format=form), Silent())
        except KilledError:
            kills += 1
        else:
            break
        run_generation(options(clip_path, output, format=form), Silent())
        assert tree(output) == whole, f"killed at call {at}"
    assert kills >= 8


def test_nothing_is_done_twice(
    clip_path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_generation(options(clip_path, tmp_path), Silent())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*") if p.is_file() and p.suffix != ".lock"}
    monkeypatch.setattr(generate, "generate_records", lambda *a: pytest.fail("made records again"))
    assert run_generation(options(clip_path, tmp_path), Silent()).records == 7
    assert {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*") if p.is_file() and p.suffix != ".lock"
    } == before


def test_folders_and_shards_hold_the_same_bytes(clip_path: Path, tmp_path: Path, quick: None) -> None:
    run_generation(options(clip_path, tmp_path), Silent())
    seen = 0
    for shard in sorted(tmp_path.glob("*.tar")):
        data = shard.read_bytes()
        for record in load_index(shard).records:
            for member in record.members:
                assert (tmp_path / record.key / member.file).read_bytes() == data[member.offset :][
                    : member.length
                ]
                seen += 1
    assert seen == 7 * 25


def test_other_options_or_another_file_are_refused(clip_path: Path, tmp_path: Path, quick: None) -> None:
    out = tmp_path / "out"
    run_generation(options(clip_path, out), Silent())
    before = tree(out)
    with pytest.raises(OptionError, match="made with --seed 71, now it is 5"):
        run_generation(options(clip_path, out, seed=5), Silent())
    other = tmp_path / "other" / clip_path.name
    other.parent.mkdir()
    other.write_bytes(clip_path.read_bytes() + b"\0")
    with pytest.raises(OptionError, match="made from another file"):
        run_generation(options(other, out), Silent())
    assert tree(out) == before
    run_generation(options(clip_path, out, prefix="u", seed=5), Silent())
    run_generation(options(clip_path, out, seed=5, overwrite=True), Silent())
    state = json.loads(
        next(p for n, p in ((n, out / n) for n in tree(out)) if n.startswith(".vshard/t_")).read_text()
    )
    assert state["options"]["seed"] == 5
    assert sum(p.name.startswith("u_") and p.is_dir() for p in out.iterdir()) == 7


def test_overwrite_removes_exactly_its_own(clip_path: Path, tmp_path: Path, quick: None) -> None:
    run_generation(options(clip_path, tmp_path, prefix="t"), Silent())
    run_generation(options(clip_path, tmp_path, prefix="t_t"), Silent())
    others = {
        n: b for n, b in tree(tmp_path).items() if n.split("/")[-1].startswith("t_t_") or n.startswith("t_t_")
    }
    stem = options(clip_path, tmp_path).stem
    (tmp_path / f"{stem}_notes").mkdir()
    (tmp_path / f"{stem}_999999").mkdir()
    run_generation(options(clip_path, tmp_path, seed=3, overwrite=True), Silent())
    now = tree(tmp_path)
    assert {n: now[n] for n in others} == others
    assert (tmp_path / f"{stem}_notes").exists()
    assert not (tmp_path / f"{stem}_999999").exists()


def test_overwrite_looks_at_the_video_anew(clip_path: Path, tmp_path: Path, quick: None) -> None:
    run_generation(options(clip_path, tmp_path), Silent())
    (kept,) = (tmp_path / ".vshard").glob("*.scan")
    before = kept.read_bytes()
    frames = len(before) - 32 - before.index(b"\n") - 1
    blind = before[: -32 - frames] + bytes(frames)
    kept.write_bytes(blind + hashlib.sha256(blind).digest())  # a scan that saw nothing
    assert run_generation(options(clip_path, tmp_path, overwrite=True), Silent()).records == 7
    assert kept.read_bytes() == before


def test_records_of_unknown_making_are_refused(clip_path: Path, tmp_path: Path, quick: None) -> None:
    stem = options(clip_path, tmp_path).stem
    (tmp_path / f"{stem}_000000").mkdir(parents=True)
    with pytest.raises(OutputError, match="nothing says how they were made"):
        run_generation(options(clip_path, tmp_path), Silent())


def test_two_at_once_are_refused(
    clip_path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*arguments: object) -> Iterator[Made]:
        with pytest.raises(OutputError, match="another vshard is making the records of"):
            run_generation(options(clip_path, tmp_path), Silent())
        return quick_records(*arguments)

    monkeypatch.setattr(generate, "generate_records", meanwhile)
    assert run_generation(options(clip_path, tmp_path), Silent()).complete


def test_a_damaged_state_is_named(clip_path: Path, tmp_path: Path, quick: None) -> None:
    run_generation(options(clip_path, tmp_path), Silent())
    (state,) = (tmp_path / ".vshard").glob("*.json")
    whole = json.loads(state.read_bytes())
    odd = (
        {"finished": -1},
        {"source": {}},
        {"rejects": [1]},
        {"rejects": [{}]},
        {"damage": {}},
        {"options": 3},
    )
    for content in ("{}", "5", "null", "[" * 100_000, *(json.dumps(whole | change) for change in odd)):
        state.write_text(content)
        with pytest.raises(ValueError, match="is not a run's state"):
            run_generation(options(clip_path, tmp_path), Silent())
    assert run_generation(options(clip_path, tmp_path, overwrite=True), Silent()).complete


def test_a_damaged_unfinished_shard_is_named_and_made_again_with_overwrite(
    clip_path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(clip_path, tmp_path, format="shards", shard_bytes=1 << 30)

    def stopping(*arguments: object) -> Iterator[Made]:
        for made in quick_records(*arguments):
            if made.sequence == 2:
                raise KilledError
            yield made

    monkeypatch.setattr(generate, "generate_records", stopping)
    with pytest.raises(KilledError):
        run_generation(wanted, Silent())
    monkeypatch.setattr(generate, "generate_records", quick_records)
    (part,) = tmp_path.glob("*.tar.part")
    part.write_bytes(b"damaged!" + part.read_bytes()[8:])
    with pytest.raises(
        ValueError, match="unfinished shard is damaged; run the same command with --overwrite"
    ):
        run_generation(wanted, Silent())
    assert run_generation(replace(wanted, overwrite=True), Silent()).records == 7


def test_records_that_are_gone_are_missed(clip_path: Path, tmp_path: Path, quick: None) -> None:
    run_generation(options(clip_path, tmp_path, format="dirs"), Silent())
    for folder in tmp_path.glob("t_*"):
        shutil.rmtree(folder)
    report = Listening()
    run_generation(options(clip_path, tmp_path, format="dirs"), report)
    assert any("no longer here; --overwrite" in line for line in report.warned)


def test_a_short_video_leaves_nothing(clip_path: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"its 48 frames \(1\.6 s\) hold no sequence of 64 frames"):
        run_generation(options(clip_path, tmp_path / "out", seq=64, batch_size=1), Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_killed_with_minus_nine(clip_path: Path, tmp_path: Path) -> None:
    vshard = [sys.executable, "-c", "from vshard_cli.main import main; main()", "generate", str(clip_path)]
    common = [
        "--prefix",
        "k",
        "--seq",
        "12",
        "--skip-interval",
        "0",
        "--size",
        "256",
        "--gpu",
        "-1",
        "--backward-mask",
        "gradient",
    ]
    subprocess.run([*vshard, "-o", str(tmp_path / "whole"), *common], check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*vshard, "-o", str(killed), *common], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("k_*_00000*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    process.wait()
    assert not list(killed.glob("*.tar"))
    subprocess.run([*vshard, "-o", str(killed), *common], check=True, capture_output=True)
    assert tree(killed) == tree(tmp_path / "whole")
