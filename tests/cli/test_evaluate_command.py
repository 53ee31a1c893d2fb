from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from making import make_record
from random_networks import random_perceptual
from vshard_cli.main import run

from vshard.records.record import write_record
from vshard.train.checkpoint import load_model, save_model
from vshard.train.network import LightVideoInpaint
from vshard.train.perceptual import Perceptual

MODEL = "models/m.pth"
EVALUATE = ["evaluate", MODEL, "--gpu", "-1", "--no-lpips", "-i"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two records of two videos to score on, and a model that was trained on another."""
    monkeypatch.chdir(tmp_path)
    for number, key in enumerate(("a_M_0000000a_000000", "b_M_0000000b_000000")):
        write_record(Path("data/eval"), make_record(key, size=64, seed=number + 2))
    Path("models").mkdir()
    save_as_trained_on("c_M_0000000c_000000")
    return tmp_path


def save_as_trained_on(*sources: str) -> None:
    torch.manual_seed(0)
    save_model(Path(MODEL), LightVideoInpaint(base_dim=2), {"sources": list(sources)})


def test_a_table_notes_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*EVALUATE, "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{MODEL} on data/eval: 2 records of 2 videos")
    assert lines[1].split("  ")[-1].strip() == "OpenCV Telea"
    assert lines[2].startswith("PSNR in the hole, dB (more is better)")
    assert len({len(line) for line in lines[1:3]}) == 1, "numbers line up"
    assert any(line.startswith("note: speed is not timed on a CPU") for line in lines)
    assert (
        lines[-1] == "models/evaluation/index.html: pictures; models/evaluation/evaluation.json: all numbers"
    )
    stored = json.loads(Path("models/evaluation/evaluation.json").read_text())
    mean = stored["means"]["model"]["psnr_hole"]
    assert f"{mean['mean']:.2f} ({mean['low']:.2f} to {mean['high']:.2f})" in lines[2]
    assert len(list(Path("models/evaluation/pictures").iterdir())) == 2


def test_json_is_all_there_is_on_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "evaluate",
                MODEL,
                "-i",
                "data/eval",
                "--records",
                "1",
                "--json",
                "-o",
                "out",
                "--gpu",
                "-1",
                "--no-lpips",
            ]
        )
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path("out/evaluation.json").read_text())
    assert len(printed["records"]) == 1
    assert not Path("models/evaluation").exists()


def test_videos_trained_on_are_refused_unless_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    save_as_trained_on("x_M_0000000b_000009")
    assert run([*EVALUATE, "data"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "vshard: error: data/eval: m.pth was trained on 1 of its 2 videos (video 0000000b)"
    )
    assert not Path("models/evaluation").exists()
    assert (
        run(
            [
                "evaluate",
                MODEL,
                "-i",
                "data",
                "--gpu",
                "-1",
                "--no-lpips",
                "--allow-trained",
                "--pictures",
                "0",
            ]
        )
        == 0
    )
    assert "note: the model was trained on 1 of these 2 videos" in capsys.readouterr().out
    assert not list(Path("models/evaluation/pictures").iterdir())


def test_export_prints_the_entry_for_iw3(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    assert run(["export", MODEL, "-o", "city.pth"]) == 0
    assert capsys.readouterr().out == f'city: {{video: "{workplace / "city.pth"}"}}\n'
    assert load_model(Path("city.pth")).kwargs == load_model(Path(MODEL)).kwargs
    assert run(["export", MODEL, "-o", "city.pth", "--name", "my-model"]) == 0
    assert capsys.readouterr().out.startswith("my-model: ")
    assert run(["export", "none.pth", "-o", "city.pth"]) == 1
    assert capsys.readouterr().err.startswith("vshard: error: none.pth: cannot be read")


def test_lpips_is_scored_and_its_weights_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | None] = []

    def find(weights: Path | None, say: object) -> Perceptual:
        asked.append(weights)
        return random_perceptual()

    monkeypatch.setattr("vshard.train.perceptual.find_perceptual", find)
    words = [
        "evaluate",
        MODEL,
        "-i",
        "data",
        "--gpu",
        "-1",
        "--records",
        "1",
        "--perceptual-weights",
        "w.pth",
    ]
    assert run(words) == 0
    told = capsys.readouterr()
    assert asked == [Path("w.pth")] and "LPIPS: no weights" in told.err
    assert any(line.startswith("LPIPS in the hole (less is better)") for line in told.out.splitlines())


@pytest.mark.parametrize("in_the_way", ["out", "out/pictures", "out/index.html", "out/evaluation.json"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_scored(
    in_the_way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vshard.train.evaluate.evaluate", lambda *_: pytest.fail("scored in vain"))
    path = Path(in_the_way)
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("mine")
    before = sorted(Path().rglob("*"))
    assert run([*EVALUATE, "data", "-o", "out"]) == 1
    assert capsys.readouterr().err.startswith("vshard: error: cannot write out/")
    assert sorted(Path().rglob("*")) == before


def test_weights_for_what_is_left_out_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*EVALUATE, "data", "--perceptual-weights", "vgg.pth"]) == 1
    assert "--perceptual-weights vgg.pth: does not go with --no-lpips" in capsys.readouterr().err
