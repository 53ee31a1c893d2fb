from __future__ import annotations

import io
import sys

import pytest
from vshard_cli import console as module
from vshard_cli.console import Console, console, plain, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_task_is_told_at_its_beginning_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with console() as report:
        report.start("reading", 3, "records")
        for done in range(1, 4):
            report.advance(done)
        report.start("reading", 1, "records")
        report.advance(1, "fine")
        report.start("packing", 1_500_000, "bytes")
        report.advance(1_500_000)
        report.advance(1_500_000)
    assert lines_of(capsys) == [
        "reading: 3 records",
        "reading: 3/3 records",
        "reading: 1 record",
        "reading: 1/1 record  fine",
        "packing: 1.5 MB",
        "packing: 1.5 MB of 1.5 MB",
    ]


def test_a_task_of_nothing_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with console() as report:
        for unit in ("bytes", "records"):
            report.start("verifying", 0, unit)
            report.advance(0)
    assert lines_of(capsys) == []


def test_where_the_end_is_unknown_what_was_done_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Console()
    report.start("unpacking", None, "bytes")
    report.advance(10)
    report.advance(2000)
    report.finish()
    report.finish()
    report.start("looking", None, "frames")
    report.start("looking", None, "frames")
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", 0.0)
    report.advance(1)
    report.advance(2)
    report.finish()
    assert lines_of(capsys) == [
        "unpacking",
        "unpacking: 2.0 kB",
        "looking",
        "looking",
        "looking: 1 frame",
        "looking: 2 frames",
    ]


@pytest.mark.parametrize(
    ("total", "unit", "shown", "absent"),
    [
        (None, "bytes", "3 bytes", ["?", "left", "None"]),
        (None, "frames", "3 frames", ["?", "left", "None"]),
        (4, "frames", "3/4 frames", ["?"]),
        (2000, "bytes", "3 bytes of 2.0 kB", ["?"]),
    ],
)
def test_the_bar_says_the_same(
    total: int | None, unit: str, shown: str, absent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console() as report:
        report.start("reading [a]\x07", 0, unit)
        assert terminal.getvalue() == ""
        report.start("reading [a]\x07", total, unit)
        report.advance(3)
    said = terminal.getvalue()
    assert "reading [a]\\x07 " in said
    assert "\x07" not in said
    assert f" {shown} " in said
    last = said.rpartition("reading")[2]
    assert not any(text in last.partition("[0m")[0] for text in absent), last


def test_warnings_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().warn("a\x1b[2J\udcff.tar: odd")
    assert lines_of(capsys) == ["warning: a\\x1b[2J\\udcff.tar: odd"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (5 * 10**12, "5000.0 GB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_long_line_keeps_its_end() -> None:
    line = f"{'a' * 3000} {'b ' * 400}\n; see: vshard verify"
    assert plain(line).endswith("\\n; see: vshard verify")
    assert plain("two  spaces") == "two  spaces"
