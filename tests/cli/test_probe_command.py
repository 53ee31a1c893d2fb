"""`vshard probe`: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from filming import moving_frames, write_video
from PIL import Image
from vshard_cli.main import run


@pytest.fixture(scope="module")
def two_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = moving_frames(50, 240, 320)
    frames[30:] = frames[30:, :, ::-1] // 2
    return write_video(tmp_path_factory.mktemp("probe") / "two.mp4", frames)


def test_it_tells_what_generate_would_plan(two_shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["probe", str(two_shots), "--seq", "12", "--skip-interval", "0", "--num-samples", "2"]
    assert run([*common, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["fps"], facts["frames"]) == (320, 240, "30", 50)
    assert facts["shots_seconds"] == [[0.0, 1.0], [1.0, 1.667]]
    assert (facts["sequences"], facts["rejected"], facts["records_most"]) == (3, {}, 12)
    assert (facts["damage"], facts["unreadable_frames"], facts["gaps_seconds"]) == (None, 0, [])
    assert run([*common, "--no-shots"]) == 0
    text = capsys.readouterr().out
    assert "320x240, 30 fps, 50 frames" in text
    assert "shots      1: 0.0-1.7 s" in text
    assert "sequences  4, each of 12 frames" in text
    assert "records    16 at most" in text


def test_the_picture_shows_each_shot(two_shots: Path, tmp_path: Path) -> None:
    assert run(["probe", str(two_shots), "-o", str(tmp_path / "new" / "shots.png")]) == 0
    board = np.array(Image.open(tmp_path / "new" / "shots.png"))
    assert board.shape == (2 * (192 + 18), 3 * 256, 3)
    light = [board[row : row + 180, :256].mean() for row in (24, 24 + 210)]
    assert light[1] < 0.7 * light[0], "the second shot is half as bright"


@pytest.mark.parametrize(
    ("place", "said"),
    [("two.mp4", "ends in .png"), ("link.png", "it is the video itself"), ("file/shots.png", "in the way")],
)
def test_a_picture_replaces_nothing_but_pictures(
    two_shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, said: str
) -> None:
    video = tmp_path / "two.mp4"
    video.write_bytes(two_shots.read_bytes())
    (tmp_path / "link.png").symlink_to(video)
    (tmp_path / "file").write_text("")
    assert run(["probe", str(video), "-o", str(tmp_path / place)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vshard: error: ") and said in error and error.count("\n") == 1
    assert video.read_bytes() == two_shots.read_bytes()
