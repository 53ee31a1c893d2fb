from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from making import make_record
from vshard_cli.main import run
from vshard_cli.sizes import byte_size

from vshard import __version__
from vshard.records.record import write_record


def test_help_lists_every_command_without_importing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("generate", "pack", "unpack", "train", "demo"):
        assert name in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["generate"], ["generate", "a.mp4", "--dataset-dir", "b.mp4", "-o", "x"], ["pack"], []],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_the_installed_command_runs(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("vshard")
    result = subprocess.run(
        [script, "generate", tmp_path / "no.mp4", "-o", tmp_path / "o"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("vshard: error: ")
    assert result.stderr.count("\n") == 1
    assert "no such video file" in result.stderr


@pytest.mark.parametrize(("text", "size"), [("1GB", 10**9), ("2.5 MB", 2_500_000), ("12", 12), ("3kb", 3000)])
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


def test_a_size_of_unknown_unit_is_wrong_usage() -> None:
    assert run(["pack", "x", "-o", "y", "--shard-size", "3 apples"]) == 2


def test_demo_touches_no_folder_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    assert run(["demo", "-o", str(tmp_path)]) == 1
    assert "was not made by vshard demo" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["train"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes a stream")
@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_a_closed_standard_error_does_not_stop_the_work(tmp_path: Path, where: str) -> None:
    write_record(tmp_path / "train", make_record("a_000000"))
    script = Path(sys.executable).with_name("vshard")
    line = f'"{script}" pack "{tmp_path / "train"}" -o "{tmp_path / "out"}" {where}'
    assert subprocess.run(["sh", "-c", line], stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert (tmp_path / "out" / "train-000000.tar").exists()


def test_a_fault_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vshard.shards import pack

    monkeypatch.setattr(pack, "pack", lambda *a, **k: 1 / 0)
    assert run(["pack", "x", "-o", "y"]) == 1
    assert capsys.readouterr().err.startswith("vshard: error: unexpected ZeroDivisionError")
    monkeypatch.setenv("VSHARD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["pack", "x", "-o", "y"])


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "0"])
def test_absurd_rates(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "x.mp4", "-o", "y", "--max-fps", value]) == 1
    assert "--max-fps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seq", "1000000000001", "allowed is 12 to 128"),
        ("--num-samples", "100000000", "allowed is 1 to 16"),
        ("--batch-size", "1000000000001", "allowed is 1 to 128"),
    ],
)
def test_numbers_without_end_are_refused_at_once(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "x.mp4", "-o", "y", option, value]) == 1
    assert f"{option} {value}: {said}" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "bad\udcff.mp4", "-o", "y"]) == 1
    assert "the file's name is not UTF-8; rename it" in capsys.readouterr().err
